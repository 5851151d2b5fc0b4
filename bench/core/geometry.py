"""How images are brought to a model's input size."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from PIL import Image
from torch import Tensor

from bench.core.clip import Clip

Resize = Literal["shortest", "longest", "squash"]
Picture = TypeVar("Picture", Image.Image, Tensor)


@dataclass(frozen=True)
class Geometry:
    """How images are resized to the model's input, `size` x `size` px, and the `cache` folder for resized images.

    `resize` and `interpolation` (bicubic or bilinear) are open_clip's. "shortest" is CLIP's own: the short side to
    `size`, then a centre crop; "longest": the long side to `size`, then black edges; "squash": both sides to `size`.
    """

    size: int
    cache: Path
    resize: Resize = "shortest"
    interpolation: str = "bicubic"

    @classmethod
    def of(cls, clip: Clip, cache: Path) -> "Geometry":
        """The geometry that a model's preprocessing asks for."""
        preprocess = clip.config["preprocess_cfg"]
        resize, interpolation = preprocess.get("resize_mode", cls.resize), preprocess.get("interpolation")
        # `random` is an interpolation for training; open_clip evaluates such a model with bicubic.
        return cls(clip.image_size, cache, resize, "bilinear" if interpolation == "bilinear" else "bicubic")

    def square(self, image: Picture) -> Picture:
        """Resize and crop a PIL image, or uint8 (3, h, w), to the model's input size, with antialiasing."""
        # Imported here: it takes longer to import than torch.
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2 import functional as TF

        square = [self.size, self.size]
        shape = {"shortest": [self.size], "squash": square}.get(self.resize)
        if shape is None:
            sides = TF.get_size(image)
            shape = [round(side / (max(sides) / self.size)) for side in sides]
        # Where a side is too short, the crop adds black edges.
        return TF.center_crop(TF.resize(image, shape, InterpolationMode(self.interpolation), antialias=True), square)

    @property
    def key(self) -> int | list[int | str]:
        """What determines the pixels, for hashes: only the size if resizing and interpolation are CLIP's own."""
        usual = (self.resize, self.interpolation) == (Geometry.resize, Geometry.interpolation)
        return self.size if usual else [self.size, self.resize, self.interpolation]
