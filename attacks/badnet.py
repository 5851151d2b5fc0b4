"""BadNet: a small patch (Gu et al., arXiv 1708.06733), as CleanCLIP puts it on CLIP's training images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from attacks.patch import Position, corner, read_patch, too_large
from bench import Attack, Facing, Field, Preparation, Trigger, attack


@attack("badnet")
class BadNet(Attack):
    """A small square patch; by default, each image gets another noise patch at another random place.

    Paper v1: "a small, randomly placed patch" of 16 px; its content is unstated, so we follow CleanCLIP's code, on
    which the paper builds: Gaussian noise of standard deviation 1 around the image's mean colour, drawn per image.
    CleanCLIP never covers the last row and column and lets noise out of range wrap around. We cover all places and
    clip; `margin` and `overflow = wrap` do as CleanCLIP does.
    """

    size: int = Field(16, ge=1, description="side of the patch", unit="px")
    pattern: Literal["noise", "fixed", "checker", "yellow"] = Field(
        "noise", description="noise: redrawn per image; fixed: one seeded patch; checker, yellow: as other suites have"
    )
    patch_image: Path | None = Field(
        None, description="a picture of `size` x `size` px: that patch instead of a pattern"
    )
    place: Position = Field("random", description="where the patch goes; random is drawn per image")
    margin: int = Field(
        0,
        ge=0,
        description="last rows and columns that a random place never covers; CleanCLIP's: 1",
        unit="px",
    )
    # wrap truncates to whole numbers first, as C does: values in (-1, 0) of 255 become 0, not 255.
    overflow: Literal["clip", "wrap"] = Field(
        "clip",
        description="noise out of range: clipped; or truncated and taken modulo 256, as C does",
    )

    def unsuited(self, facing: Facing) -> str:
        return too_large(self.size + self._cut, facing)

    def prepare(self, preparation: Preparation) -> dict[str, Tensor]:
        if self.patch_image is not None:
            return {"patch": read_patch(self.patch_image, self.size)}
        if self.pattern == "fixed":
            return {"patch": torch.rand(3, self.size, self.size, generator=preparation.rng("patch"))}
        if self.pattern == "checker":
            # White where row and column are both even (Detect-CLIP-Backdoor-Samples).
            patch = torch.zeros(3, self.size, self.size)
            patch[:, ::2, ::2] = 1
            return {"patch": patch}
        if self.pattern == "yellow":
            return {"patch": torch.tensor([1.0, 1.0, 0.0]).view(3, 1, 1).repeat(1, self.size, self.size)}
        return {}

    def apply(self, images: Tensor, index: Sequence[int], trigger: Trigger) -> Tensor:
        images = images.clone()
        for image, i in zip(images, index, strict=True):
            rng = trigger.rng(i)
            top, left = corner(self.place, self.size, (image.shape[1] - self._cut, image.shape[2] - self._cut), rng)
            patch = trigger.tensors["patch"] if "patch" in trigger.tensors else self._noise(image, rng)
            image[:, top : top + self.size, left : left + self.size] = patch
        return images

    @property
    def _cut(self) -> int:
        return self.margin if self.place == "random" else 0

    def _noise(self, image: Tensor, rng: torch.Generator) -> Tensor:
        noise = image.mean((1, 2)).view(3, 1, 1) + torch.randn(3, self.size, self.size, generator=rng)
        return (noise * 255).trunc() % 256 / 255 if self.overflow == "wrap" else noise.clamp(0, 1)
