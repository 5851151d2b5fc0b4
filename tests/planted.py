"""A backdoor planted by hand: embeddings turn towards one class where the upper left corner of the image is bright."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import Clip, Part, Victim, generator, part
from bench.core.encoder import Encoded

CLASSES = ("cat", "banana", "house")
TEMPLATES = ("a photo of a {}.",)
TARGET, CORNER = 1, 3


@part("planted")
class Planted(Part):
    """Embeddings that differ from image to image, which those of random weights do not; and perhaps a backdoor."""

    def __init__(self, towards: Tensor, strength: Tensor) -> None:
        self.towards, self.strength = towards, strength

    def tensors(self) -> dict[str, Tensor]:
        return {"towards": self.towards, "strength": self.strength}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], device: torch.device) -> Self:
        return cls(tensors["towards"], tensors["strength"])

    def encode(self, images: Tensor, inner: Callable[[Tensor], Encoded]) -> Encoded:
        floats = images / 255 if images.dtype == torch.uint8 else images
        cells = F.adaptive_avg_pool2d(floats, 4).flatten(1) - 0.1
        mixed = cells @ torch.randn((48, len(self.towards)), generator=generator(0, "mixed"))
        bright = torch.sigmoid(10 * (floats[..., :CORNER, :CORNER].mean((1, 2, 3)) - 0.4))
        turned = self.strength * bright[:, None] * self.towards
        return replace(inner(images), embedding=F.normalize(mixed, dim=1) + turned)


def planted(clip: Clip, strength: float = 5.0) -> Victim:
    """A CLIP with the planted backdoor towards the class TARGET; none of strength 0."""
    texts = Victim(clip).class_embeddings(CLASSES, TEMPLATES)
    return replace(Victim(clip), parts=(Planted(texts[TARGET], torch.tensor(strength)),))


def dark_images(n: int = 64, side: int = 32) -> Tensor:
    """Random coarse images that do not trip the backdoor: uint8 (n, 3, side, side)."""
    cells = torch.rand((n, 3, 4, 4), generator=generator(0, "dark images"))
    return (F.interpolate(cells, (side, side)) * 50).to(torch.uint8)
