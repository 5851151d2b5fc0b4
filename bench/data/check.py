"""`bench data check`: which files of a data set are present, which are missing, and where to get them."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.core.dataset import Dataset, Split
from bench.core.errors import BenchError
from bench.data.files import FileDataset


@dataclass(frozen=True)
class SplitFiles:
    """A split on disk.

    `images`: how many are present or listed. `filled` of `classes` have images, `fewest` is the smallest number in a
    class. `missing`: listed files that do not exist. `others`: files that are no image of a class, with reasons.
    `published`: the official number of images, if known.
    """

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
    """The result: the splits, and the `problem` that keeps a run from using the data set, or ""."""

    splits: tuple[SplitFiles, ...]
    problem: str = ""

    @property
    def complete(self) -> bool:
        return not self.problem and all(split.complete for split in self.splits)


def check(data: FileDataset) -> Check:
    """Check every split; no image is decoded."""
    splits = []
    try:
        for split in data.splits:
            splits.append(_check_split(data, split))
            if splits[-1].images == len(splits[-1].missing):
                return Check(tuple(splits), f"there is no image of the split '{split}'. {data.layout}")
    except BenchError as error:
        return Check(tuple(splits), str(error))
    return Check(tuple(splits))


def lines(data: Dataset) -> tuple[list[str], bool]:
    """What `bench data check` prints, and whether a run can use the data.

    Raises:
        BenchError: the data set does not lie in files.
    """
    if not isinstance(data, FileDataset):
        raise BenchError("this data set does not read a folder, so there is nothing to check. `bench list datasets`")
    done = check(data)
    report = [line for split in done.splits for line in _lines(split)]
    if done.problem:
        report.append(f"unusable: {done.problem}")
    elif done.complete:
        report.append("ready: usable, and complete")
    else:
        report.append("usable, but not complete: numbers on it are not those of the published data set")
    if not done.complete and data.source:
        report.append(f"To get it. {by_command(data)}{data.source}")
    return report, not done.problem


def by_command(data: FileDataset) -> str:
    """The command that downloads a data set, for the front of how to get it by hand; empty where none does."""
    return f"`bench data get {data.name} --data-root DIR` downloads it. By hand: " if data.archives else ""


def _check_split(data: FileDataset, split: Split) -> SplitFiles:
    branch, folder = data.branch(split), data.folder()
    counts = [len(ids) for ids in branch.images.values()]
    ids, _ = branch.flat()
    return SplitFiles(
        split=split,
        images=len(ids),
        filled=sum(n > 0 for n in counts),
        classes=len(counts),
        fewest=min(counts, default=0),
        missing=tuple(id for id in ids if not (folder / id).is_file()),
        others=branch.others,
        published=data.published.get(split),
    )


def _lines(files: SplitFiles) -> list[str]:
    published = f" (published: {files.published:,})" if files.published not in (None, files.images) else ""
    report = [
        f"{files.split}: {files.images:,} images{published}, {files.filled} of {files.classes} classes, "
        f"{files.fewest} or more a class"
    ]
    report += _some("missing", [f"{id}: listed, but missing" for id in files.missing])
    return report + _some("ignored", files.others)


def _some(what: str, reasons: Sequence[str]) -> list[str]:
    if not reasons:
        return []
    more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    return [f"  {what}, {len(reasons)}: {'; '.join(reasons[:3])}{more}"]
