"""Image-text pairs from a CSV or TSV file, a folder, or webdataset shards, in bounded memory."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch

from bench.core.dataset import Geometry
from bench.core.errors import BenchError
from bench.core.images import Captioned, hash_of
from bench.core.randomness import generator
from bench.data.decoding import VERSION, Decoder, decode, file_state, native
from bench.data.on_disk import File
from bench.data.pair_sources import Row, captions_of_folder, rows_of_folder, rows_of_shards, rows_of_table, shards_at

Part = Literal["poison", "clean"]
Cache = Literal["auto", "disk", "none"]
# Of the free disk, for `auto`.
SHARE = 0.5


# Puts the pairs of a pool into an order, from their captions and their numbers in the source.
Order = Callable[[Sequence[str], Sequence[int]], Sequence[int]]


def read_pairs(
    place: Path,
    geometry: Geometry,
    n: int | None = None,
    part: Part | None = None,
    pool: int | None = None,
    order: Order | None = None,
    cache: Cache = "auto",
) -> Captioned:
    """Read image-text pairs.

    Args:
        place: a CSV or TSV in UTF-8 with a header line, where the image's path, relative to the file's folder, is in
            the column `image` (or filepath, path, image_path, file), the text in `caption` (or title, text); a folder
            of images with captions beside them (`a.jpg`, `a.txt`); webdataset's shards: a folder of them, one, or a
            range (`cc3m/{00000..00331}.tar`).
        geometry: the size to bring images to, and where to keep them.
        n: a uniform subset of so many pairs, always the same one; None is all.
        part: one half of the pairs. Its different images are shuffled by a fixed seed; the first half of them goes to
            "poison", the rest to "clean", each with all its pairs: a defender gets no image of the attacker's.
        pool: with n and `order`, the random subset, missing files left out, from which the n are taken.
        order: the pairs of the pool in the order in which to take them, from their captions and numbers in the source.
        cache: "disk" keeps decoded pixels, "none" decodes a batch whenever it is asked for; "auto" keeps them if they
            take at most half of the free disk. Pairs and pixels are the same.

    Returns:
        The pairs in their source's order; `ids` are the paths as the source has them. `skipped` tells the pairs that
        cannot be used, and why: no caption, a missing file, a corrupt image. With n, missing files are made up for by
        others; if there are fewer pairs than n all the same, the last line of `skipped` says so.

    Raises:
        BenchError: no such file, no such columns, no usable pair, or `decode` raises it.
    """
    root = _root(place)
    rows = list(_read(place))
    bad = [row for row in rows if row.problem]
    good = _half([row for row in rows if not row.problem], root, part)
    del rows
    if n is not None:
        shuffled = torch.randperm(len(good), generator=generator(0, "pairs", "subset"))
        good = [good[i] for i in shuffled.tolist()]
    there, dead = _existing(good, root, n if order is None else max(pool or 0, n or 0))
    if order is not None:
        there = [there[i] for i in order([row.caption for row in there], [row.number for row in there])][:n]
    there.sort(key=lambda row: row.number)
    problems = [f"{row.name}: {row.problem}" for row in sorted(bad + dead, key=lambda row: row.number)]
    if not there:
        half = f" in its half for '{part}'" if part else ""
        first = f" The first problem: {problems[0]}." if problems else ""
        raise BenchError(f"{place} has no usable pair{half}.{first} Image paths start at {root.resolve()}")
    files = [_file(row, root) for row in there]
    decoded = decode(files, [row.name for row in there], geometry, _stored(cache, len(files), geometry))
    kept = [there[i] for i in decoded.kept]
    files = [files[i] for i in decoded.kept]
    fewer = [f"{n} pairs were asked for, {place} has only {len(kept)}"] if n is not None and len(kept) < n else []
    ids, captions = [row.image for row in kept], [row.caption for row in kept]
    return Captioned(
        ids=ids,
        pixels=Decoder(files, geometry) if decoded.pixels is None else decoded.pixels,
        fingerprint=hash_of([decoded.fingerprint, ids, captions]),
        native=lambda i: native(files[i]),
        captions=captions,
        skipped=(*problems, *decoded.skipped, *fewer),
    )


def survey(place: Path) -> tuple[int, list[str]]:
    """How many pairs of a place can be used, as far as is seen without reading an image; and the others, with reasons.

    Raises:
        BenchError: as `read_pairs`, of the file itself.
    """
    root, usable, problems = _root(place), 0, []
    for row in _read(place):
        problem = row.problem or ("" if row.file is not None or (root / row.image).is_file() else "missing file")
        if problem:
            problems.append(f"{row.name}: {problem}")
        else:
            usable += 1
    return usable, problems


def captions(place: Path) -> Iterator[str]:
    """The captions of the pairs of a place, read one by one.

    Raises:
        BenchError: as `read_pairs`, of the file itself.
    """
    return (row.caption for row in _read(place) if not row.problem)


def pairs_identity(place: Path) -> str:
    """A hash of what determines the pairs of a place: names, captions, sizes and times of files; no image is read.

    Raises:
        BenchError: as `read_pairs`, of the file itself.
    """
    # As `hash_of` would, but row by row: millions of them are never in memory at once.
    digest = hashlib.sha256(f'["pairs", {VERSION}, ['.encode())
    for i, state in enumerate(_states(place)):
        digest.update(((", " if i else "") + json.dumps(state)).encode())
    digest.update(b"]]")
    return digest.hexdigest()[:16]


def _read(place: Path) -> Iterator[Row]:
    if shards := shards_at(place):
        return rows_of_shards(shards)
    if place.is_dir():
        return rows_of_folder(place)
    if not place.is_file():
        raise BenchError(f"there is no file {place}. Give --pairs FILE.csv, a folder, or webdataset's shards")
    return rows_of_table(place)


def _states(place: Path) -> Iterator[tuple]:
    """A value that changes with the contents of a place."""
    if shards := shards_at(place):
        return ((shard.name, *file_state(shard)[1:]) for shard in shards)
    root = _root(place)
    if place.is_dir():
        pairs = captions_of_folder(place)
        return ((str(a.relative_to(root)), *file_state(a)[1:], *file_state(b)[1:]) for a, b in pairs)
    return ((row.image, row.caption, *file_state(root / row.image)[1:]) for row in _read(place))


def _root(place: Path) -> Path:
    return place if place.is_dir() else place.parent


def _file(row: Row, root: Path) -> File:
    return row.file or root / row.image


def _stored(cache: Cache, n: int, geometry: Geometry) -> bool:
    if cache != "auto":
        return cache == "disk"
    geometry.cache.mkdir(parents=True, exist_ok=True)
    return n * 3 * geometry.size**2 <= SHARE * shutil.disk_usage(geometry.cache).free


def _half(rows: list[Row], root: Path, part: Part | None) -> list[Row]:
    if part is None:
        return rows
    # An image may be named in two ways, as `a.jpg` and `./a.jpg`.
    names = [os.path.normpath(root / row.image) for row in rows]
    images = list(dict.fromkeys(names))
    order = torch.randperm(len(images), generator=generator(0, "pairs", "halves")).tolist()
    middle = len(order) // 2
    mine = {images[i] for i in (order[:middle] if part == "poison" else order[middle:])}
    return [row for row, name in zip(rows, names, strict=True) if name in mine]


def _existing(rows: list[Row], root: Path, n: int | None) -> tuple[list[Row], list[Row]]:
    """The first n rows whose file is there; and the rows seen on the way whose file is not."""
    there: list[Row] = []
    dead: list[Row] = []
    for row in rows:
        if len(there) == n:
            break
        if row.file is not None or (root / row.image).is_file():
            there.append(row)
        else:
            dead.append(Row(row.number, row.name, row.image, row.caption, "missing file"))
    return there, dead
