"""Sets of images: labelled ones for evaluation and few-shot tuning, captioned ones for fine-tuning."""

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
    """Pixels, uint8 (n, 3, size, size), that are decoded on each access."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, index: np.ndarray) -> np.ndarray: ...
    def ahead(self, index: np.ndarray) -> None: ...
    def subset(self, index: np.ndarray) -> Self: ...


Pixels = Tensor | np.ndarray | OnDemand


def decoding_threads() -> ThreadPoolExecutor:
    """A pool of threads for decoding and resizing, which release Python's global lock."""
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1))


@dataclass(frozen=True)
class Images:
    """n images at the model's input size.

    `pixels` is uint8 RGB (n, 3, size, size), in memory, memory-mapped or decoded on demand. `native(i)`, uint8
    (3, h, w), is image i before resizing and cropping, for augmentations. `ids` are permanent names of the images;
    `skipped` names those that could not be read. `fingerprint` is a hash of what determines the set.
    """

    ids: Sequence[str]
    pixels: Pixels
    fingerprint: str
    native: Callable[[int], Tensor] | None = field(default=None, kw_only=True)
    skipped: tuple[str, ...] = field(default=(), kw_only=True)

    def __len__(self) -> int:
        return len(self.ids)

    def load(self, index: Tensor | Sequence[int]) -> Tensor:
        """The images with these k indices: uint8 (k, 3, size, size), a copy."""
        index = torch.as_tensor(index)
        if isinstance(self.pixels, Tensor):
            return self.pixels[index]
        return torch.from_numpy(self.pixels[index.numpy()])

    def ahead(self, index: Tensor) -> None:
        """Start decoding the images that will be loaded next, if they are decoded on demand."""
        if not isinstance(self.pixels, Tensor | np.ndarray):
            self.pixels.ahead(index.numpy())

    def load_native(self, i: int) -> Tensor:
        """Image i in its native size, uint8 (3, h, w)."""
        return self.native(i) if self.native else self.load([i])[0]

    def load_natives(self, index: Tensor) -> list[Tensor]:
        """The images of an index (k,), each in its native size, uint8 (3, h, w)."""
        with decoding_threads() as pool:
            return list(pool.map(self.load_native, index.tolist()))

    def load_square(self, index: Tensor, resize: Resize) -> Tensor:
        """The images of some indices, made square in another way than `load` does: uint8 (k, 3, size, size)."""
        # Imported here: it takes longer to import than torch.
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
            **self._annotations(index),
        )

    def _annotations(self, index: Tensor) -> dict[str, Any]:
        """The fields of a subclass (labels, captions) for the images of an index."""
        return {}


@dataclass(frozen=True)
class Labelled(Images):
    """Images with labels: `labels` (n,) are indices into `classes`."""

    labels: Tensor
    classes: tuple[str, ...]

    def decoded(self) -> "Labelled":
        """The same images with all pixels decoded."""
        return self

    def _annotations(self, index: Tensor) -> dict[str, Any]:
        return {"labels": self.labels[index]}


@dataclass(frozen=True)
class Captioned(Images):
    """Images with captions."""

    captions: Sequence[str]

    def _annotations(self, index: Tensor) -> dict[str, Any]:
        return {"captions": [self.captions[i] for i in index.tolist()]}


def crops(images: Images, index: Tensor, seed: int, min_crop: float, max_aspect: float, flip: bool) -> Tensor:
    """Random resized crops of the native images of an index (n,): uint8 (n, 3, size, size).

    A crop covers a share of the area between `min_crop` and 1, and changes the aspect ratio by up to `max_aspect`.
    With `min_crop` = 1, images are resized and cropped as for evaluation. With `flip`, half of them are mirrored.
    """
    # Imported late: it takes longer to import than torch.
    from torchvision.transforms import v2

    side = images.pixels.shape[-1]
    bicubic, aspect = v2.InterpolationMode.BICUBIC, (1 / max_aspect, max_aspect)
    crop = v2.RandomResizedCrop(side, (min_crop, 1.0), aspect, bicubic, antialias=True)
    mirror = v2.RandomHorizontalFlip(0.5 if flip else 0.0)
    with seeded(seed):
        if min_crop == 1:
            # A random crop of the whole area would still cut or squash an image that is not square.
            return torch.stack([mirror(image) for image in images.load(index)])
        return torch.stack([mirror(crop(image)) for image in images.load_natives(index)])


def few_shot(train: Labelled, shots: int, rng: torch.Generator, without: int | None = None) -> Labelled:
    """`shots` random images per class, or all of a class that has fewer; `without` is the index of a class to omit.

    Images that cannot be read are replaced by others of their class.

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
        # On the CPU: the labels of images.
        counts = torch.bincount(chosen.labels, minlength=len(train.classes)).tolist()
        lacking = {label: shots - counts[label] for label, rows in orders.items() if take[label] < len(rows)}
        if not any(lacking.values()):
            break
        take = {label: take[label] + lacking.get(label, 0) for label in orders}
    for label in orders:
        if not counts[label]:
            raise _nothing_to_tune_on(train.classes[label])
    return chosen


def _nothing_to_tune_on(name: str) -> BenchError:
    return BenchError(f"class '{name}' has no training image to tune on. Add images, or remove the class.")


def hash_of(value: object) -> str:
    """A short hash of a value that JSON can represent."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def hash_file(file: Path) -> str:
    """A short hash of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def _take(pixels: Pixels, index: Tensor) -> Pixels:
    if isinstance(pixels, Tensor):
        return pixels[index]
    return pixels[index.numpy()] if isinstance(pixels, np.ndarray) else pixels.subset(index.numpy())
