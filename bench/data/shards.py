"""webdataset's shards: tar archives in which files of one stem are one sample. They are read where they lie."""

import itertools
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from bench.core.errors import BenchError
from bench.data.member import Member
from bench.data.pair_rows import Row

SUFFIX = ".tar"
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def shards_at(place: Path) -> list[Path]:
    """The archives which a path names: one, those in a folder, or a range as in `cc3m/{00000..00331}.tar`.

    >>> [shard.name for shard in shards_at(Path("cc3m/{008..010}.tar"))]
    ['008.tar', '009.tar', '010.tar']
    """
    if found := _RANGE.search(place.name):
        first, last = found[1], found[2]
        numbers = (str(k).zfill(len(first)) for k in range(int(first), int(last) + 1))
        return [place.with_name(_RANGE.sub(number, place.name, count=1)) for number in numbers]
    if place.is_dir():
        return sorted(place.glob(f"*{SUFFIX}"))
    return [place] if place.suffix == SUFFIX else []


def rows_of_shards(shards: list[Path]) -> Iterator[Row]:
    """The samples of shards, in order: an image, and a caption in `.txt` or under "caption" in `.json`.

    A shard that breaks off gives the samples before, and a row that says so.

    Raises:
        BenchError: a shard is missing, or no plain tar archive.
    """
    numbers = itertools.count()
    for shard in shards:
        if not shard.is_file():
            raise BenchError(f"there is no shard {shard}. Give --pairs the shards that are there, or their folder")
        for stem, members in itertools.groupby(_members(shard), lambda member: member[0]):
            yield _sample(next(numbers), f"{shard.name}/{stem}", {suffix: file for _, suffix, file in members})


def _members(shard: Path) -> Iterator[tuple[str, str, Member | str]]:
    """Stem, suffix and place of each file; of a broken end, why it is broken instead of the place."""
    time = shard.stat().st_mtime_ns
    stem, count = "", 0
    try:
        with tarfile.open(shard, "r:") as archive:
            for entry in archive:
                if not entry.isfile():
                    continue
                count += 1
                folder, _, name = entry.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                stem = f"{folder}/{stem}" if folder else stem
                if entry.offset_data + entry.size > shard.stat().st_size:
                    yield stem, suffix.lower(), "the shard breaks off here"
                    return
                yield stem, suffix.lower(), Member(shard, entry.offset_data, entry.size, time)
    except tarfile.ReadError as error:
        if not count:
            raise BenchError(
                f"{shard} is no plain tar archive ({error}). Unpack compressed shards (gunzip), or fetch it again"
            ) from error
        yield f"after {stem}", "", f"the shard is damaged: {error}"


def _sample(number: int, name: str, files: dict[str, Member | str]) -> Row:
    broken = next((file for file in files.values() if isinstance(file, str)), "")
    if broken:
        return Row(number, name, "", "", broken)
    image = next((file for suffix, file in files.items() if f".{suffix}" in IMG_EXTENSIONS), None)
    if not isinstance(image, Member):
        return Row(number, name, "", "", "no image")
    try:
        caption = _caption(files)
    except ValueError:
        return Row(number, name, name, "", "its caption cannot be read", image)
    return Row(number, name, name, caption, "" if caption else "no caption", image)


def _caption(files: dict[str, Member | str]) -> str:
    text, facts = files.get("txt"), files.get("json")
    if isinstance(text, Member):
        return " ".join(text.read_bytes().decode().split())
    if isinstance(facts, Member):
        found = json.loads(facts.read_bytes())
        return " ".join(str(found.get("caption") or "").split()) if isinstance(found, dict) else ""
    return ""
