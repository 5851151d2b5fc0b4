"""Square patches: their position, pasting them, and reading one from a picture."""

from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from bench import BenchError, Facing

Position = Literal["random", "center", "lower_right"]


def corner(place: Position, size: int, shape: tuple[int, int], rng: torch.Generator) -> tuple[int, int]:
    """Row and column of the upper left corner of a patch of `size` px in an image of `shape` (h, w).

    `random` is uniform over all positions where the patch fits.

    Raises:
        BenchError: it does not fit.
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


def too_large(size: int, facing: Facing) -> str:
    """Why a patch of `size` px does not fit into the model's images; "" if it does, or if their size is unknown."""
    if facing.sizes is None or size <= facing.sizes.image_size:
        return ""
    side = facing.sizes.image_size
    return f"a patch of {size} px does not fit into the model's images of {side} x {side} px; lower its size"


def paste(images: Tensor, patch: Tensor, place: Position = "center") -> Tensor:
    """Images (n, 3, h, w) with one patch (3, k, k) at a fixed place; differentiable in the patch."""
    size = patch.shape[-1]
    top, left = corner(place, size, (images.shape[-2], images.shape[-1]), torch.Generator())
    images = images.clone()
    images[..., top : top + size, left : left + size] = patch
    return images


def read_picture(file: Path | None, setting: str) -> Tensor:
    """Read the picture that a setting names: float RGB in [0, 1], (3, h, w).

    Raises:
        BenchError: the file is missing or cannot be read.
    """
    # Imported late: it takes longer to import than torch.
    from torchvision.transforms.v2 import functional as TF

    try:
        with Image.open(file or "") as picture:
            return TF.pil_to_tensor(picture.convert("RGB")).float() / 255
    except OSError as error:
        raise BenchError(f"{setting} = {file}: a picture is needed, --set ATTACK.{setting}=FILE ({error})") from None


def read_patch(file: Path | None, size: int) -> Tensor:
    """The patch in the file `patch_image`: float RGB in [0, 1], (3, size, size).

    Raises:
        BenchError: it cannot be read or has another size; it is not resized, as that would be another trigger.
    """
    patch = read_picture(file, "patch_image")
    rows, columns = patch.shape[1:]
    if rows != size or columns != size:
        raise BenchError(
            f"patch_image = {file} has {columns} x {rows} px, and size = {size}: give a square picture, and its side "
            "with --set ATTACK.size=PX"
        )
    return patch
