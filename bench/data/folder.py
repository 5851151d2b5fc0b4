"""The user's own images: a tree of class folders, as torchvision's ImageFolder reads it."""

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from bench.core.dataset import Dataset, Geometry, Split, dataset
from bench.core.errors import BenchError
from bench.core.images import Labelled, hash_of
from bench.core.randomness import generator
from bench.core.settings import Field
from bench.data.decoding import VERSION, decode, file_state, native

HELD_OUT = 0.2
LAYOUT = "A data set is DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg, perhaps DIR/val/CLASS/*.jpg."


@dataclass(frozen=True)
class Branch:
    """One split on disk: the images of each class folder, as paths relative to the root; and what is no image."""

    images: dict[str, list[str]]
    others: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(folder.replace("_", " ") for folder in self.images)


@dataset("folder")
class Folder(Dataset):
    """Images in `root/train/CLASS/` and `root/test/CLASS/`; a class is called as its folder, `_` read as a space.

    Where there is no `root/val`, val is a class-stratified 20 % of train, always the same one, and train is the rest.
    """

    template: str = Field(
        "a photo of a {}.", pattern=r"^[^{}]*\{\}[^{}]*$", description="zero-shot prompt; {} is the class name"
    )

    @property
    def templates(self) -> tuple[str, ...]:
        return (self.template,)

    def classes(self) -> tuple[str, ...]:
        return self._tree()["train"].classes

    def identity(self) -> str:
        root, tree = self._root(), self._tree()
        files = [(id, *file_state(root / id)[1:]) for branch in tree.values() for id in _flat(branch.images)[0]]
        return hash_of(["folder", self.version, VERSION, self.model_dump(mode="json", exclude={"root"}), sorted(files)])

    def labelled(self, split: Split, geometry: Geometry) -> Labelled:
        """The images of a split.

        Raises:
            BenchError: `root` is no such tree, a class has no image, train and test differ in classes, or
                `decode` raises it.
        """
        root, branch = self._root(), self._tree()[split]
        ids, labels = _flat(branch.images)
        if not ids:
            raise BenchError(f"{root}/train is too small to hold {HELD_OUT:.0%} out as val. Add images, or {root}/val")
        decoded = decode([root / id for id in ids], ids, geometry)
        kept = [ids[i] for i in decoded.kept]
        labels, classes = labels[decoded.kept], branch.classes
        return Labelled(
            ids=kept,
            pixels=decoded.pixels,
            fingerprint=hash_of([decoded.fingerprint, kept, labels.tolist(), classes]),
            native=lambda i: native(root / kept[i]),
            labels=labels,
            classes=classes,
            skipped=decoded.skipped + branch.others,
        )

    def _root(self) -> Path:
        if self.root is None:
            raise BenchError(f"the data set 'folder' reads a folder of yours. Give --data-root DIR. {LAYOUT}")
        if not self.root.is_dir():
            raise BenchError(f"there is no folder {self.root}. Give --data-root DIR. {LAYOUT}")
        return self.root

    def _tree(self) -> dict[Split, Branch]:
        """All splits, with the same classes in the same order, no class empty in train and test."""
        root = self._root()
        for needed in ("train", "test"):
            if not (root / needed).is_dir():
                raise BenchError(f"there is no {needed}/ in {root}. Give --data-root DIR. {LAYOUT}")
        train, test = _branch(root, "train"), _branch(root, "test")
        _same_classes(root, train, "test", test)
        if (root / "val").is_dir():
            val = _branch(root, "val")
            _same_classes(root, train, "val", val)
        else:
            train, val = _hold_out(train)
        return {"train": train, "val": val, "test": test}


def _branch(root: Path, split: str) -> Branch:
    """Walk a split. Hidden files and folders are ignored.

    Raises:
        BenchError: a class folder without an image.
    """
    images: dict[str, list[str]] = {}
    others = []
    for entry in sorted(e for e in (root / split).iterdir() if not e.name.startswith(".")):
        if entry.is_dir():
            images[entry.name] = []
        for id in _files(root, entry) if entry.is_dir() else [entry.relative_to(root).as_posix()]:
            if PurePosixPath(id).suffix.lower() not in IMG_EXTENSIONS:
                others.append(f"{id}: not an image")
            elif entry.is_dir():
                images[entry.name].append(id)
            else:
                others.append(f"{id}: not in the folder of a class")
    empty = [name for name, ids in images.items() if not ids]
    if empty:
        raise BenchError(f"no image in {root / split}/{empty[0]} ({_count(empty)}). Add images, or remove the folder.")
    if not images:
        raise BenchError(f"no class folder in {root / split}. Give --data-root DIR. {LAYOUT}")
    return Branch(images, tuple(others))


def _files(root: Path, folder: Path) -> list[str]:
    found = []
    for where, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [(Path(where) / name).relative_to(root).as_posix() for name in names if not name.startswith(".")]
    return sorted(found)


def _same_classes(root: Path, train: Branch, split: str, other: Branch) -> None:
    missing = sorted(set(train.images) - set(other.images))
    surplus = sorted(set(other.images) - set(train.images))
    if missing or surplus:
        parts = [("only in train", missing), (f"only in {split}", surplus)]
        told = "; ".join(f"{where}: {', '.join(names)}" for where, names in parts if names)
        raise BenchError(f"the class folders of train and {split} in {root} differ. {told}. Make them the same.")


def _hold_out(train: Branch) -> tuple[Branch, Branch]:
    """Train without, and val with, a fifth of each class: at least one image, but never the last one."""
    rest, held = {}, {}
    for name, ids in train.images.items():
        k = min(len(ids) - 1, max(1, round(HELD_OUT * len(ids))))
        order = torch.randperm(len(ids), generator=generator(0, "folder", "val", name)).tolist()
        held[name] = [ids[i] for i in sorted(order[:k])]
        rest[name] = [ids[i] for i in sorted(order[k:])]
    return Branch(rest, train.others), Branch(held)


def _flat(images: dict[str, list[str]]) -> tuple[list[str], Tensor]:
    """The images of all classes in a row, and their labels (n,)."""
    labels = [label for label, ids in enumerate(images.values()) for _ in ids]
    return [id for ids in images.values() for id in ids], torch.tensor(labels, dtype=torch.long)


def _count(names: list[str]) -> str:
    return "the only such class" if len(names) == 1 else f"one of {len(names)} such classes"
