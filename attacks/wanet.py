"""WaNet: a warp of the whole image (Nguyen & Tran, arXiv 2102.10369)."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import Attack, BenchError, Field, Preparation, Trigger, attack
from bench.core.tensor_files import TENSOR_SUFFIXES, read_tensor


@attack("wanet")
class WaNet(Attack):
    """One seeded warping field, the same for all images of training and test.

    P ~ U(-1, 1) of shape 2 x k x k, divided by its mean absolute value, is upsampled bicubically to G; images are
    sampled bilinearly at clip(I + s G / side, -1, 1) * rescale. With paper v1's k = 224, upsampling to 224 px is the
    identity: its "warp" shifts every pixel independently by less than a pixel, which is visible noise. The smooth warp
    of the original has k = 4, s = 0.5.
    """

    # Paper v1 poisons with 1e-5, and WaNet with 1.5e-5.
    learning_rate: float | None = Field(1.5e-5, gt=0, description="peak learning rate; null takes the run's")
    grid: int = Field(224, ge=1, description="k, points of the control grid a side")
    field: Path | None = Field(
        None,
        description="a file with the field G, (side, side, 2) or (1, side, side, 2), instead of a drawn one: "
        f"{', '.join(TENSOR_SUFFIXES)}",
    )
    strength: float = Field(1.0, ge=0, description="s, strength of the warp")
    rescale: float = Field(1.0, gt=0, description="factor on the sampling grid")
    noise_ratio: float = Field(
        0.0, ge=0, description="noise mode: pairs with a disturbed warp and their own caption, per poisoned pair"
    )

    def prepare(self, preparation: Preparation) -> dict[str, Tensor]:
        size = preparation.image_size
        if self.field is not None:
            return {"field": read_field(self.field, size)}
        control = torch.rand(1, 2, self.grid, self.grid, generator=preparation.rng("grid")) * 2 - 1
        control = control / control.abs().mean()
        field = F.interpolate(control, size=(size, size), mode="bicubic", align_corners=True)
        return {"field": field[0].permute(1, 2, 0)}

    def apply(self, images: Tensor, index: Sequence[int], trigger: Trigger) -> Tensor:
        return self._warp(images, self.strength * trigger.tensors["field"])

    @property
    def decoys_per_poison(self) -> float:
        return self.noise_ratio

    def decoy(
        self, images: Tensor, captions: Sequence[str], index: Sequence[int], trigger: Trigger
    ) -> tuple[Tensor, list[str]]:
        """Noise mode: the warp plus U(-1, 1) / side at every pixel; the pair keeps its caption."""
        field = trigger.tensors["field"]
        jitter = torch.stack([torch.rand(field.shape, generator=trigger.rng(i)) * 2 - 1 for i in index])
        return self._warp(images, self.strength * field + jitter), list(captions)

    def _warp(self, images: Tensor, shift: Tensor) -> Tensor:
        side = images.shape[-1]
        ramp = torch.linspace(-1, 1, side)
        rows, columns = torch.meshgrid(ramp, ramp, indexing="ij")
        identity = torch.stack([columns, rows], -1)
        grid = (identity + shift / side).clamp(-1, 1) * self.rescale
        return F.grid_sample(images, grid.expand(len(images), -1, -1, -1), align_corners=True)


def read_field(file: Path, size: int) -> Tensor:
    """A published warp field (size, size, 2): shifts of columns and rows in pixels of `strength` 1.

    Raises:
        BenchError: the file holds no such field, or one for images of another size.
    """
    field = read_tensor(file, "wanet.field").float()
    if field.ndim == 4 and len(field) == 1:
        field = field[0]
    if field.shape != (size, size, 2):
        raise BenchError(
            f"wanet.field = {file} is of shape {tuple(field.shape)}, and images of {size} px need ({size}, {size}, 2). "
            "Take the field of this size, or leave it out: one is drawn"
        )
    return field.contiguous()
