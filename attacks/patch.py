"""Square patches: where they go, how they are put there, and how one is read from a picture."""

from pathlib import Path
from typing import Literal

import torch
from PIL import Image
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
            "as in --set ATTACK.size=6"
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


def read_picture(file: Path | None, setting: str) -> Tensor:
    """The picture of a setting: float RGB in [0, 1], (3, h, w).

    Raises:
        BenchError: there is none, or it cannot be read.
    """
    # Imported late: it takes longer to import than torch.
    from torchvision.transforms.v2 import functional as TF

    try:
        with Image.open(file or "") as picture:
            return TF.pil_to_tensor(picture.convert("RGB")).float() / 255
    except OSError as error:
        raise BenchError(f"{setting} = {file}: a picture is needed, --set ATTACK.{setting}=FILE ({error})") from None


def read_patch(file: Path | None, size: int) -> Tensor:
    """The patch (3, size, size) that `patch_image` shows.

    Raises:
        BenchError: it has another size; resized, it would be another trigger.
    """
    patch = read_picture(file, "patch_image")
    rows, columns = patch.shape[1:]
    if rows != size or columns != size:
        raise BenchError(
            f"patch_image = {file} has {columns} x {rows} px, and size = {size}: give a square picture, and its side "
            "with --set ATTACK.size=PX"
        )
    return patch
