"""What of a data set is there, what is missing, and where to get it: before an hour of work rather than after it."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.core.dataset import Dataset, Split
from bench.core.errors import BenchError
from bench.data.files import FileDataset


@dataclass(frozen=True)
class SplitFound:
    """A split on disk: images, classes that have some, of how many, the fewest in one; what is listed but not there,
    what is there but no image of a class, and how many images were published, where that is known."""

    split: Split
    images: int
    filled: int
    classes: int
    fewest: int
    missing: tuple[str, ...]
    others: tuple[str, ...]
    published: int | None

    @property
    def complete(self) -> bool:
        return not self.missing and self.filled == self.classes and self.published in (None, self.images)


@dataclass(frozen=True)
class Check:
    """What was found; `problem` says why a run could not use it. Something to get is left unless `complete`."""

    splits: tuple[SplitFound, ...]
    problem: str = ""

    @property
    def complete(self) -> bool:
        return not self.problem and all(split.complete for split in self.splits)


def check(data: FileDataset) -> Check:
    """Look at every split; no image is read."""
    found = []
    try:
        for split in data.splits:
            found.append(_look(data, split))
            if found[-1].images == len(found[-1].missing):
                return Check(tuple(found), f"no image of the split '{split}' is there. {data.layout}")
    except BenchError as error:
        return Check(tuple(found), str(error))
    return Check(tuple(found))


def lines(data: Dataset) -> tuple[list[str], bool]:
    """What `bench data check` prints, and whether a run can use the data.

    Raises:
        BenchError: the data set does not lie in files.
    """
    if not isinstance(data, FileDataset):
        raise BenchError("this data set does not read a folder, so there is nothing to check. `bench list datasets`")
    done = check(data)
    told = [line for split in done.splits for line in _lines(split)]
    if done.problem:
        told.append(f"unusable: {done.problem}")
    elif done.complete:
        told.append("ready: usable, and complete")
    else:
        told.append("usable, but not complete: numbers on it are not those of the published data set")
    if not done.complete and data.source:
        told.append(f"To get it. {by_command(data)}{data.source}")
    return told, not done.problem


def by_command(data: FileDataset) -> str:
    """The command that downloads a data set, for the front of how to get it by hand; empty where none does."""
    return f"`bench data get {data.name} --data-root DIR` downloads it. By hand: " if data.archives else ""


def _look(data: FileDataset, split: Split) -> SplitFound:
    branch, folder = data.branch(split), data.folder()
    counts = [len(ids) for ids in branch.images.values()]
    ids, _ = branch.flat()
    return SplitFound(
        split=split,
        images=len(ids),
        filled=sum(n > 0 for n in counts),
        classes=len(counts),
        fewest=min(counts, default=0),
        missing=tuple(id for id in ids if not (folder / id).is_file()),
        others=branch.others,
        published=data.published.get(split),
    )


def _lines(found: SplitFound) -> list[str]:
    published = f" (published: {found.published:,})" if found.published not in (None, found.images) else ""
    told = [
        f"{found.split}: {found.images:,} images{published}, {found.filled} of {found.classes} classes, "
        f"{found.fewest} or more a class"
    ]
    told += _some("missing", [f"{id}: listed, but not there" for id in found.missing])
    return told + _some("ignored", found.others)


def _some(what: str, reasons: Sequence[str]) -> list[str]:
    if not reasons:
        return []
    more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    return [f"  {what}, {len(reasons)}: {'; '.join(reasons[:3])}{more}"]
