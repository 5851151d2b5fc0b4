"""Images that are evaluated on and must not be tuned on: are some of them in the training images or the pairs?"""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from bench.core.errors import BenchError
from bench.core.images import Images
from bench.data.files import LabelledFiles

# Images in memory at once.
CHUNK = 256
# Rows of pixels, in the middle of an image, that are compared first: most pairs differ there, and reading a few pages
# of each of half a million stored images is cheap.
ROWS = 4


def same_ids(evaluated: Images, others: Images) -> list[str]:
    """The ids that two sets of images of one data set share."""
    return sorted(set(evaluated.ids) & set(others.ids))


def same_pixels(evaluated: Images, others: Images) -> list[tuple[str, str]]:
    """The ids of images that are equal pixel by pixel, (evaluated, other) each; `others` are passed through once.

    Of an other image that equals several evaluated ones, the first is told.
    """
    known: dict[int, list[int]] = {}
    for i, glimpse in _glimpses(evaluated):
        known.setdefault(glimpse, []).append(i)
    found = []
    for j, glimpse in _glimpses(others):
        if glimpse in known:
            image = others.load([j])
            equal = (i for i in known[glimpse] if torch.equal(evaluated.load([i]), image))
            found += [(evaluated.ids[i], others.ids[j]) for i in islice(equal, 1)]
    return found


def refuse_overlap(evaluated: Images, others: Images, what: str, dataset: str, by_id: bool = False) -> None:
    """Check that no evaluated image is among others.

    Args:
        evaluated: images of the data set called `dataset`.
        others: files that are not decoded yet are compared by id alone; they are to be checked again when they are.
        what: how to call the others.
        by_id: the ids of both are of one data set, and must differ too.

    Raises:
        BenchError: some are.
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


def _glimpses(images: Images) -> Iterator[tuple[int, int]]:
    """The number of each image, and a hash of some of its pixels."""
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
