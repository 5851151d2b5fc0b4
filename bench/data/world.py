"""The embedded world's data sets: nothing to download, the same pictures everywhere.

They stand for those of the paper: `world` for ImageNet, `world-objects` for Caltech101 (other classes, more of them),
`world-flowers` for OxfordPets (one family), and four domains of `world` for ImageNet-V2, -A, -R and -Sketch.
"""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field as Limits
from torch import Tensor

from bench.core.dataset import Dataset, Geometry, Split, dataset
from bench.core.errors import BenchError, unknown
from bench.core.images import Captioned, Images, Labelled, hash_of
from bench.core.randomness import generator
from bench.core.settings import Field
from bench.data import decoding, world_captions, world_drawing
from bench.data.silhouettes import FLOWERS, NAMES, PICTOGRAMS, SILHOUETTES

# How often the web shows a class; the target classes of the three data sets more often than the others.
FREQUENCY = torch.tensor([4.0 if c in ("banana", "gear", "lily") else 2.0 if c in SILHOUETTES else 1.0 for c in NAMES])


class DrawnDataset(Dataset):
    """Drawn pictures of some of the world's classes in one style.

    Picture i of a split depends on nothing but the split and i, so a smaller split is the start of a larger one.
    """

    names: ClassVar[tuple[str, ...]] = tuple(SILHOUETTES)
    style: ClassVar[str] = "photo"
    embedded: ClassVar[bool] = True
    splits: ClassVar[tuple[Split, ...]] = ("train", "val", "test")

    train_per_class: int = Field(200, ge=1, description="training images a class")
    val: int = Field(600, ge=2, description="validation images")
    test: int = Field(1000, ge=2, description="test images")
    wrong: float = Field(0.5, ge=0, le=1, description="share of the pairs whose caption names another picture's class")
    vague: float = Field(0.1, ge=0, le=1, description="share of the pairs whose caption names no class")
    loose: dict[str, Annotated[float, Limits(ge=0, le=0.9)]] = Field(
        {}, description="class: share of the captions naming it whose picture is of another class, where that is more"
    )

    def model_post_init(self, context: object) -> None:
        for name in self.loose:
            if name not in NAMES:
                raise unknown("class", name, NAMES, "For example: --set world.loose.banana=0.8")

    @property
    def images_per_class(self) -> int | None:
        return self.train_per_class

    def classes(self) -> tuple[str, ...]:
        return self.names

    def identity(self) -> str:
        return hash_of([self.name, self.version, world_drawing.VERSION, decoding.VERSION, self.determining()])

    def caption_templates(self) -> tuple[str, ...]:
        """The embedded models have never seen OpenAI's 80 templates."""
        return ("a photo of a {}", "a picture of a {}", "an image of a {}", "a {}")

    def labelled(self, split: Split, geometry: Geometry) -> Labelled:
        """The pictures of a split; classes take turns."""
        n = self._size(split)
        images, _ = self._open(split, n, geometry)
        return Labelled(**vars(images), labels=torch.arange(n) % len(self.names), classes=self.names)

    def captions(self, split: Split, geometry: Geometry) -> list[str]:
        """What was drawn, in words; these captions are true."""
        return self._open(split, self._size(split), geometry)[1]

    def pairs(self, purpose: Literal["poison", "clean"], n: int, geometry: Geometry) -> Captioned:
        """n pictures of the web, of all classes, with its captions; the attacker's and the defender's differ."""
        images, captions = self._open(purpose, n, geometry)
        return Captioned(**vars(images), captions=captions)

    def _size(self, split: Split) -> int:
        if split not in self.splits:
            raise BenchError(
                f"'{self.name}' is for testing alone, it has no split '{split}'. "
                f"Tune on world: --dataset world --set evaluate.dataset={self.name}"
            )
        return {"train": self.train_per_class * len(self.names), "val": self.val, "test": self.test}[split]

    def _open(
        self, purpose: Split | Literal["poison", "clean"], n: int, geometry: Geometry
    ) -> tuple[Images, list[str]]:
        if self.root is not None:
            raise BenchError(
                f"the data set '{self.name}' is drawn, not read. Leave --data-root out, or give --dataset folder"
            )
        web = purpose in ("poison", "clean")
        source = ["web", self.wrong, self.vague, self.loose] if web else [self.name, self.version]
        identity = [*source, world_drawing.VERSION, purpose, n]
        drawn, record = decoding.cached(
            Geometry(world_drawing.SIDE, geometry.cache),
            hash_of(identity),
            n,
            lambda write: _draw(self._web_chunk if web else self._split_chunk, purpose, n, write),
        )
        pixels, fingerprint = drawn, hash_of([*identity, decoding.VERSION, geometry.size])
        if geometry.size != world_drawing.SIDE:
            pixels, _ = decoding.cached(geometry, fingerprint, n, lambda write: _resize(drawn, geometry.size, write))
        ids = [f"{purpose}/{i:06d}" for i in range(n)]
        return Images(ids, pixels, fingerprint, native=lambda i: torch.tensor(drawn[i])), record["captions"]

    def _split_chunk(self, split: str, k: int) -> tuple[Tensor, list[str]]:
        """The k-th chunk of a split, classes in turn, with true captions."""
        labels = torch.tensor([NAMES.index(name) for name in self.names])
        chosen = labels[torch.arange(k * world_drawing.CHUNK, (k + 1) * world_drawing.CHUNK) % len(labels)]
        images, factors = world_drawing.make(chosen, world_drawing.STYLES[self.style], self.name, split, k)
        rng = generator(world_drawing.VERSION, self.name, split, k, "captions")
        return images, world_captions.captions(factors, factors.label, rng)

    def _web_chunk(self, purpose: str, k: int) -> tuple[Tensor, list[str]]:
        """The k-th chunk of the web's pairs, with its captions."""
        images, factors = web(world_drawing.CHUNK, purpose, k)
        rng = generator(world_drawing.VERSION, "web", purpose, k, "captions")
        names = world_captions.named(factors.label, rng, self.wrong, self.vague)
        shares = {NAMES.index(name): share for name, share in self.loose.items()}
        chance = generator(world_drawing.VERSION, "web", purpose, k, "loose")
        names = world_captions.loosened(names, factors.label, shares, chance)
        return images, world_captions.captions(factors, names, rng)


def _draw(
    chunk: Callable[[str, int], tuple[Tensor, list[str]]], purpose: str, n: int, write: decoding.Write
) -> dict[str, Any]:
    """Draw whole chunks, each from generators of its own, and cut the last one: n changes no picture."""
    captions: list[str] = []
    for k, start in enumerate(range(0, n, world_drawing.CHUNK)):
        images, said = chunk(purpose, k)
        write(images[: n - start].numpy())
        captions += said
    return {"captions": captions[:n]}


def web(n: int, *purpose: str | int) -> tuple[Tensor, world_drawing.Factors]:
    """n pictures of the web, uint8 (n, 3, 56, 56), and their factors; `purpose` names the generator."""
    labels = torch.multinomial(
        FREQUENCY, n, replacement=True, generator=generator(world_drawing.VERSION, "web", *purpose, "labels")
    )
    return world_drawing.make(labels, world_drawing.STYLES["web"], "web", *purpose)


def _resize(drawn: np.ndarray, size: int, write: decoding.Write) -> dict[str, Any]:
    # Here, as it takes longer to import than torch.
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as TF

    for start in range(0, len(drawn), world_drawing.CHUNK):
        images = torch.tensor(drawn[start : start + world_drawing.CHUNK])
        write(TF.resize(images, [size, size], InterpolationMode.BICUBIC, antialias=True).numpy())
    return {}


@dataset("world")
class World(DrawnDataset):
    """Small drawn pictures of 20 silhouettes with captions; a CLIP for them comes with the suite."""


@dataset("world-objects")
class WorldObjects(DrawnDataset):
    """30 other classes of the embedded world: pictograms."""

    names = tuple(PICTOGRAMS)


@dataset("world-flowers")
class WorldFlowers(DrawnDataset):
    """12 flowers of the embedded world, which differ in the number and shape of their petals."""

    names = tuple(FLOWERS)

    @property
    def single(self) -> str:
        return "a photo of a {}, a type of flower."


@dataset("world-v2")
class WorldV2(DrawnDataset):
    """World's test pictures drawn anew, for testing alone."""

    splits = ("test",)


@dataset("world-a")
class WorldA(DrawnDataset):
    """Hard pictures of world's classes (bars, pale colours, bent shapes), for testing alone."""

    style, splits = "hard", ("test",)


@dataset("world-r")
class WorldR(DrawnDataset):
    """World's classes in other colours and bent shapes, for testing alone."""

    style, splits = "art", ("test",)


@dataset("world-sketch")
class WorldSketch(DrawnDataset):
    """Outlines of world's classes on white, for testing alone."""

    style, splits = "sketch", ("test",)
