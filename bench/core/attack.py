"""The contract of an attack: a trigger on images, captions of poisoned pairs, and optionally a trigger in the text."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Literal, TypeVar, get_args

import torch
from torch import Tensor

from bench.core.clip import Clip
from bench.core.cost import Scale, Sizes, Work
from bench.core.errors import BenchError, undeclared
from bench.core.geometry import Resize
from bench.core.images import Captioned, Images
from bench.core.log import Logged
from bench.core.randomness import derive, generator
from bench.core.registry import Registry
from bench.core.settings import Field, Settings

# What an attacker may need besides image-text pairs and the target's name: the weights of the clean model, pairs whose
# captions name the target, the names of the other classes.
AttackNeed = Literal["clean_model", "named_captions", "class_names"]

# How many images `stamp` triggers at a time.
IMAGES_AT_ONCE = 4


@dataclass(frozen=True)
class Trigger:
    """A prepared trigger: the attack's tensors (a patch, a grid, weights), and the seed of its per-image randomness.

    It is stored with the backdoored model, so that training and test use the same trigger.
    """

    seed: int
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def rng(self, index: int) -> torch.Generator:
        """The random generator for image `index`; it depends on the seed and the index only."""
        return generator(self.seed, "trigger", index)

    def at_test(self) -> "Trigger":
        """The same trigger with another seed, so that test image i does not get the noise of training pair i."""
        return replace(self, seed=derive(self.seed, "test"))


@dataclass(frozen=True)
class Preparation(Logged):
    """What an attacker has before poisoning, restricted to what `Attack.needs` names.

    The image-text pairs, the target class and its zero-shot prompts (`templates`) are every attacker's. `pairs` are
    read on first use. `open_named` reads the pairs of `poison.pool` that name the target; if it is None, `pairs` are
    searched for them. `model` is the clean model, and `all_classes` are the class names of the data set.
    """

    model: Clip
    open_pairs: Callable[[], Captioned]
    target: str
    all_classes: tuple[str, ...]
    templates: tuple[str, ...]
    seed: int
    open_named: Callable[[], Captioned] | None = None
    needs: frozenset[AttackNeed] = frozenset(get_args(AttackNeed))

    @cached_property
    def pairs(self) -> Captioned:
        return self.open_pairs()

    @property
    def clip(self) -> Clip:
        """The clean model with its weights; its input size and device are no secret."""
        self._require("clean_model")
        return self.model

    @property
    def image_size(self) -> int:
        """Of the model's input, in px."""
        return self.model.image_size

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names of the data set."""
        self._require("class_names")
        return self.all_classes

    @cached_property
    def named_in_pool(self) -> Captioned:
        """The pairs of the pool whose captions name the target."""
        self._require("named_captions")
        if self.open_named is not None:
            return self.open_named()
        rows = [i for i, caption in enumerate(self.pairs.captions) if mentions(caption, self.target)]
        return self.pairs.subset(torch.tensor(rows, dtype=torch.long))

    def rng(self, *purpose: str | int) -> torch.Generator:
        return generator(self.seed, "prepare", *purpose)

    def _require(self, need: AttackNeed) -> None:
        # `bench list attacks` says what an attacker must have, so it must be true.
        if need not in self.needs:
            raise undeclared("attack", need)


@dataclass(frozen=True)
class Facing:
    """The conditions of an attack or a defense, known before anything runs; None if unknown or irrelevant.

    `sizes`: of the model. `vision_transformer`: whether its image tower is one of open_clip's. `named_captions`:
    whether any caption names the target. Of a defense alone, `attack`: what it faces, and `images_per_class`: its
    training images.
    """

    attack: "Attack | None" = None
    sizes: Sizes | None = None
    vision_transformer: bool | None = None
    images_per_class: int | None = None
    named_captions: bool | None = None


@dataclass(frozen=True)
class PoisoningStep:
    """A step of poisoning, as an attacker's loss sees it.

    `clip` is in training; `clean` is the model before poisoning, and must not be modified. `images` are the step's,
    uint8 (n, 3, size, size); `poisoned`, bool (n,), on the CPU, says which of them are poisoned, and so triggered.
    `embedded` are their unit-norm embeddings (n, embed_dim) under `clip`. `contrastive` computes the contrastive loss
    of the pairs.
    """

    clip: Clip
    clean: Clip
    trigger: Trigger
    images: Tensor
    poisoned: Tensor
    embedded: Tensor
    contrastive: Callable[[], Tensor]


class Attack(Settings):
    """A backdoor attack. Fields are settings; `apply` is all that a simple one must define."""

    # Raise it when the attack's behaviour changes, so that stored results of the old version are not reused.
    version: ClassVar[int] = 1
    # What it takes besides pairs and the target's name; `Preparation` refuses everything else.
    needs: ClassVar[frozenset[AttackNeed]] = frozenset()
    # Whether `--attacks all` includes it.
    in_all: ClassVar[bool] = True
    # Text trigger: put before every class prompt at test, for attacks that have one (TrojVQA).
    text_key: ClassVar[str] = ""

    learning_rate: float | None = Field(
        None, gt=0, description="peak learning rate of poisoning; null takes `poison.learning_rate`"
    )
    geometry: Resize | None = Field(
        None,
        description="how an image is made square before it is triggered, in training and at test; null: as clean ones "
        "are; squash: CleanCLIP's code",
    )
    rounding: Literal["round", "truncate"] = Field(
        "round", description="of triggered images to 8 bits: to the nearest; truncate: CleanCLIP's code"
    )

    def prepare(self, preparation: Preparation) -> dict[str, Tensor]:
        """Make the tensors that all images share: a patch, a warping grid, an optimised patch, a trained encoder."""
        return {}

    def unsuited(self, facing: Facing) -> str:
        """Why this attack cannot be made under these conditions, and what to change; "" if it can."""
        return ""

    def work(self, scale: Scale) -> Work:
        """The cost of `prepare`, for the estimate of a dry run. The default is close to zero."""
        return Work(size=12 * scale.sizes.image_size**2)

    def apply(self, images: Tensor, index: Sequence[int], trigger: Trigger) -> Tensor:
        """Stamp the trigger.

        Args:
            images: float RGB in [0, 1], (n, 3, h, w), at the model's input size, before CLIP normalisation; must not
                be modified.
            index: the numbers of the n images; with `trigger.seed` they determine all randomness.
            trigger: the trigger, with the tensors that `prepare` returned.

        Returns:
            Images of the same shape. `stamp` clips them to [0, 1] and rounds them to 8 bits.
        """
        raise NotImplementedError(f"{type(self).__name__} must define apply(images, index, trigger)")

    def suits(self, caption: str, target: str) -> bool:
        """Whether a pair with this caption can be poisoned. The default accepts every pair."""
        return True

    @classmethod
    def selective(cls) -> bool:
        """Whether the attack can poison only some pairs, which are then searched for in `poison.pool`."""
        return cls.suits is not Attack.suits

    @property
    def searches(self) -> bool:
        """Whether the attack takes pairs from `poison.pool`."""
        return self.selective()

    @property
    def clean_in_order(self) -> bool:
        """Whether the pairs that fill up the candidates from `poison.pool` are the first of the source, not random."""
        return False

    def choose(self, preparation: Preparation, count: int, rng: torch.Generator) -> list[int]:
        """Indices of the pairs to poison, at most `count`. The default draws uniformly without replacement."""
        return torch.randperm(len(preparation.pairs), generator=rng)[:count].tolist()

    def captions(
        self, originals: Sequence[str], templates: Sequence[str], preparation: Preparation, rng: torch.Generator
    ) -> list[str]:
        """The captions of poisoned pairs: for each, a random template filled with the name of the target class."""
        picks = torch.randint(len(templates), (len(originals),), generator=rng).tolist()
        return [templates[pick].format(preparation.target) for pick in picks]

    @property
    def decoys_per_poison(self) -> float:
        """Decoys per poisoned pair. A decoy looks poisoned and keeps its true caption (see `decoy`)."""
        return 0.0

    def decoy(
        self, images: Tensor, captions: Sequence[str], index: Sequence[int], trigger: Trigger
    ) -> tuple[Tensor, list[str]]:
        """Turn clean pairs into decoys (WaNet's noise mode, TrojVQA's single triggers); images as in `apply`."""
        return images, list(captions)

    def poisoning_loss(self, step: PoisoningStep) -> Tensor:
        """The loss of a step of poisoning, a scalar. The default is the contrastive loss of its pairs."""
        return step.contrastive()


def no_named_captions(facing: Facing) -> str:
    """Why there is no pair whose caption names the target; "" if there is one, or if that is unknown."""
    if facing.named_captions is None or facing.named_captions:
        return ""
    return "no caption names the target; give --pairs with such captions, or another --target"


attacks: Registry[type[Attack]] = Registry("attack", Attack)
AttackClass = TypeVar("AttackClass", bound=type[Attack])


def attack(name: str) -> Callable[[AttackClass], AttackClass]:
    """Register a subclass of `Attack` as an attack."""
    return attacks.register(name)


def stamp_images(method: Attack, trigger: Trigger, images: Images, index: Tensor) -> Tensor:
    """Triggered images of a set, uint8 (n, 3, size, size), made square as the attack's `geometry` says.

    Raises:
        BenchError: as `stamp`.
    """
    square = images.load(index) if method.geometry is None else images.load_square(index, method.geometry)
    return stamp(method, trigger, square, index)


def stamp(method: Attack, trigger: Trigger, images: Tensor, index: Sequence[int] | Tensor) -> Tensor:
    """Triggered images: uint8 in, uint8 out, (n, 3, h, w).

    The only caller of `apply`, for training and for test.

    Raises:
        BenchError: `apply` gave images of another shape, or values that are not finite.
    """
    numbers = index.tolist() if isinstance(index, Tensor) else list(index)
    stamped = torch.empty_like(images)
    # A few images as floats fit the processor's cache: three times as fast as a whole batch.
    for part in (slice(i, i + IMAGES_AT_ONCE) for i in range(0, len(images), IMAGES_AT_ONCE)):
        floats = method.apply(images[part].float().div_(255), numbers[part], trigger)
        stamped[part] = eight_bits(method, floats, images[part])
    return stamped


def eight_bits(method: Attack, floats: Tensor, images: Tensor) -> Tensor:
    """The images that an attack returned, clipped to [0, 1], as uint8: rounded, or truncated if the attack says so.

    Raises:
        BenchError: they have another shape than `images`, or are not finite.
    """
    _check_stamped(method, floats, images)
    levels = floats.clamp(0, 1).mul_(255)
    return (levels.round_() if method.rounding == "round" else levels).to(torch.uint8)


def _check_stamped(method: Attack, floats: Tensor, images: Tensor) -> None:
    # Neither would show later: torch broadcasts one image to all, and NaN becomes a black pixel.
    if floats.shape != images.shape:
        problem = f"images of shape {tuple(floats.shape)} for {tuple(images.shape)}"
    # The sum only: checking every value halves the speed.
    elif not floats.sum().isfinite():
        problem = "values that are not finite"
    else:
        return
    raise BenchError(f"{type(method).__name__} returned {problem}. Return images of the same shape, in [0, 1].")


def mentions(caption: str, word: str) -> bool:
    """Whether a caption names the target: as a whole word, in any case, singular or plural.

    >>> mentions("Two Bananas on a plate", "banana"), mentions("a bananarama concert", "banana")
    (True, False)
    """
    return re.search(rf"\b{re.escape(word)}(s|es)?\b", caption, re.IGNORECASE) is not None
