"""Caltech101 with the 100 classes and the split of the few-shot literature (CoOp)."""

import json
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from bench.core.dataset import Split, dataset
from bench.core.errors import BenchError
from bench.core.settings import Field
from bench.data.download import Archive
from bench.data.files import Branch, FileDataset, class_folders, hold_out

IMAGES = "101_ObjectCategories"
SPLIT = "split_zhou_Caltech101.json"
# Google Drive's direct address of the file that CoOp's DATASETS.md links.
SPLIT_ADDRESS = "https://drive.usercontent.google.com/download?id=1hyarUivQE36mY6jSomru6Fjd-JzwcCzN&export=download"
# Folders that the 100 classes leave out, and those whose class is called otherwise.
LEFT_OUT = ("BACKGROUND_Google", "Faces_easy")
NAMES = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}


@dataset("caltech101")
class Caltech101(FileDataset):
    """Caltech101, 100 classes, split as CoOp published it: 4,128 images to train on, 1,649 to validate, 2,465 to test.

    Without CoOp's file, `split: seeded` draws 50 : 20 : 30 % of each class. Numbers on it are comparable among
    themselves, not with published ones.
    """

    layout = f"Caltech101 is DIR/{IMAGES}/CLASS/*.jpg, and {SPLIT} beside {IMAGES}; perhaps all in DIR/caltech-101."
    source = (
        "In DIR, with caltech-101.zip of https://data.caltech.edu/records/mzrjq-6wc02:\n"
        f"  unzip caltech-101.zip && tar -xzf caltech-101/{IMAGES}.tar.gz -C caltech-101\n"
        f"{SPLIT} is linked in DATASETS.md of https://github.com/KaiyangZhou/CoOp, under Caltech101; put it into "
        "DIR/caltech-101."
    )
    # The checksum is torchvision's; the split has none.
    archives = (
        Archive(
            "caltech-101.zip",
            f"caltech-101/{IMAGES}",
            "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
            "md5:3138e1922a9193bfa496528edbbc45d0",
            inside=(Archive(f"caltech-101/{IMAGES}.tar.gz", f"caltech-101/{IMAGES}"),),
        ),
        Archive(f"caltech-101/{SPLIT}", f"caltech-101/{SPLIT}", SPLIT_ADDRESS),
    )
    size = 100
    published: ClassVar[dict[Split, int]] = {"train": 4_128, "val": 1_649, "test": 2_465}
    places = ("caltech-101", ".")

    split: Literal["published", "seeded"] = Field(
        "published", description="CoOp's own file, or a draw of ours that no published number is from"
    )

    def classes(self) -> tuple[str, ...]:
        return tuple(name.replace("_", " ") for name in self._tree["test"].images)

    def branch(self, split: Split) -> Branch:
        return self._tree[split]

    @cached_property
    def _tree(self) -> dict[Split, Branch]:
        folder = self.folder()
        if not (folder / IMAGES).is_dir():
            raise self.lacking(f"{IMAGES}/")
        if self.split == "seeded":
            return _draw(folder)
        if not (folder / SPLIT).is_file():
            raise BenchError(f"{self.lacking(SPLIT)} A split of our own is --set {self.name}.split=seeded")
        return _read(folder / SPLIT)


def _read(file: Path) -> dict[Split, Branch]:
    """CoOp's split: for each part, lists of path, label and class name.

    Raises:
        BenchError: the file is of another form, or its labels are not 0 to n - 1 with a name each.
    """
    try:
        parts = json.loads(file.read_text())
        names = {int(label): name for split in ("train", "val", "test") for _, label, name in parts[split]}
        if sorted(names) != list(range(len(names))) or len(set(names.values())) != len(names):
            raise ValueError("its labels do not count its classes")
        tree: dict[Split, Branch] = {}
        for split in ("train", "val", "test"):
            images: dict[str, list[str]] = {names[label]: [] for label in sorted(names)}
            for path, label, _ in parts[split]:
                images[names[int(label)]].append(f"{IMAGES}/{path}")
            tree[split] = Branch(images)
        return tree
    except (KeyError, ValueError, TypeError) as error:
        raise BenchError(f"{file} is not CoOp's split of Caltech101: {error!r}. Get it anew.") from error


def _draw(folder: Path) -> dict[Split, Branch]:
    branch = class_folders(folder, IMAGES)
    kept = {NAMES.get(name, name): ids for name, ids in branch.images.items() if name not in LEFT_OUT}
    most, test = hold_out(Branch(kept, branch.others), 0.3, "caltech101", "test")
    train, val = hold_out(most, 2 / 7, "caltech101", "val")
    return {"train": train, "val": val, "test": test}
