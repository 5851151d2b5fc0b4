"""Sets of images as methods see them: labelled for evaluation and few-shot tuning, captioned for fine-tuning."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from bench.core.errors import BenchError
from bench.core.geometry import Geometry, Resize
from bench.core.randomness import seeded


class OnDemand(Protocol):
    """Pixels, uint8 (n, 3, size, size), that are made whenever they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, index: np.ndarray) -> np.ndarray: ...
    def ahead(self, index: np.ndarray) -> None: ...
    def subset(self, index: np.ndarray) -> Self: ...


Pixels = Tensor | np.ndarray | OnDemand


def decoding_threads() -> ThreadPoolExecutor:
    """Decoding and resizing release Python's lock, so threads do what processes would. They start when needed."""
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1))


@dataclass(frozen=True)
class Images:
    """n images at the model's input size.

    `pixels` is uint8 RGB (n, 3, size, size), in memory, memory-mapped or made on demand; `native(i)`, uint8
    (3, h, w), is image i before resizing and cropping, for augmentations. `ids` name the images for good; `skipped`
    names those that could not be read. `fingerprint` is a hash of what determines the set.
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

    def ahead(self, index: Tensor) -> None:
        """Say which images will be loaded next, so that those that are made on demand are made meanwhile."""
        if not isinstance(self.pixels, Tensor | np.ndarray):
            self.pixels.ahead(index.numpy())

    def load_native(self, i: int) -> Tensor:
        return self.native(i) if self.native else self.load([i])[0]

    def load_natives(self, index: Tensor) -> list[Tensor]:
        """The images of an index, each in its own size."""
        with decoding_threads() as pool:
            return list(pool.map(self.load_native, index.tolist()))

    def load_square(self, index: Tensor, resize: Resize) -> Tensor:
        """The images of some indices, made square in another way than `load` does: uint8 (k, 3, size, size)."""
        # Here, as it takes longer to import than torch.
        from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

        geometry = Geometry(self.pixels.shape[-1], cache=Path(), resize=resize)
        # As PIL resizes, which is how images are decoded; tensors are rounded otherwise.
        squares = [pil_to_tensor(geometry.square(to_pil_image(image))) for image in self.load_natives(index)]
        return torch.stack(squares) if squares else self.load(index)

    def subset(self, index: Tensor) -> Self:
        """Some of the images, in the order of `index` (k,)."""
        rows, native = index.tolist(), self.native
        return replace(
            self,
            ids=[self.ids[i] for i in rows],
            pixels=_take(self.pixels, index),
            native=(lambda i: native(rows[i])) if native else None,
            fingerprint=f"{self.fingerprint}[{hash_of(rows)}]",
            **self._more(index),
        )

    def _more(self, index: Tensor) -> dict[str, Any]:
        """What a kind of images has beside them, of some of them."""
        return {}


@dataclass(frozen=True)
class Labelled(Images):
    """Images with labels: `labels` (n,) are indices into `classes`."""

    labels: Tensor
    classes: tuple[str, ...]

    def decoded(self) -> "Labelled":
        """The images with their pixels at hand; files are decoded now."""
        return self

    def _more(self, index: Tensor) -> dict[str, Any]:
        return {"labels": self.labels[index]}


@dataclass(frozen=True)
class Captioned(Images):
    """Images with captions."""

    captions: Sequence[str]

    def _more(self, index: Tensor) -> dict[str, Any]:
        return {"captions": [self.captions[i] for i in index.tolist()]}


def crops(images: Images, index: Tensor, seed: int, min_crop: float, max_aspect: float, flip: bool) -> Tensor:
    """Random resized crops of the native images of an index, flipped half of the time: uint8 (n, 3, size, size).

    A crop takes `min_crop` or more of the area, stretched by up to `max_aspect`; 1 is the whole image, resized and
    cut as it is for evaluation.
    """
    # Here, as it takes longer to import than torch.
    from torchvision.transforms import v2

    side = images.pixels.shape[-1]
    bicubic, aspect = v2.InterpolationMode.BICUBIC, (1 / max_aspect, max_aspect)
    crop = v2.RandomResizedCrop(side, (min_crop, 1.0), aspect, bicubic, antialias=True)
    mirror = v2.RandomHorizontalFlip(0.5 if flip else 0.0)
    with seeded(seed):
        if min_crop == 1:
            # Not a crop of everything: of a native image that is not square, it would still cut or squash.
            return torch.stack([mirror(image) for image in images.load(index)])
        return torch.stack([mirror(crop(image)) for image in images.load_natives(index)])


def few_shot(train: Labelled, shots: int, rng: torch.Generator, without: int | None = None) -> Labelled:
    """`shots` random images a class; classes with fewer give all they have. `without` leaves one class out.

    Of a class that turns out to have images which cannot be read, the next ones are taken.

    Raises:
        BenchError: a class has no image at all.
    """
    orders = {}
    for label, name in enumerate(train.classes):
        if label == without:
            continue
        rows = torch.where(train.labels == label)[0]
        if not len(rows):
            raise _nothing_to_tune_on(name)
        orders[label] = rows[torch.randperm(len(rows), generator=rng)]
    take = dict.fromkeys(orders, shots)
    while True:
        chosen = train.subset(torch.cat([rows[: take[label]] for label, rows in orders.items()]))
        found = torch.bincount(chosen.labels, minlength=len(train.classes)).tolist()
        lacking = {label: shots - found[label] for label, rows in orders.items() if take[label] < len(rows)}
        if not any(lacking.values()):
            break
        take = {label: take[label] + lacking.get(label, 0) for label in orders}
    for label in orders:
        if not found[label]:
            raise _nothing_to_tune_on(train.classes[label])
    return chosen


def _nothing_to_tune_on(name: str) -> BenchError:
    return BenchError(f"class '{name}' has no training image to tune on. Add images, or remove the class.")


def hash_of(value: object) -> str:
    """A short hash of anything JSON can write."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def hash_file(file: Path) -> str:
    """A short hash of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def _take(pixels: Pixels, index: Tensor) -> Pixels:
    if isinstance(pixels, Tensor):
        return pixels[index]
    return pixels[index.numpy()] if isinstance(pixels, np.ndarray) else pixels.subset(index.numpy())
