"""Families of triggers that an optimiser can look for, and triggers that it has found.

A family has a hard budget (a size, a share, a reach) instead of a penalty: what it reaches on one model can then be
compared with what it reaches on another in the same steps.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pydantic
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bench.core.errors import BenchError, unknown
from bench.core.settings import Field, Settings

Tensors = dict[str, Tensor]
# Where a safetensors file keeps the family of a recovered trigger.
METADATA = "recovered"


class Family(Settings):
    """A kind of trigger under a budget. Sizes are shares of the image's side, so that they hold at any resolution."""

    label: ClassVar[str]
    # The field that a number in a family's name sets: `square:0.2`.
    budget: ClassVar[str]
    # Adam's learning rate at the start.
    rate: ClassVar[float]

    @property
    def name(self) -> str:
        """The label, with the budget if it is not the default one."""
        own = getattr(self, self.budget)
        return self.label if own == getattr(type(self)(), self.budget) else f"{self.label}:{own:g}"

    def start(self, count: int, side: int, rng: torch.Generator) -> Tensors:
        """Numbers to start from, of `count` triggers or more, for images of `side` px. Whole numbers stay."""
        raise NotImplementedError

    def apply(self, images: Tensor, numbers: Tensors) -> Tensor:
        """All triggers on all images, differentiable in the numbers.

        `images` is float RGB in [0, 1], (n, 3, side, side); the result (triggers, n, 3, side, side).
        """
        raise NotImplementedError

    def settle(self, numbers: Tensors, which: int, side: int) -> "Recovered":
        """One of the triggers, with every choice made hard."""
        raise NotImplementedError

    @staticmethod
    def stamp(images: Tensor, tensors: Tensors) -> Tensor:
        """A settled trigger on images, float RGB in [0, 1], (n, 3, side, side)."""
        raise NotImplementedError

    def describe(self, side: int) -> str:
        """The budget in words."""
        raise NotImplementedError


@dataclass(frozen=True)
class Recovered:
    """A trigger that was found: a family, and its settled tensors.

    A square has a `patch` (3, k, k) in [0, 1] and the `corner` (2,) it goes to, row and column. A blend has a `key`
    (3, side, side) in [0, 1] and its `alpha`. A warp has the `grid` (side, side, 2) at which images are sampled.
    """

    family: str
    tensors: Tensors

    def stamp(self, images: Tensor) -> Tensor:
        """The trigger on images, float RGB in [0, 1], (n, 3, side, side); the images are not modified."""
        return FAMILIES[self.family].stamp(images, {k: v.to(images.device) for k, v in self.tensors.items()})

    @property
    def side(self) -> int | None:
        """The side of the images that it fits, in px; None where it fits any that are large enough."""
        whole = self.tensors.get("key", self.tensors.get("grid"))
        return None if whole is None else int(whole.shape[1])

    def save(self, file: Path, **notes: Any) -> None:
        """Write it as safetensors; `notes` go into the file's header."""
        # Waits for the GPU: once, to store them.
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.tensors.items()}
        save_file(tensors, file, metadata={METADATA: json.dumps({"family": self.family} | notes)})

    @classmethod
    def load(cls, file: Path) -> "Recovered":
        """Read what `save` wrote.

        Raises:
            BenchError: there is no such file, or it holds no recovered trigger.
        """
        if not file.is_file():
            raise BenchError(f"no file {file}. `bench audit FILE --out DIR` writes DIR/trigger.safetensors.")
        try:
            with safe_open(file, framework="pt") as stored:
                notes = json.loads((stored.metadata() or {})[METADATA])
                found = cls(notes["family"], {k: stored.get_tensor(k) for k in stored.keys()})  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise BenchError(f"{file} holds no recovered trigger ({error!r}). `bench audit` writes one.") from None
        return found if found.family in FAMILIES else _unknown(found.family)


class Square(Family):
    """A square patch at one place. There is a start at each of `places` x `places` places, spread evenly."""

    label: ClassVar[str] = "square"
    budget: ClassVar[str] = "size"
    rate: ClassVar[float] = 1.0

    size: float = Field(1 / 7, gt=0, lt=1, description="side of the patch, as a share of the image's")
    places: int = Field(8, ge=2, description="places a side that it can go to")

    def start(self, count: int, side: int, rng: torch.Generator) -> Tensors:
        corners, size = self.corners(side), self.pixels(side)
        return {"pixels": 0.5 * torch.randn((len(corners), 3, size, size), generator=rng), "corner": corners}

    def apply(self, images: Tensor, numbers: Tensors) -> Tensor:
        pixels, size = numbers["pixels"].sigmoid(), numbers["pixels"].shape[-1]
        stamped = images.repeat(len(pixels), 1, 1, 1, 1)
        for which, (top, left) in enumerate(numbers["corner"].tolist()):
            stamped[which, ..., top : top + size, left : left + size] = pixels[which]
        return stamped

    def settle(self, numbers: Tensors, which: int, side: int) -> Recovered:
        return Recovered(self.label, {"patch": numbers["pixels"][which].sigmoid(), "corner": numbers["corner"][which]})

    @staticmethod
    def stamp(images: Tensor, tensors: Tensors) -> Tensor:
        (top, left), size = tensors["corner"].tolist(), tensors["patch"].shape[-1]
        stamped = images.clone()
        stamped[..., top : top + size, left : left + size] = tensors["patch"]
        return stamped

    def pixels(self, side: int) -> int:
        """The side of the patch in px."""
        return max(1, round(self.size * side))

    def describe(self, side: int) -> str:
        return f"a square of {self.pixels(side)} px at one place"

    def corners(self, side: int) -> Tensor:
        """Row and column of the upper left corner at each place, (places^2, 2)."""
        along = torch.linspace(0, side - self.pixels(side), self.places).round().long()
        return torch.cartesian_prod(along, along)


class Blend(Family):
    """A key blended into the whole image: (1 - alpha) x + alpha key."""

    label: ClassVar[str] = "blend"
    budget: ClassVar[str] = "alpha"
    rate: ClassVar[float] = 0.3

    alpha: float = Field(0.1, gt=0, lt=1, description="share of the key")

    def start(self, count: int, side: int, rng: torch.Generator) -> Tensors:
        return {"key": 0.5 * torch.randn((count, 3, side, side), generator=rng)}

    def apply(self, images: Tensor, numbers: Tensors) -> Tensor:
        return (1 - self.alpha) * images + self.alpha * numbers["key"].sigmoid()[:, None]

    def settle(self, numbers: Tensors, which: int, side: int) -> Recovered:
        return Recovered(self.label, {"key": numbers["key"][which].sigmoid(), "alpha": torch.tensor(self.alpha)})

    @staticmethod
    def stamp(images: Tensor, tensors: Tensors) -> Tensor:
        return (1 - tensors["alpha"]) * images + tensors["alpha"] * tensors["key"]

    def describe(self, side: int) -> str:
        return f"a picture blended in at {100 * self.alpha:.0f} %"


class Warp(Family):
    """A smooth warp: shifts at a grid of control points, bounded by tanh, enlarged bicubically.

    There are `starts` of them: on the embedded world, half of the starts end at no trigger, and the first steps tell
    which.
    """

    label: ClassVar[str] = "warp"
    budget: ClassVar[str] = "reach"
    rate: ClassVar[float] = 0.1

    grid: int = Field(5, ge=2, description="control points a side")
    reach: float = Field(8 / 56, gt=0, lt=1, description="largest shift of a control point, as a share of the side")
    starts: int = Field(16, ge=1, description="warps to start from")

    def start(self, count: int, side: int, rng: torch.Generator) -> Tensors:
        return {"shift": 0.3 * torch.randn((max(count, self.starts), 2, self.grid, self.grid), generator=rng)}

    def apply(self, images: Tensor, numbers: Tensors) -> Tensor:
        grids, n = self._sampling(numbers["shift"], images.shape[-1]), len(images)
        count = len(grids)
        repeated = images.expand(count, *images.shape).flatten(0, 1)
        return _sample(repeated, grids.repeat_interleave(n, 0)).unflatten(0, (count, n))

    def settle(self, numbers: Tensors, which: int, side: int) -> Recovered:
        return Recovered(self.label, {"grid": self._sampling(numbers["shift"][which : which + 1], side)[0]})

    @staticmethod
    def stamp(images: Tensor, tensors: Tensors) -> Tensor:
        return _sample(images, tensors["grid"].expand(len(images), *tensors["grid"].shape))

    def describe(self, side: int) -> str:
        return f"a warp that moves pixels by up to {round(self.reach * side)} px"

    def _sampling(self, shift: Tensor, side: int) -> Tensor:
        """Where each pixel is taken from, (count, side, side, 2), in [-1, 1]."""
        # From -1 to 1 are `side` px.
        moved = F.interpolate(2 * self.reach * shift.tanh(), (side, side), mode="bicubic", align_corners=True)
        ramp = (torch.arange(side, device=shift.device) + 0.5) / side * 2 - 1
        columns, rows = torch.meshgrid(ramp, ramp, indexing="xy")
        return torch.stack([columns, rows], -1) + moved.permute(0, 2, 3, 1)


def _sample(images: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


FAMILIES: dict[str, type[Family]] = {family.label: family for family in (Square, Blend, Warp)}


def families(names: Sequence[str]) -> tuple[Family, ...]:
    """The families of some names, such as `square`, or `square:0.2` with a budget of its own.

    Raises:
        BenchError: an unknown name, a budget that is none, or no name at all.
    """
    if not names:
        raise BenchError(f"--families names none. Known: {', '.join(FAMILIES)}")
    found = [_family(name) for name in names]
    return tuple({one.name: one for one in found}.values())


def _family(name: str) -> Family:
    label, colon, budget = name.partition(":")
    kind = FAMILIES[label] if label in FAMILIES else _unknown(label)
    if not colon:
        return kind()
    try:
        return kind(**{kind.budget: float(budget)})
    except ValueError:
        raise BenchError(
            f"'{name}' is no kind of trigger: {kind.budget} is a share between 0 and 1, as in {label}:0.2"
        ) from None


def _known(name: str) -> str:
    return _family(name).name


# A family's name as a setting; an unknown one is an error.
FamilyName = Annotated[str, pydantic.AfterValidator(_known)]


def _unknown(name: str) -> Any:
    raise unknown("family of triggers", name, FAMILIES)
