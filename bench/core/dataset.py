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
    """How images are brought to the model's input, `size` x `size` px, and where to keep them.

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
        # open_clip reads `random`, a way to train, as bicubic when it evaluates.
        return cls(clip.image_size, cache, resize, "bilinear" if interpolation == "bilinear" else "bicubic")

    def square(self, image: Picture) -> Picture:
        """A PIL image, or uint8 (3, h, w), of any size at the model's input size; resized with antialiasing."""
        # Here, as it takes longer to import than torch.
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
        """What determines the pixels, for hashes: the size alone where the rest is CLIP's own."""
        usual = (self.resize, self.interpolation) == (Geometry.resize, Geometry.interpolation)
        return self.size if usual else [self.size, self.resize, self.interpolation]


class Dataset(Settings):
    """A zero-shot data set. Fields are settings."""

    # Raise it when a change of the code changes images or labels: results on the old ones are not reused.
    version: ClassVar[int] = 1
    # Whether bench draws it itself, for its embedded models; a suite may declare other variants for such a data set.
    embedded: ClassVar[bool] = False

    root: Path | None = Field(None, description="where the data set lies (--data-root)")
    prompts: Literal["single", "openai80"] = Field(
        "single", description="zero-shot prompts: one a class (the paper), or the mean of OpenAI's 80 (CleanCLIP)"
    )
    allow_overlap: bool = Field(False, description="evaluate although training images or pairs are in the split too")

    @property
    def name(self) -> str:
        """What the data set is registered as."""
        return next((name for name in datasets if datasets[name] is type(self)), type(self).__name__)

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
        """Training images of every class, where the settings tell; None where the images have to be looked at."""
        return None

    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels; cheap, no image is read."""
        raise NotImplementedError(f"{type(self).__name__} must define classes()")

    def determining(self) -> dict[str, Any]:
        """The settings that `identity` speaks of: not where the data lies, nor what may overlap."""
        return self.model_dump(mode="json", exclude={"root", "allow_overlap"})

    def identity(self) -> str:
        """A hash of what determines images and labels of all splits; cheap, no image is read."""
        raise NotImplementedError(f"{type(self).__name__} must define identity()")

    def labelled(self, split: Split, geometry: Geometry) -> Labelled:
        """The images of a split."""
        raise NotImplementedError(f"{type(self).__name__} must define labelled(split, geometry)")

    def captions(self, split: Split, geometry: Geometry) -> list[str]:
        """A caption of each image of `labelled(split, geometry)`, where the data set has any."""
        raise BenchError("the images of this data set have no captions. Take one that has them, such as world")

    def caption_templates(self) -> tuple[str, ...]:
        """Proxy captions of poisoned pairs: the 80 templates of OpenAI, as in CleanCLIP's code."""
        return openai_templates()

    def pairs(self, purpose: Literal["poison", "clean"], n: int, geometry: Geometry) -> Captioned:
        """n image-text pairs of the data set's own, where it has any."""
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
    """The target class by its exact name, in any case; never by a number.

    Raises:
        BenchError: there is no such class, or no other, whose images an attack would turn.
    """
    if len(classes) < 2:
        raise BenchError(f"a data set of one class, {', '.join(classes)}, cannot be attacked: add images of others")
    lowered = [c.lower() for c in classes]
    if name.lower() not in lowered:
        raise unknown("target class", name, classes, "Give --target NAME.")
    return lowered.index(name.lower())
