"""Data sets of image files: a split is a list of paths, and training images are decoded only when they are chosen."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from bench.core.dataset import Dataset, Geometry, Split
from bench.core.errors import BenchError
from bench.core.images import Labelled, hash_of
from bench.core.randomness import generator
from bench.data.decoding import VERSION, Decoder, decode, native
from bench.data.download import Archive
from bench.data.on_disk import files_below, is_image

HELD_OUT = 0.2


@dataclass(frozen=True)
class Branch:
    """The files of one split: paths relative to the root, by class, in the order of the labels.

    The data set chooses the keys of classes, such as folder names. `others` are files that are no image of a class,
    with reasons.
    """

    images: dict[str, list[str]]
    others: tuple[str, ...] = ()

    def flat(self) -> tuple[list[str], Tensor]:
        """The images of all classes, and their labels (n,)."""
        labels = [label for label, ids in enumerate(self.images.values()) for _ in ids]
        return [id for ids in self.images.values() for id in ids], torch.tensor(labels, dtype=torch.long)


class FileDataset(Dataset):
    """A data set of files below `root`, or below the first existing one of the folders `places` in it."""

    # The required contents of the folder, where to get them, and their number of classes and images.
    layout: ClassVar[str]
    source: ClassVar[str] = ""
    # What `bench data get` downloads; empty where the publisher hands the data to registered users alone.
    archives: ClassVar[tuple[Archive, ...]] = ()
    size: ClassVar[int | None] = None
    published: ClassVar[dict[Split, int]] = {}
    splits: ClassVar[tuple[Split, ...]] = ("train", "val", "test")
    # Subfolders of `root` that may hold the data, named as in releases and common instructions.
    places: ClassVar[tuple[str, ...]] = (".",)

    def branch(self, split: Split) -> Branch:
        """The images of a split, all classes in the order of `classes()`; none is read.

        Raises:
            BenchError: the folder is not as `layout` says.
        """
        raise NotImplementedError(f"{type(self).__name__} must define branch(split)")

    def folder(self) -> Path:
        """Where the files lie.

        Raises:
            BenchError: there is no such folder.
        """
        if self.root is None:
            raise BenchError(
                f"the data set '{self.name}' reads a folder of yours. Give --data-root DIR. Beside another data set, "
                f"that is --set {self.name}.root=DIR. {self.layout}{self._getting}"
            )
        if not self.root.is_dir():
            raise BenchError(f"there is no folder {self.root}. Give --data-root DIR. {self.layout}{self._getting}")
        return next((self.root / place for place in self.places if (self.root / place).is_dir()), self.root)

    @property
    def _getting(self) -> str:
        """The command that gets the data, or tells how to; empty for data of the user's own."""
        get = f" `bench data get {self.name} --data-root DIR` downloads it, or says whom to ask."
        return get if self.source else ""

    def lacking(self, what: str) -> BenchError:
        """The error for something that is not where it should be."""
        check = f"`bench data check {self.name} --data-root {self.root}` says where to get it."
        return BenchError(f"there is no {what} in {self.root}. {self.layout} {check}")

    def identity(self) -> str:
        """A hash of settings, classes, and the names of all images; of the test images' sizes too."""
        folder, files = self.folder(), {}
        for split in self.splits:
            ids, labels = self.branch(split).flat()
            sizes = [_bytes(folder / id) for id in ids] if split == "test" else []
            files[split] = [ids, labels.tolist(), sizes]
        return hash_of([self.name, self.version, VERSION, self.determining(), self.classes(), files])

    def labelled(self, split: Split, geometry: Geometry) -> Labelled:
        """The images of a split; those of train are decoded when a subset of them is taken.

        Raises:
            BenchError: the folder is not as `layout` says, the split is empty, or `decode` raises it.
        """
        folder, branch = self.folder(), self.branch(split)
        ids, labels = branch.flat()
        if not ids:
            raise BenchError(self.empty(split))
        if split == "train":
            return LabelledFiles(
                ids=ids,
                pixels=Decoder(_Paths(folder, ids), geometry),
                fingerprint=hash_of([VERSION, geometry.key, ids, labels.tolist(), self.classes()]),
                native=lambda i: native(folder / ids[i]),
                labels=labels,
                classes=self.classes(),
                skipped=branch.others,
                folder=folder,
                geometry=geometry,
            )
        return read_labelled(folder, ids, labels, self.classes(), geometry, branch.others)

    def empty(self, split: Split) -> str:
        """What to say where a split has no image."""
        return f"the split '{split}' of '{self.name}' in {self.root} has no image. {self.layout}"


@dataclass(frozen=True)
class LabelledFiles(Labelled):
    """Labelled images of which so far the names are known: nobody needs all of ImageNet's training images decoded.

    `subset` decodes the images that it takes. Those that cannot be decoded are left out and named in `skipped`.
    """

    folder: Path = field(kw_only=True)
    geometry: Geometry = field(kw_only=True)

    def decoded(self) -> Labelled:
        return self.subset(torch.arange(len(self)))

    def subset(self, index: Tensor) -> Labelled:  # type: ignore[override]
        ids = [self.ids[i] for i in index.tolist()]
        return read_labelled(self.folder, ids, self.labels[index], self.classes, self.geometry)


def read_labelled(
    folder: Path,
    ids: Sequence[str],
    labels: Tensor,
    classes: tuple[str, ...],
    geometry: Geometry,
    others: tuple[str, ...] = (),
) -> Labelled:
    """Decode labelled files, paths relative to `folder`; `others` are skipped for other reasons.

    Raises:
        BenchError: `decode` raises it.
    """
    decoded = decode([folder / id for id in ids], ids, geometry)
    assert decoded.pixels is not None
    kept, labels = [ids[i] for i in decoded.kept], labels[decoded.kept]
    return Labelled(
        ids=kept,
        pixels=decoded.pixels,
        fingerprint=hash_of([decoded.fingerprint, kept, labels.tolist(), classes]),
        native=lambda i: native(folder / kept[i]),
        labels=labels,
        classes=classes,
        skipped=decoded.skipped + others,
    )


def class_folders(root: Path, where: str) -> Branch:
    """The images below `root/where`, by the class folder that they lie in. Hidden files and folders are ignored."""
    images: dict[str, list[str]] = {}
    others = []
    for entry in sorted(e for e in (root / where).iterdir() if not e.name.startswith(".")):
        if entry.is_dir():
            images[entry.name] = []
        name = entry.relative_to(root).as_posix()
        # By whole paths: the order of a data set's images is part of its identity.
        for id in sorted(f"{name}/{file}" for file in files_below(entry)) if entry.is_dir() else [name]:
            if not is_image(id):
                others.append(f"{id}: not an image")
            elif entry.is_dir():
                images[entry.name].append(id)
            else:
                others.append(f"{id}: not in the folder of a class")
    return Branch(images, tuple(others))


def hold_out(branch: Branch, share: float, *purpose: str, most: int | None = None) -> tuple[Branch, Branch]:
    """A branch without, and one with, a share of each class: one image at least, `most` at most, never the last one.

    Which ones, the purpose alone decides.
    """
    rest, held = {}, {}
    for name, ids in branch.images.items():
        k = max(0, min(len(ids) - 1, max(1, round(share * len(ids))), len(ids) if most is None else most))
        order = torch.randperm(len(ids), generator=generator(0, *purpose, name)).tolist()
        held[name] = [ids[i] for i in sorted(order[:k])]
        rest[name] = [ids[i] for i in sorted(order[k:])]
    return Branch(rest, branch.others), Branch(held)


class _Paths(Sequence):
    """Paths, made when they are asked for."""

    def __init__(self, folder: Path, ids: Sequence[str]) -> None:
        self.folder, self.ids = folder, ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i):
        return self.folder / self.ids[i]


def _bytes(file: Path) -> int:
    """The size of a file; -1 where there is none."""
    try:
        return file.stat().st_size
    except OSError:
        return -1
