"""The contract of a data set: class names, prompts, and disjoint splits of labelled images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from bench.core.errors import BenchError, unknown
from bench.core.geometry import Geometry
from bench.core.images import Captioned, Labelled
from bench.core.registry import Registry
from bench.core.settings import Field, Settings

Split = Literal["train", "val", "test"]


class Dataset(Settings):
    """A zero-shot data set. Fields are settings."""

    # Raise it when a change of the code changes images or labels, so that old results are not reused.
    version: ClassVar[int] = 1
    # Whether bench draws it itself, for its embedded models; a suite may declare other variants for such a data set.
    embedded: ClassVar[bool] = False

    root: Path | None = Field(None, description="where the data set lies (--data-root)")
    prompts: Literal["single", "openai80"] = Field(
        "single", description="zero-shot prompts: one a class (the paper), or the mean of OpenAI's 80 (CleanCLIP)"
    )
    allow_overlap: bool = Field(False, description="evaluate even if test images are among training images or pairs")

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
