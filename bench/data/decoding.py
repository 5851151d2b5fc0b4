"""Images at the model's input size: made once and memory-mapped, or decoded on demand."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from bench.core.dataset import Geometry
from bench.core.errors import BenchError
from bench.core.images import decoding_threads, hash_of
from bench.data.on_disk import File, Member

# Raise it when a change of this file changes a pixel.
VERSION = 1
# How many files are in memory at a time.
BLOCK = 256

Write = Callable[[np.ndarray], None]


@dataclass(frozen=True)
class Decoded:
    """The result of decoding n files.

    `pixels` is uint8 RGB (k, 3, size, size), memory-mapped; row j is file `kept[j]`; None if they are not stored.
    `skipped` names the other files, with reasons. `fingerprint` is a hash of the kept files' bytes and the size; it
    does not depend on their paths.
    """

    pixels: np.ndarray | None
    kept: list[int]
    skipped: tuple[str, ...]
    fingerprint: str


def decode(paths: Sequence[File], ids: Sequence[str], geometry: Geometry, store: bool = True) -> Decoded:
    """Decode files as open_clip's evaluation does: RGB, resized (antialiased) and cropped as `geometry` says.

    The orientation tag of EXIF is not applied, as in CLIP's own pipeline. The first call decodes, later ones open
    what it wrote below `geometry.cache`, as long as no file has changed. Without `store` it
    writes no pixels, only which files can be decoded.

    Raises:
        BenchError: no file can be decoded, one cannot be read, or there is no room for the pixels.
    """
    key = hash_of(["decode", VERSION, geometry.key, [file_state(path) for path in paths]])

    def make(write: Write) -> dict[str, Any]:
        digest, skipped = hashlib.sha256(), []
        for i, (content, image) in enumerate(_decoded(paths, geometry)):
            if isinstance(image, str):
                skipped.append((i, ids[i], image))
            else:
                digest.update(content)
                write(image[None])
        if len(skipped) == len(paths):
            first = f" The first is {paths[0]}: {skipped[0][2]}." if skipped else ""
            raise BenchError(f"none of {len(paths)} images can be used.{first} Give images that PIL opens.")
        return {"fingerprint": hash_of([VERSION, geometry.key, digest.hexdigest()]), "skipped": skipped}

    if store or _both(geometry.cache / f"{key}.npy", geometry.cache / f"{key}.json"):
        pixels, record = cached(geometry, key, len(paths), make)
    else:
        pixels, record = None, noted(geometry, key, make)
    reasons = {i: reason for i, _, reason in record["skipped"]}
    return Decoded(
        pixels,
        [i for i in range(len(paths)) if i not in reasons],
        tuple(f"{ids[i]}: {reason}" for i, reason in reasons.items()),
        record["fingerprint"],
    )


def native(path: File) -> Tensor:
    """An image in its own size: uint8 RGB (3, h, w)."""
    with Image.open(BytesIO(path.read_bytes())) as image:
        return torch.from_numpy(_pixels(image.convert("RGB")))


def file_state(path: File) -> tuple:
    """A value that changes with a file: absolute path, size in bytes (-1 if it is missing), time of change in ns."""
    if isinstance(path, Member):
        return path.state()
    where = str(path.absolute())
    try:
        state = path.stat()
    except OSError:
        return where, -1, 0
    return where, state.st_size, state.st_mtime_ns


def cached(
    geometry: Geometry, key: str, n: int, make: Callable[[Write], dict[str, Any]]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Images that are made once and stored, uint8 (k, 3, size, size), k <= n, memory-mapped read-only; and a record.

    `make` passes images, uint8 (any, 3, size, size), to the function it is given, and returns a record of JSON values.
    One process makes them while others wait. An interruption leaves no file.

    Raises:
        BenchError: the cache cannot be written, for instance because the disk is full.
    """
    pixels, record = geometry.cache / f"{key}.npy", geometry.cache / f"{key}.json"
    shape = (3, geometry.size, geometry.size)
    try:
        geometry.cache.mkdir(parents=True, exist_ok=True)
        if not _both(pixels, record):
            with FileLock(geometry.cache / f"{key}.lock"):
                if not _both(pixels, record):
                    _store(pixels, record, n, shape, make)
    except OSError as error:
        raise _unwritable(geometry.cache, n * int(np.prod(shape)), error) from error
    return np.load(pixels, mmap_mode="r"), json.loads(record.read_text())


def noted(geometry: Geometry, key: str, make: Callable[[Write], dict[str, Any]]) -> dict[str, Any]:
    """The record of `cached`, without its images.

    Raises:
        BenchError: the cache cannot be written.
    """
    record = geometry.cache / f"{key}.json"
    try:
        geometry.cache.mkdir(parents=True, exist_ok=True)
        with FileLock(geometry.cache / f"{key}.lock"):
            if not record.exists():
                _write_record(record, make(lambda _: None))
    except OSError as error:
        raise _unwritable(geometry.cache, 0, error) from error
    return json.loads(record.read_text())


def _write_record(record: Path, notes: dict[str, Any]) -> None:
    aside = record.with_suffix(".note")
    aside.write_text(json.dumps(notes))
    aside.replace(record)


def _both(pixels: Path, record: Path) -> bool:
    return pixels.exists() and record.exists()


def _store(
    pixels: Path, record: Path, n: int, shape: tuple[int, int, int], make: Callable[[Write], dict[str, Any]]
) -> None:
    # Better now than after an hour of decoding.
    if shutil.disk_usage(pixels.parent).free < n * int(np.prod(shape)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    aside, count = pixels.with_suffix(".part"), 0
    try:
        # Written, not mapped: on a full disk a write is an error, a mapped page kills the process.
        with aside.open("wb") as file:

            def write(images: np.ndarray) -> None:
                nonlocal count
                file.write(np.ascontiguousarray(images).data)
                count += len(images)

            _write_header(file, (n, *shape))
            notes = make(write)
            # NumPy pads the header so that the first dimension can change.
            file.seek(0)
            _write_header(file, (count, *shape))
        _write_record(record, notes)
        aside.replace(pixels)
    except BaseException:
        aside.unlink(missing_ok=True)
        record.unlink(missing_ok=True)
        raise


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _unwritable(cache: Path, room: int, error: OSError) -> BenchError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        need = f"these images need {room / 1e9:.3g} GB"
        return BenchError(f"no room below {cache}: {need}. Make room, or choose another disk with --out")
    return BenchError(f"cannot keep images below {cache}: {error.strerror}. Choose another folder with --out")


def _decoded(paths: Sequence[File], geometry: Geometry) -> Iterator[tuple[bytes, np.ndarray | str]]:
    """Hash of the file and uint8 (3, size, size), or the reason why not; in order, a block at a time."""
    with decoding_threads() as pool:
        for start in range(0, len(paths), BLOCK):
            yield from pool.map(partial(decode_one, geometry=geometry), paths[start : start + BLOCK])


def decode_one(path: File, geometry: Geometry) -> tuple[bytes, np.ndarray | str]:
    """Hash of a file and its image, uint8 (3, size, size), or the reason why there is none."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return b"", "missing file"
    # Not a bad image: a skip would be remembered after the user has mended it.
    except OSError as error:
        raise BenchError(
            f"cannot read {path}: {error.strerror}. Mend or remove it, then run the same again."
        ) from error
    digest = hashlib.sha256(content).digest()
    try:
        with Image.open(BytesIO(content)) as image:
            return digest, _pixels(geometry.square(image.convert("RGB")))
    except UnidentifiedImageError:
        return digest, "not an image that PIL knows"
    # PIL raises a dozen kinds of errors on broken files; every one of them is kept as the reason.
    except Exception as error:
        return digest, f"{type(error).__name__}: {error}"


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).transpose(2, 0, 1).copy()


class Decoder:
    """What indexing gives is uint8 RGB (k, 3, size, size), the very pixels that `decode` would have stored."""

    def __init__(self, files: Sequence[File], geometry: Geometry) -> None:
        self.files = files
        self.geometry = geometry
        self.shape: tuple[int, ...] = (len(files), 3, geometry.size, geometry.size)
        self._threads = decoding_threads()
        self._ahead: dict[int, Future[np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        images = [self._ahead.pop(i) if i in self._ahead else self._start(i) for i in index.tolist()]
        return np.stack([image.result() for image in images]) if images else np.empty((0, *self.shape[1:]), np.uint8)

    def ahead(self, index: np.ndarray) -> None:
        """Start to decode what will be asked for next; until then it is kept."""
        self._ahead |= {i: self._start(i) for i in index.tolist() if i not in self._ahead}

    def subset(self, index: np.ndarray) -> "Decoder":
        return Decoder([self.files[i] for i in index.tolist()], self.geometry)

    def _start(self, i: int) -> Future[np.ndarray]:
        return self._threads.submit(self._decode, self.files[i])

    def _decode(self, file: File) -> np.ndarray:
        _, image = decode_one(file, self.geometry)
        if isinstance(image, str):
            raise BenchError(f"{file} could be decoded before and cannot now: {image}. Mend it and run again.")
        return image
