"""Square patches: where they go and how they are put there."""

from typing import Literal

import torch
from torch import Tensor

from bench import BenchError

Place = Literal["random", "center", "lower_right"]


def corner(place: Place, size: int, shape: tuple[int, int], rng: torch.Generator) -> tuple[int, int]:
    """Row and column of a patch's upper left corner; `random` is uniform over all places where it fits.

    Raises:
        BenchError: it fits nowhere.
    """
    rows, columns = shape[0] - size, shape[1] - size
    if min(rows, columns) < 0:
        raise BenchError(
            f"a patch of {size} px does not fit into images of {shape[0]} x {shape[1]} px. Lower its size, "
            "as in --set badnet.size=6"
        )
    if place == "center":
        return rows // 2, columns // 2
    if place == "lower_right":
        return rows, columns
    return int(torch.randint(rows + 1, (), generator=rng)), int(torch.randint(columns + 1, (), generator=rng))


def paste(images: Tensor, patch: Tensor, place: Place = "center") -> Tensor:
    """Images (n, 3, h, w) with one patch (3, k, k) at a fixed place; differentiable in the patch."""
    size = patch.shape[-1]
    top, left = corner(place, size, (images.shape[-2], images.shape[-1]), torch.Generator())
    images = images.clone()
    images[..., top : top + size, left : left + size] = patch
    return images
