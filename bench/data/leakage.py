"""Train/test leakage: find evaluated images among training images or pairs."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from bench.core.errors import BenchError
from bench.core.images import Images
from bench.data.files import LabelledFiles

# How many images are in memory at a time.
CHUNK = 256
# Rows of pixels in the middle of an image that are compared first. Most images differ there, so only a small part of
# half a million stored images is read.
ROWS = 4


def same_ids(evaluated: Images, others: Images) -> list[str]:
    """The ids that are in both sets of images."""
    return sorted(set(evaluated.ids) & set(others.ids))


def same_pixels(evaluated: Images, others: Images) -> list[tuple[str, str]]:
    """The ids (evaluated, other) of images that are equal pixel by pixel; `others` are read once.

    If an image of `others` equals several evaluated ones, only the first pair is returned.
    """
    by_hash: dict[int, list[int]] = {}
    for i, digest in _hashes(evaluated):
        by_hash.setdefault(digest, []).append(i)
    pairs = []
    for j, digest in _hashes(others):
        if digest in by_hash:
            image = others.load([j])
            equal = (i for i in by_hash[digest] if torch.equal(evaluated.load([i]), image))
            pairs += [(evaluated.ids[i], others.ids[j]) for i in islice(equal, 1)]
    return pairs


def refuse_overlap(evaluated: Images, others: Images, what: str, dataset: str, by_id: bool = False) -> None:
    """Check that no evaluated image is among other images.

    Args:
        evaluated: images of the data set called `dataset`.
        others: the other images; files that are not decoded yet are compared by id only, and must be checked again
            once they are.
        what: the name of the others in the error.
        by_id: whether both are of one data set, so that equal ids mean equal images.

    Raises:
        BenchError: some evaluated images are among the others.
    """
    overlap = [f"{id} is in both" for id in same_ids(evaluated, others)] if by_id else []
    if not overlap and not isinstance(others, LabelledFiles):
        overlap = [f"{a} is the same image as {b}" for a, b in same_pixels(evaluated, others)]
    if overlap:
        more = f", and {len(overlap) - 3} more" if len(overlap) > 3 else ""
        raise BenchError(
            f"{len(overlap)} of the {what} are also among the evaluated images: {'; '.join(overlap[:3])}{more}. Remove "
            f"them from the {what}, or allow it: --set {dataset}.allow_overlap=true"
        )


def _hashes(images: Images) -> Iterator[tuple[int, int]]:
    """The number of each image, and a hash of some rows of its pixels."""
    side = images.pixels.shape[-1]
    first = max(0, side // 2 - ROWS // 2)
    for start in range(0, len(images), CHUNK):
        some = slice(start, min(start + CHUNK, len(images)))
        part = _rows(images, some, slice(first, first + ROWS))
        for i, rows in enumerate(part, start):
            yield i, hash(rows.tobytes())


def _rows(images: Images, some: slice, rows: slice) -> np.ndarray:
    """Rows of the green channel of some images, (n, rows, size)."""
    pixels = images.pixels
    if isinstance(pixels, Tensor):
        return pixels[some, 1, rows].numpy()
    if isinstance(pixels, np.ndarray):
        return pixels[some, 1, rows]
    return pixels[np.arange(some.start, some.stop)][:, 1, rows]
