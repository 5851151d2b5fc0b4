"""Blended: a key blended into the whole image (Chen et al., arXiv 1712.05526)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor

from attacks.patch import read_picture
from bench import Attack, Field, Preparation, Trigger, attack


@attack("blended")
class Blended(Attack):
    """x' = (1 - alpha) x + alpha n, with uniform noise n over the whole image.

    Paper v1 states only alpha = 0.2. CleanCLIP, on which it builds, draws other noise n for every image, so the model
    learns "white noise of amplitude 0.2"; that is the default here. `fixed` blends one seeded noise, `image` a picture
    of the user.
    """

    alpha: float = Field(0.2, ge=0, le=1, description="share of the key in the blend")
    key: Literal["resample", "fixed", "image"] = Field(
        "resample", description="resample: noise redrawn per image; fixed: one seeded noise; image: `key_image`"
    )
    key_cells: int | None = Field(
        None, ge=1, description="cells a side of the fixed noise, enlarged smoothly; null is one a pixel"
    )
    key_image: Path | None = Field(None, description="the picture blended in with key = image")

    @model_validator(mode="after")
    def _check_key(self) -> Self:
        if (self.key == "image") != (self.key_image is not None):
            raise ValueError("key = image and key_image = FILE go together")
        return self

    def prepare(self, preparation: Preparation) -> dict[str, Tensor]:
        # Imported late: it takes longer to import than torch.
        from torchvision.transforms.v2 import functional as TF

        size = preparation.image_size
        if self.key == "fixed":
            cells = self.key_cells or size
            key = torch.rand(1, 3, cells, cells, generator=preparation.rng("key"))
            return {"key": TF.resize(key, [size, size], antialias=True)[0].clamp(0, 1)}
        if self.key == "image":
            picture = read_picture(self.key_image, "key_image")
            return {"key": TF.resize(picture, [size, size], antialias=True)}
        return {}

    def apply(self, images: Tensor, index: Sequence[int], trigger: Trigger) -> Tensor:
        shape = images.shape[1:]
        if "key" in trigger.tensors:
            keys = trigger.tensors["key"]
        else:
            keys = torch.stack([torch.rand(shape, generator=trigger.rng(i)) for i in index])
        return (1 - self.alpha) * images + self.alpha * keys
