"""A defense with a `Part`: a median filter before the image tower, which removes some small triggers."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Self

import torch
from kornia.filters import median_blur
from torch import Tensor

from bench import CleanData, Defense, Field, Part, Victim, defense, part
from bench.core.encoder import Encoded


@part("median_filter")
class MedianFilter(Part):
    """Replaces every value by the median of the square around it."""

    def __init__(self, side: int) -> None:
        self.side = side

    def tensors(self) -> dict[str, Tensor]:
        return {"side": torch.tensor(self.side)}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], device: torch.device) -> Self:
        return cls(int(tensors["side"]))

    def encode(self, images: Tensor, inner: Callable[[Tensor], Encoded]) -> Encoded:
        floats = images / 255 if images.dtype == torch.uint8 else images
        return inner(median_blur(floats, (self.side, self.side)))


@defense("median_filter")
class MedianFilterDefense(Defense):
    """Filter every image before it is encoded. Nothing is trained, and no data are needed."""

    side: int = Field(3, ge=1, description="side of the square; odd", unit="px")

    def fit(self, victim: Victim, data: CleanData) -> Victim:
        return replace(victim, parts=(*victim.parts, MedianFilter(self.side)))
