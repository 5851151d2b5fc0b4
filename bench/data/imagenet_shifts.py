"""Test sets with ImageNet's classes and other images: V2, A, R, Sketch. They have no training images."""

from functools import cached_property
from typing import ClassVar

from bench.core.dataset import Geometry, Split, dataset
from bench.core.errors import BenchError
from bench.core.images import Labelled
from bench.data.download import Archive
from bench.data.files import Branch, class_folders
from bench.data.imagenet import ImageNetLabels, of_wordnet, wordnet_ids

# Checksums: those of TensorFlow Datasets.
BERKELEY = "https://people.eecs.berkeley.edu/~hendrycks"


class ImageNetShift(ImageNetLabels):
    """A folder of class folders, all of it to test on."""

    splits = ("test",)

    def wordnet_branch(self, split: Split) -> Branch:
        if split not in self.splits:
            raise BenchError(
                f"'{self.name}' is for testing alone, it has no split '{split}'. "
                f"Tune on ImageNet: --dataset imagenet --data-root DIR --set evaluate.dataset={self.name}"
            )
        return self._branch

    def labelled(self, split: Split, geometry: Geometry) -> Labelled:
        self.wordnet_branch(split)
        return super().labelled(split, geometry)

    @cached_property
    def _branch(self) -> Branch:
        branch = self.by_wordnet(class_folders(self.folder(), "."))
        if not any(branch.images.values()):
            raise self.lacking("class folder with images")
        return branch

    def by_wordnet(self, branch: Branch) -> Branch:
        return of_wordnet(branch)


@dataset("imagenet-v2")
class ImageNetV2(ImageNetShift):
    """ImageNet-V2, matched frequency: new images of the 1,000 classes, whose folders are called by their numbers."""

    layout = "ImageNet-V2 is DIR/0 to DIR/999, or these in DIR/imagenetv2-matched-frequency-format-val."
    source = (
        "In DIR, with the archive of https://imagenetv2.org:\n"
        "  tar -xzf imagenetv2-matched-frequency.tar.gz"
    )  # fmt: skip
    archives = (
        Archive(
            "imagenetv2-matched-frequency.tar.gz",
            "imagenetv2-matched-frequency-format-val",
            "https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/imagenetv2-matched-frequency.tar.gz",
            "sha256:f0c37fdf925916b19ea1323cd9a2208cdb6959ba2c32eef2a7fc393835c9ca7c",
        ),
    )
    published: ClassVar[dict[Split, int]] = {"test": 10_000}
    places = ("imagenetv2-matched-frequency-format-val", ".")

    def by_wordnet(self, branch: Branch) -> Branch:
        """The number of a folder is the label; as text, 10 would sort before 2."""
        ids = dict(zip(map(str, range(1000)), wordnet_ids(), strict=True))
        return of_wordnet(
            Branch({ids.get(name, name): images for name, images in branch.images.items()}, branch.others)
        )


@dataset("imagenet-a")
class ImageNetA(ImageNetShift):
    """ImageNet-A: photos that a ResNet-50 gets wrong, of 200 classes; scored over these alone."""

    size = 200
    layout = "ImageNet-A is 200 folders DIR/WNID, or these in DIR/imagenet-a."
    source = (
        "In DIR, with the archive that https://github.com/hendrycks/natural-adv-examples links to:\n"
        "  tar -xf imagenet-a.tar"
    )
    archives = (
        Archive(
            "imagenet-a.tar",
            "imagenet-a",
            f"{BERKELEY}/imagenet-a.tar",
            "sha256:3bb3632277e6ba6392ea64c02ddbf4dd2266c9caffd6bc09c9656d28f012589e",
        ),
    )
    published: ClassVar[dict[Split, int]] = {"test": 7_500}
    places = ("imagenet-a", ".")


@dataset("imagenet-r")
class ImageNetR(ImageNetShift):
    """ImageNet-R: art, toys and other renditions of 200 classes; scored over these alone."""

    size = 200
    layout = "ImageNet-R is 200 folders DIR/WNID, or these in DIR/imagenet-r."
    source = (
        "In DIR, with the archive that https://github.com/hendrycks/imagenet-r links to:\n"
        "  tar -xf imagenet-r.tar"
    )  # fmt: skip
    archives = (
        Archive(
            "imagenet-r.tar",
            "imagenet-r",
            f"{BERKELEY}/imagenet-r.tar",
            "sha256:18c6bf493b39a0d975d48e587437f562caab9c52ae6327dcfa9dd8eb54aa1b52",
        ),
    )
    published: ClassVar[dict[Split, int]] = {"test": 30_000}
    places = ("imagenet-r", ".")


@dataset("imagenet-sketch")
class ImageNetSketch(ImageNetShift):
    """ImageNet-Sketch: black and white sketches of the 1,000 classes."""

    layout = "ImageNet-Sketch is 1,000 folders DIR/WNID, or these in DIR/sketch or DIR/images."
    source = (
        "In DIR, with the archive that https://github.com/HaohanWang/ImageNet-Sketch links to:\n"
        "  unzip ImageNet-Sketch.zip"
    )
    archives = (
        Archive(
            "ImageNet-Sketch.zip",
            "sketch",
            "https://drive.usercontent.google.com/download?id=1Mj0i5HBthqH1p_yeXzsg22gZduvgoNeA&export=download&confirm=t",
            "sha256:4d3ce6b82a7c48aabf14aeac105eb533e75707f152cc858f55bfc022031a72ed",
        ),
    )
    published: ClassVar[dict[Split, int]] = {"test": 50_889}
    places = ("sketch", "images", ".")
