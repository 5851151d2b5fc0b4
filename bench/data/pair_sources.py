"""Sources of image-text pairs: a table, a folder of images with caption files, or webdataset shards."""

import csv
import itertools
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.core.errors import BenchError
from bench.data.on_disk import IMG_EXTENSIONS, File, Member, files_below, is_image

# The first is CleanCLIP's and BadCLIP's, `file` and `filepath` are common for CC3M.
IMAGE_COLUMNS = ("image", "filepath", "path", "image_path", "file", "filename")
CAPTION_COLUMNS = ("caption", "title", "text")
CAPTION_SUFFIX = ".txt"


@dataclass(frozen=True, slots=True)
class Row:
    """A pair of a source; `problem` says why it cannot be used.

    `name` is for messages. `image` names the image for good; it is read from `file`, or where there is none, from the
    path `image` relative to the source's folder.
    """

    number: int
    name: str
    image: str
    caption: str
    problem: str = ""
    file: File | None = None


def rows_of_table(table: Path) -> Iterator[Row]:
    """The rows of a CSV or TSV file.

    Two columns without a header are CC3M's: caption first; or CleanCLIP's, if the image comes first.

    Raises:
        BenchError: no such file, no such columns, or it is not a table in UTF-8.
    """
    try:
        # The mark that spreadsheets put in front of UTF-8 is no part of the first column's name.
        with table.open(encoding="utf-8-sig", newline="") as lines:
            first = lines.readline()
            lines.seek(0)
            yield from _rows(csv.reader(lines, delimiter="\t" if "\t" in first else ","), table)
    except UnicodeDecodeError as error:
        raise BenchError(f"{table} is not UTF-8 ({error.reason}). Convert it: iconv -t UTF-8 {table}") from error
    except csv.Error as error:
        raise BenchError(f"{table} is not a CSV file: {error}. Look for a quote that is not closed.") from error


def rows_of_folder(folder: Path) -> Iterator[Row]:
    """The images below a folder; the caption of `a/b.jpg` is the text of `a/b.txt`. Hidden files are ignored."""
    for number, id in enumerate(filter(is_image, files_below(folder))):
        try:
            caption = " ".join((folder / id).with_suffix(CAPTION_SUFFIX).read_text(encoding="utf-8").split())
            problem = "" if caption else "empty caption"
        except FileNotFoundError:
            caption, problem = "", f"no {CAPTION_SUFFIX} file of its name"
        except UnicodeDecodeError:
            caption, problem = "", "its caption is not UTF-8"
        yield Row(number, id, id, caption, problem)


def captions_of_folder(folder: Path) -> Iterator[tuple[Path, Path]]:
    """The images below a folder, each with where its caption would be; none is read."""
    images = (folder / id for id in files_below(folder) if is_image(id))
    return ((image, image.with_suffix(CAPTION_SUFFIX)) for image in images)


def _rows(lines, table: Path) -> Iterator[Row]:
    header: list[str] = next(lines, [])
    image = _guess(header)
    if image is None:
        image, caption = _column(header, IMAGE_COLUMNS, table), _column(header, CAPTION_COLUMNS, table)
    else:
        caption = 1 - image
        yield _row(header, lines.line_num, image, caption, 2)
    for cells in lines:
        if cells:
            yield _row(cells, lines.line_num, image, caption, len(header))


def _row(cells: list[str], number: int, image: int, caption: int, columns: int) -> Row:
    # A comma in a caption without quotes: what is left of it is another caption.
    if len(cells) != columns:
        return Row(number, f"line {number}", "", "", f"{len(cells)} columns, the header has {columns}")
    path, text = cells[image].strip(), cells[caption].strip()
    if not path:
        return Row(number, f"line {number}", "", "", "no image")
    return Row(number, f"line {number}, {path}", path, text, "" if text else "empty caption")


def _guess(first: list[str]) -> int | None:
    """Which of two columns is the image's, if the first line is a pair and no header."""
    images = [i for i, cell in enumerate(first) if cell.strip().lower().endswith(IMG_EXTENSIONS)]
    return images[0] if len(first) == 2 and len(images) == 1 else None


def _column(header: list[str], names: tuple[str, ...], table: Path) -> int:
    columns = [cell.strip().lower() for cell in header]
    for name in names:
        if name in columns:
            return columns.index(name)
    remote = any(cell == "url" or cell.startswith(("http://", "https://")) for cell in columns)
    fetch = (
        " It lists addresses, as CC3M's own file does: fetch the images first, for instance with img2dataset, and give "
        "its table, folder or shards. `bench data get cc3m --data-root DIR` says how."
    )
    raise BenchError(
        f"{table} has no column '{names[0]}' (or {', '.join(names[1:])}). Found: {', '.join(header) or 'nothing'}. "
        f"Name the columns image,caption in the first line.{fetch if remote else ''}"
    )


SUFFIX = ".tar"
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def shards_at(place: Path) -> list[Path]:
    """The archives which a path names: one, those in a folder, or a range as in `cc3m/{00000..00331}.tar`.

    >>> [shard.name for shard in shards_at(Path("cc3m/{008..010}.tar"))]
    ['008.tar', '009.tar', '010.tar']
    """
    if match := _RANGE.search(place.name):
        first, last = match[1], match[2]
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
        values = json.loads(facts.read_bytes())
        return " ".join(str(values.get("caption") or "").split()) if isinstance(values, dict) else ""
    return ""
