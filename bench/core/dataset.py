"""The contract of a data set: class names, prompts, and disjoint splits of labelled images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from PIL import Image
from torch import Tensor

from bench.core.clip import Clip
from bench.core.errors import BenchError, unknown
from bench.core.images import Captioned, Labelled
from bench.core.registry import Registry
from bench.core.settings import Field, Settings

Split = Literal["train", "val", "test"]
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


class Dataset(Settings):
    """A zero-shot data set. Fields are settings."""

    # Raise it when a change of the code changes images or labels, so that old results are not reused.
    version: ClassVar[int] = 1

    root: Path | None = Field(None, description="where the data set lies (--data-root)")
    prompts: Literal["single", "openai80"] = Field(
        "single", description="zero-shot prompts: one a class (the paper), or the mean of OpenAI's 80 (CleanCLIP)"
    )
    allow_overlap: bool = Field(False, description="evaluate even if test images are among training images or pairs")

    @property
    def single(self) -> str:
        """The one prompt of `prompts: single`."""
        return "a photo of a {}."

    @property
    def templates(self) -> tuple[str, ...]:
        """The zero-shot prompt(s) of a class."""
        return (self.single,) if self.prompts == "single" else openai_templates()

    @property
    def images_per_class(self) -> int | None:
        """Training images per class, if the settings determine it; None if only the images can tell."""
        return None

    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels; cheap, no image is read."""
        raise NotImplementedError(f"{type(self).__name__} must define classes()")

    def determining(self) -> dict[str, Any]:
        """The settings that determine images and labels: all but `root` and `allow_overlap`."""
        return self.model_dump(mode="json", exclude={"root", "allow_overlap"})

    def identity(self) -> str:
        """A hash of what determines images and labels of all splits; cheap, no image is read."""
        raise NotImplementedError(f"{type(self).__name__} must define identity()")

    def labelled(self, split: Split, geometry: Geometry) -> Labelled:
        """The images of a split."""
        raise NotImplementedError(f"{type(self).__name__} must define labelled(split, geometry)")

    def captions(self, split: Split, geometry: Geometry) -> list[str]:
        """A caption for each image of `labelled(split, geometry)`.

        Raises:
            BenchError: the data set has none.
        """
        raise BenchError("the images of this data set have no captions. Take one that has them, such as world")

    def caption_templates(self) -> tuple[str, ...]:
        """Proxy captions of poisoned pairs: the 80 templates of OpenAI, as in CleanCLIP's code."""
        return openai_templates()

    def pairs(self, purpose: Literal["poison", "clean"], n: int, geometry: Geometry) -> Captioned:
        """n image-text pairs that belong to the data set, if it has any.

        Raises:
            BenchError: it has none.
        """
        raise BenchError("this data set has no image-text pairs of its own. Give --pairs FILE.csv")


datasets: Registry[type[Dataset]] = Registry("dataset", Dataset)
DatasetClass = TypeVar("DatasetClass", bound=type[Dataset])


def dataset(name: str) -> Callable[[DatasetClass], DatasetClass]:
    """Register a subclass of `Dataset` as a data set."""
    return datasets.register(name)


def openai_templates() -> tuple[str, ...]:
    """OpenAI's 80 prompts for ImageNet."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


def target_index(name: str, classes: tuple[str, ...]) -> int:
    """The index of the target class, found by its exact name in any case.

    Raises:
        BenchError: there is no such class, or it is the only one.
    """
    if len(classes) < 2:
        raise BenchError(f"a data set of one class, {', '.join(classes)}, cannot be attacked: add images of others")
    lowered = [c.lower() for c in classes]
    if name.lower() not in lowered:
        raise unknown("target class", name, classes, "Give --target NAME.")
    return lowered.index(name.lower())
