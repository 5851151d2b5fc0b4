"""Sets of images as methods see them: labelled for evaluation and few-shot tuning, captioned for fine-tuning."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.core.errors import BenchError

Pixels = Tensor | np.ndarray


@dataclass(frozen=True)
class Images:
    """n images at the model's input size.

    `pixels` is uint8 RGB (n, 3, size, size), in memory or memory-mapped; `native(i)`, uint8 (3, h, w), is image i
    before resizing and cropping, for augmentations. `ids` name the images for good; `skipped` names those that could
    not be read. `fingerprint` is a hash of what determines the set.
    """

    ids: Sequence[str]
    pixels: Pixels
    fingerprint: str
    native: Callable[[int], Tensor] | None = field(default=None, kw_only=True)
    skipped: tuple[str, ...] = field(default=(), kw_only=True)

    def __len__(self) -> int:
        return len(self.ids)

    def load(self, index: Tensor | Sequence[int]) -> Tensor:
        """The images of some indices: uint8 (k, 3, size, size), a copy."""
        index = torch.as_tensor(index)
        if isinstance(self.pixels, Tensor):
            return self.pixels[index]
        return torch.from_numpy(self.pixels[index.numpy()])

    def load_native(self, i: int) -> Tensor:
        return self.native(i) if self.native else self.load([i])[0]


@dataclass(frozen=True)
class Labelled(Images):
    """Images with labels: `labels` (n,) are indices into `classes`."""

    labels: Tensor
    classes: tuple[str, ...]

    def subset(self, index: Tensor) -> "Labelled":
        rows, native = index.tolist(), self.native
        return replace(
            self,
            ids=[self.ids[i] for i in rows],
            pixels=_take(self.pixels, index),
            native=(lambda i: native(rows[i])) if native else None,
            labels=self.labels[index],
            fingerprint=f"{self.fingerprint}[{hash_of(rows)}]",
        )


@dataclass(frozen=True)
class Captioned(Images):
    """Images with captions."""

    captions: Sequence[str]


def few_shot(train: Labelled, shots: int, rng: torch.Generator, without: int | None = None) -> Labelled:
    """`shots` random images a class; classes with fewer give all they have. `without` leaves one class out.

    Raises:
        BenchError: a class has no image at all.
    """
    chosen = []
    for label, name in enumerate(train.classes):
        if label == without:
            continue
        rows = torch.where(train.labels == label)[0]
        if not len(rows):
            raise BenchError(f"class '{name}' has no training image to tune on. Add images, or remove the class.")
        chosen.append(rows[torch.randperm(len(rows), generator=rng)[:shots]])
    return train.subset(torch.cat(chosen))


def hash_of(value: object) -> str:
    """A short hash of anything JSON can write."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def hash_file(file: Path) -> str:
    """A short hash of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def _take(pixels: Pixels, index: Tensor) -> Pixels:
    return pixels[index] if isinstance(pixels, Tensor) else pixels[index.numpy()]
