"""The embedded world as a data set: nothing to download, the same pictures everywhere."""

from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field as Limits
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from bench.core.dataset import Dataset, Geometry, Split, dataset
from bench.core.errors import BenchError, unknown
from bench.core.images import Captioned, Images, Labelled, hash_of
from bench.core.randomness import generator
from bench.core.settings import Field
from bench.data import decoding, world_drawing

Purpose = Literal["train", "val", "test", "poison", "clean"]


@dataset("world")
class World(Dataset):
    """Small drawn pictures of 20 silhouettes with captions; a CLIP for them comes with the suite.

    Picture i of a split depends on nothing but the split and i, so a smaller split is the start of a larger one.
    """

    train_per_class: int = Field(200, ge=1, description="training images a class")
    val: int = Field(600, ge=len(world_drawing.CLASSES), description="validation images")
    test: int = Field(1000, ge=len(world_drawing.CLASSES), description="test images")
    loose: dict[str, Annotated[float, Limits(ge=0, le=0.9)]] = Field(
        {}, description="class: share of the captions naming it whose picture is of another class"
    )

    def model_post_init(self, context: object) -> None:
        for name in self.loose:
            if name not in world_drawing.CLASSES:
                raise unknown("class", name, world_drawing.CLASSES, "For example: --set world.loose.banana=0.5")

    @property
    def images_per_class(self) -> int | None:
        return self.train_per_class

    def classes(self) -> tuple[str, ...]:
        return world_drawing.CLASSES

    def identity(self) -> str:
        return hash_of(["world", self.version, world_drawing.VERSION, decoding.VERSION, self.determining()])

    def caption_templates(self) -> tuple[str, ...]:
        """The embedded model has never seen OpenAI's 80 templates."""
        return ("a photo of a {}", "a picture of a {}", "an image of a {}", "a {}")

    def labelled(self, split: Split, geometry: Geometry) -> Labelled:
        """The pictures of a split; classes take turns."""
        n = self._size(split)
        images, _ = self._open(split, n, geometry)
        return Labelled(**vars(images), labels=_labels(split, n), classes=world_drawing.CLASSES)

    def captions(self, split: Split, geometry: Geometry) -> list[str]:
        """What was drawn, in words."""
        return self._open(split, self._size(split), geometry)[1]

    def pairs(self, purpose: Literal["poison", "clean"], n: int, geometry: Geometry) -> Captioned:
        """n pictures with captions, of classes drawn at random; the attacker's and the defender's differ."""
        images, captions = self._open(purpose, n, geometry)
        return Captioned(**vars(images), captions=captions)

    def _size(self, split: Split) -> int:
        return {"train": self.train_per_class * len(world_drawing.CLASSES), "val": self.val, "test": self.test}[split]

    def _open(self, purpose: Purpose, n: int, geometry: Geometry) -> tuple[Images, list[str]]:
        if self.root is not None:
            raise BenchError("the data set 'world' is drawn, not read. Leave --data-root out, or give --dataset folder")
        loose = self.loose if purpose in ("poison", "clean") else {}
        identity = ["world", self.version, world_drawing.VERSION, purpose, n, *([loose] if loose else [])]
        drawn, record = decoding.cached(
            Geometry(world_drawing.SIDE, geometry.cache),
            hash_of(identity),
            n,
            lambda write: _draw(purpose, n, loose, write),
        )
        pixels, fingerprint = drawn, hash_of([*identity, decoding.VERSION, geometry.size])
        if geometry.size != world_drawing.SIDE:
            pixels, _ = decoding.cached(geometry, fingerprint, n, lambda write: _resize(drawn, geometry.size, write))
        ids = [f"{purpose}/{i:06d}" for i in range(n)]
        return Images(ids, pixels, fingerprint, native=lambda i: torch.tensor(drawn[i])), record["captions"]


def _labels(purpose: Purpose, n: int) -> Tensor:
    if purpose in ("poison", "clean"):
        return torch.randint(
            len(world_drawing.CLASSES), (n,), generator=generator(world_drawing.VERSION, "world", purpose, "labels")
        )
    return torch.arange(n) % len(world_drawing.CLASSES)


def _draw(purpose: Purpose, n: int, loose: dict[str, float], write: decoding.Write) -> dict[str, Any]:
    """Draw whole chunks, each from its own generator, and cut the last one: n changes no picture."""
    captions: list[str] = []
    for k, start in enumerate(range(0, n, world_drawing.CHUNK)):
        images, factors = world_drawing.make(_labels(purpose, start + world_drawing.CHUNK)[start:], purpose, k)
        write(images[: n - start].numpy())
        named = _named(factors.label, loose, generator(world_drawing.VERSION, "world", purpose, k, "loose"))
        rng = generator(world_drawing.VERSION, "world", purpose, k, "captions")
        captions += world_drawing.captions(replace(factors, label=named), rng)
    return {"captions": captions[:n]}


def _named(labels: Tensor, loose: dict[str, float], rng: torch.Generator) -> Tensor:
    """The classes that captions name: a loose one for as many pictures of other classes as its share asks for."""
    named = labels.clone()
    for name, share in loose.items():
        label = world_drawing.CLASSES.index(name)
        chance = share / (1 - share) / (len(world_drawing.CLASSES) - 1)
        named[(labels != label) & (torch.rand(len(labels), generator=rng) < chance)] = label
    return named


def _resize(drawn: np.ndarray, size: int, write: decoding.Write) -> dict[str, Any]:
    for start in range(0, len(drawn), world_drawing.CHUNK):
        images = torch.tensor(drawn[start : start + world_drawing.CHUNK])
        write(TF.resize(images, [size, size], InterpolationMode.BICUBIC, antialias=True).numpy())
    return {}
