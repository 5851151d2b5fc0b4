"""The contract of a data set: class names, prompts, and disjoint splits of labelled images."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from bench.core.errors import BenchError, unknown
from bench.core.images import Captioned, Labelled
from bench.core.registry import Registry
from bench.core.settings import Field, Settings

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Geometry:
    """How images are brought to the model's input: short side to `size` px, centre crop; and where to keep them."""

    size: int
    cache: Path


class Dataset(Settings):
    """A zero-shot data set. Fields are settings."""

    # Raise it when a change of the code changes images or labels: results on the old ones are not reused.
    version: ClassVar[int] = 1

    root: Path | None = Field(None, description="where the data set lies (--data-root)")

    @property
    def templates(self) -> tuple[str, ...]:
        """The zero-shot prompt(s) of a class."""
        return ("a photo of a {}.",)

    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels; cheap, no image is read."""
        raise NotImplementedError(f"{type(self).__name__} must define classes()")

    def identity(self) -> str:
        """A hash of what determines images and labels of all splits; cheap, no image is read."""
        raise NotImplementedError(f"{type(self).__name__} must define identity()")

    def labelled(self, split: Split, geometry: Geometry) -> Labelled:
        """The images of a split."""
        raise NotImplementedError(f"{type(self).__name__} must define labelled(split, geometry)")

    def caption_templates(self) -> tuple[str, ...]:
        """Proxy captions of poisoned pairs: the 80 templates of OpenAI, as in CleanCLIP's code."""
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)

    def pairs(self, purpose: Literal["poison", "clean"], n: int, geometry: Geometry) -> Captioned:
        """n image-text pairs of the data set's own, where it has any."""
        raise BenchError("this data set has no image-text pairs of its own. Give --pairs FILE.csv")


datasets: Registry[type[Dataset]] = Registry("dataset", Dataset)
dataset = datasets.register


def target_index(name: str, classes: tuple[str, ...]) -> int:
    """The target class by its exact name, in any case; never by a number."""
    lowered = [c.lower() for c in classes]
    if name.lower() not in lowered:
        raise unknown("target class", name, classes, "Give --target NAME.")
    return lowered.index(name.lower())
