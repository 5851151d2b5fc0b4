"""Image-text pairs from a CSV or TSV file, as CleanCLIP and open_clip read them."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from bench.core.dataset import Geometry
from bench.core.errors import BenchError
from bench.core.images import Captioned, hash_of
from bench.core.randomness import generator
from bench.data.decoding import VERSION, decode, file_state, native

# The first is CleanCLIP's and BadCLIP's.
IMAGE_COLUMNS = ("image", "filepath", "path", "image_path")
CAPTION_COLUMNS = ("caption", "title", "text")

Part = Literal["poison", "clean"]


@dataclass(frozen=True)
class Row:
    """A pair as the file has it; `problem` says why it cannot be used. `line` counts from 1, the header's."""

    line: int
    image: str
    caption: str
    problem: str = ""

    @property
    def name(self) -> str:
        return f"line {self.line}, {self.image}" if self.image else f"line {self.line}"


def read_pairs(
    file: Path,
    geometry: Geometry,
    n: int | None = None,
    rng: torch.Generator | None = None,
    part: Part | None = None,
) -> Captioned:
    """Read image-text pairs.

    Args:
        file: CSV or TSV in UTF-8 with a header line. The image's path, relative to the file's folder, is in the column
            `image` (or filepath, path, image_path), the text in `caption` (or title, text).
        geometry: the size to bring images to, and where to keep them.
        n: a uniform subset of so many pairs, drawn by `rng`, by default always the same one; None is all.
        part: one half of the file. Its different images are shuffled by a fixed seed; the first half of them goes to
            "poison", the rest to "clean", each with all its rows: a defender gets no image of the attacker's.

    Returns:
        The pairs in the file's order; `ids` are the paths as the file has them. `skipped` tells the rows that cannot
        be used, and why: no caption, a missing file, a corrupt image. With n, missing files are made up for by other
        rows; if there are fewer pairs than n all the same, the last line of `skipped` says so.

    Raises:
        BenchError: no such file, no such columns, no usable pair, or `decode` raises it.
    """
    rows = _read(file)
    bad = [row for row in rows if row.problem]
    good = _half([row for row in rows if not row.problem], file.parent, part)
    if n is not None:
        order = torch.randperm(len(good), generator=rng or generator(0, "pairs", "subset"))
        good = [good[i] for i in order.tolist()]
    there, dead = _existing(good, file.parent, n)
    told = [f"{row.name}: {row.problem}" for row in sorted(bad + dead, key=lambda row: row.line)]
    if not there:
        half = f" in its half for '{part}'" if part else ""
        first = f" The first problem: {told[0]}." if told else ""
        raise BenchError(f"{file} has no usable pair{half}.{first} Image paths start at {file.parent}. Mend the file.")
    decoded = decode([file.parent / row.image for row in there], [row.name for row in there], geometry)
    kept = [there[i] for i in decoded.kept]
    fewer = [f"{n} pairs were asked for, {file} has only {len(kept)}"] if n is not None and len(kept) < n else []
    ids, captions = [row.image for row in kept], [row.caption for row in kept]
    return Captioned(
        ids=ids,
        pixels=decoded.pixels,
        fingerprint=hash_of([decoded.fingerprint, ids, captions]),
        native=lambda i: native(file.parent / ids[i]),
        captions=captions,
        skipped=(*told, *decoded.skipped, *fewer),
    )


def pairs_identity(file: Path) -> str:
    """A hash of what determines the pairs of a file: its rows, and sizes and times of the images; none is read.

    Raises:
        BenchError: as `read_pairs`, of the file itself.
    """
    rows = [(row.image, row.caption, *file_state(file.parent / row.image)[1:]) for row in _read(file)]
    return hash_of(["pairs", VERSION, rows])


def _read(file: Path) -> list[Row]:
    if not file.is_file():
        raise BenchError(f"there is no file {file}. Give --pairs FILE.csv")
    try:
        # The mark that spreadsheets put in front of UTF-8 is no part of the first column's name.
        with file.open(encoding="utf-8-sig", newline="") as lines:
            header = lines.readline()
            lines.seek(0)
            return list(_rows(csv.reader(lines, delimiter="\t" if "\t" in header else ","), file))
    except UnicodeDecodeError as error:
        raise BenchError(f"{file} is not UTF-8 ({error.reason}). Convert it: iconv -t UTF-8 {file}") from error
    except csv.Error as error:
        raise BenchError(f"{file} is not a CSV file: {error}. Look for a quote that is not closed.") from error


def _rows(lines, file: Path) -> Iterator[Row]:
    header: list[str] = next(lines, [])
    image, caption = _column(header, IMAGE_COLUMNS, file), _column(header, CAPTION_COLUMNS, file)
    for cells in lines:
        if not cells:
            continue
        number = lines.line_num
        # A comma in a caption without quotes: what is left of it is another caption.
        if len(cells) != len(header):
            yield Row(number, "", "", f"{len(cells)} columns, the header has {len(header)}")
        elif not cells[image].strip():
            yield Row(number, "", "", "no image")
        else:
            text = cells[caption].strip()
            yield Row(number, cells[image].strip(), text, "" if text else "empty caption")


def _column(header: list[str], names: tuple[str, ...], file: Path) -> int:
    found = [cell.strip().lower() for cell in header]
    for name in names:
        if name in found:
            return found.index(name)
    raise BenchError(
        f"{file} has no column '{names[0]}' (or {', '.join(names[1:])}). Found: {', '.join(header) or 'nothing'}. "
        "Name the columns image,caption in the first line."
    )


def _half(rows: list[Row], folder: Path, part: Part | None) -> list[Row]:
    if part is None:
        return rows
    images = list(dict.fromkeys(folder / row.image for row in rows))
    order = torch.randperm(len(images), generator=generator(0, "pairs", "halves")).tolist()
    middle = len(order) // 2
    mine = {images[i] for i in (order[:middle] if part == "poison" else order[middle:])}
    return [row for row in rows if folder / row.image in mine]


def _existing(rows: list[Row], folder: Path, n: int | None) -> tuple[list[Row], list[Row]]:
    """The first n rows whose file is there, in the file's order; and the rows seen on the way whose file is not."""
    there: list[Row] = []
    dead: list[Row] = []
    for row in rows:
        if len(there) == n:
            break
        if (folder / row.image).is_file():
            there.append(row)
        else:
            dead.append(Row(row.line, row.image, row.caption, "missing file"))
    return sorted(there, key=lambda row: row.line), dead
