"""ImageNet-1K: a tree of class folders, or the flat validation folder with the official development kit."""

from functools import cache, cached_property
from pathlib import Path
from typing import ClassVar

from bench.core.dataset import Split, dataset
from bench.core.errors import BenchError
from bench.core.settings import Field
from bench.data.files import HELD_OUT, Branch, FileDataset, class_folders, hold_out

KIT = "ILSVRC2012_devkit_t12/data"
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
# Held out of train, a class: as many as the validation images that are tested on.
HELD = 50


class ImageNetLabels(FileDataset):
    """Images with ImageNet's classes, ordered by WordNet id; the class names are open_clip's."""

    size = 1000

    subset: bool = Field(False, description="score over those classes alone of which there are images to test on")

    def wordnet_branch(self, split: Split) -> Branch:
        """The images of a split, by WordNet id."""
        raise NotImplementedError(f"{type(self).__name__} must define wordnet_branch(split)")

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """The WordNet ids of the classes, in the order of the labels.

        Raises:
            BenchError: the data set has fewer classes than 1,000, and the folder others than it has.
        """
        if not self.subset and self.size == len(wordnet_ids()):
            return wordnet_ids()
        there = tuple(id for id in wordnet_ids() if self.wordnet_branch("test").images.get(id))
        if not self.subset and len(there) != self.size:
            raise BenchError(
                f"'{self.name}' has {self.size} classes, {self.root} has images of {len(there)}. "
                f"Complete it, or score over these alone: --set {self.name}.subset=true"
            )
        return there

    def classes(self) -> tuple[str, ...]:
        names = class_names()
        return tuple(names[id] for id in self.ids)

    def branch(self, split: Split) -> Branch:
        branch = self.wordnet_branch(split)
        return Branch({id: branch.images.get(id, []) for id in self.ids}, branch.others)


@dataset("imagenet")
class ImageNet(ImageNetLabels):
    """ImageNet-1K (ILSVRC2012): its validation images are `test`; `val`, 50 images a class, is held out of train."""

    layout = (
        "ImageNet is DIR/train/WNID/*.JPEG and DIR/val/WNID/*.JPEG, or DIR/val/ILSVRC2012_val_*.JPEG with "
        f"DIR/{KIT}/meta.mat and {TRUTH}."
    )
    source = (
        "An account at https://image-net.org/download-images gives ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar "
        "and ILSVRC2012_devkit_t12.tar.gz. Then, in DIR:\n"
        "  mkdir -p train val && tar -xf ILSVRC2012_img_train.tar -C train && tar -xf ILSVRC2012_img_val.tar -C val\n"
        '  for f in train/*.tar; do mkdir -p "${f%.tar}" && tar -xf "$f" -C "${f%.tar}" && rm "$f"; done\n'
        "  tar -xzf ILSVRC2012_devkit_t12.tar.gz"
    )
    published: ClassVar[dict[Split, int]] = {"test": 50_000}
    places = ("images", ".")

    def wordnet_branch(self, split: Split) -> Branch:
        return self._test if split == "test" else self._train[split]

    @cached_property
    def _test(self) -> Branch:
        folder = self._part("val")
        if any(entry.is_dir() for entry in folder.iterdir()):
            return of_wordnet(class_folders(folder.parent, "val"))
        return _flat(folder, self)

    @cached_property
    def _train(self) -> dict[Split, Branch]:
        train = of_wordnet(class_folders(self._part("train").parent, "train"))
        rest, held = hold_out(train, HELD_OUT, "imagenet", "val", most=HELD)
        return {"train": rest, "val": held}

    def _part(self, name: str) -> Path:
        folder = self.folder() / name
        if not folder.is_dir():
            raise self.lacking(f"{name}/")
        return folder


@cache
def wordnet_ids() -> tuple[str, ...]:
    """The WordNet ids of ImageNet's 1,000 classes, sorted, as its labels count."""
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_names())


def class_names() -> dict[str, str]:
    """The names of the classes that CLIP is evaluated with, by WordNet id."""
    from open_clip import IMAGENET_CLASSNAMES

    return dict(zip(wordnet_ids(), IMAGENET_CLASSNAMES, strict=True))


def of_wordnet(branch: Branch) -> Branch:
    """The class folders that are ImageNet's; images in others go to `others`."""
    known = set(wordnet_ids())
    strange = [
        f"{id}: not in a folder of ImageNet's classes"
        for k, ids in branch.images.items()
        if k not in known
        for id in ids
    ]
    return Branch({k: ids for k, ids in branch.images.items() if k in known}, (*branch.others, *strange))


def _flat(folder: Path, data: ImageNet) -> Branch:
    """The validation images as published: in one folder, numbered, their classes in the kit."""
    root, kit = folder.parent, folder.parent / KIT
    for needed in ("meta.mat", TRUTH):
        if not (kit / needed).is_file():
            raise data.lacking(f"{KIT}/{needed}, and no class folder in val/")
    ids = _kit_ids(kit / "meta.mat")
    truth = [ids[int(line)] for line in (kit / TRUTH).read_text().split()]
    images: dict[str, list[str]] = {}
    others = []
    for file in sorted(folder.iterdir()):
        id, number = file.relative_to(root).as_posix(), file.stem.removeprefix("ILSVRC2012_val_")
        if number.isdecimal() and 1 <= int(number) <= len(truth):
            images.setdefault(truth[int(number) - 1], []).append(id)
        elif not file.name.startswith("."):
            others.append(f"{id}: not ILSVRC2012_val_NUMBER.JPEG of {len(truth)} that have a label")
    return Branch(images, tuple(others))


def _kit_ids(file: Path) -> dict[int, str]:
    """WordNet id by ILSVRC2012_ID, the kit's numbers of classes, which are not the labels.

    Raises:
        BenchError: no such table in the file.
    """
    from scipy.io import loadmat

    try:
        synsets = loadmat(file, squeeze_me=True)["synsets"]
        # Inner nodes of WordNet, which come after the 1,000 classes, have children.
        return {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets if int(s["num_children"]) == 0}
    except Exception as error:  # SciPy raises a dozen kinds on a damaged file
        raise BenchError(f"{file} is not the meta.mat of ImageNet's development kit: {error}") from error
