"""The user's own images: a folder per class, as in torchvision's ImageFolder."""

from pathlib import Path

from bench.core.dataset import Split, dataset
from bench.core.errors import BenchError
from bench.core.images import hash_of
from bench.core.settings import Field
from bench.data.decoding import VERSION, file_state
from bench.data.files import HELD_OUT, Branch, FileDataset, class_folders, hold_out

LAYOUT = "A data set is DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg, perhaps DIR/val/CLASS/*.jpg."


@dataset("folder")
class Folder(FileDataset):
    """Images in `root/train/CLASS/` and `root/test/CLASS/`; the class name is the folder's, with spaces for `_`.

    If there is no `root/val`, a fixed, class-stratified 20 % of train is val, and train is the rest.
    """

    layout = LAYOUT

    template: str = Field(
        "a photo of a {}.", pattern=r"^[^{}]*\{\}[^{}]*$", description="zero-shot prompt; {} is the class name"
    )

    @property
    def single(self) -> str:
        return self.template

    def classes(self) -> tuple[str, ...]:
        return tuple(folder.replace("_", " ") for folder in self.branch("train").images)

    def identity(self) -> str:
        root, tree = self.folder(), self._tree()
        files = [(id, *file_state(root / id)[1:]) for branch in tree.values() for id in branch.flat()[0]]
        return hash_of(["folder", self.version, VERSION, self.determining(), sorted(files)])

    def branch(self, split: Split) -> Branch:
        return self._tree()[split]

    def empty(self, split: Split) -> str:
        return f"{self.root}/train is too small to hold {HELD_OUT:.0%} out as val. Add images, or {self.root}/val"

    def _tree(self) -> dict[Split, Branch]:
        """All splits, with the same classes in the same order, no class empty in train and test."""
        root = self.folder()
        for needed in ("train", "test"):
            if not (root / needed).is_dir():
                raise BenchError(f"there is no {needed}/ in {root}. Give --data-root DIR. {LAYOUT}")
        train, test = _branch(root, "train"), _branch(root, "test")
        _same_classes(root, train, "test", test)
        if (root / "val").is_dir():
            val = _branch(root, "val")
            _same_classes(root, train, "val", val)
        else:
            train, val = hold_out(train, HELD_OUT, "folder", "val")
        return {"train": train, "val": val, "test": test}


def _branch(root: Path, split: str) -> Branch:
    """A split's class folders.

    Raises:
        BenchError: there is none, or one without an image.
    """
    branch = class_folders(root, split)
    empty = [name for name, ids in branch.images.items() if not ids]
    if empty:
        raise BenchError(f"no image in {root / split}/{empty[0]} ({_count(empty)}). Add images, or remove the folder.")
    if not branch.images:
        raise BenchError(f"no class folder in {root / split}. Give --data-root DIR. {LAYOUT}")
    return branch


def _same_classes(root: Path, train: Branch, split: str, other: Branch) -> None:
    missing = sorted(set(train.images) - set(other.images))
    surplus = sorted(set(other.images) - set(train.images))
    if missing or surplus:
        parts = [("only in train", missing), (f"only in {split}", surplus)]
        differences = "; ".join(f"{where}: {', '.join(names)}" for where, names in parts if names)
        raise BenchError(f"the class folders of train and {split} in {root} differ. {differences}. Make them the same.")


def _count(names: list[str]) -> str:
    return "the only such class" if len(names) == 1 else f"one of {len(names)} such classes"
