"""Artefacts on disk, named by their ids: written aside and renamed, so that what is there is whole."""

import contextlib
import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from bench.core.distributed import rank
from bench.core.errors import BenchError
from bench.core.images import hash_file

CARD = "card.json"
DELTA_FILE = "delta.safetensors"


@contextlib.contextmanager
def readable(file: Path, mend: str) -> Iterator[None]:
    """Read a JSON or Parquet file of a results folder.

    Raises:
        BenchError: it is damaged, which `mend` and another run mend.
    """
    try:
        yield
    except ValueError as error:
        # The errors of JSON and of Arrow are such.
        raise BenchError(f"{file} is damaged: {error}. {mend}; the same `bench run` makes it again.") from error


class Store:
    """The artefacts of a results folder, `artefacts/KIND/ID/`; an artefact is there when its card is."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.root = out / "artefacts"

    def path(self, kind: str, id: str) -> Path:
        return self.root / kind / id

    def has(self, kind: str, id: str) -> bool:
        return (self.path(kind, id) / CARD).is_file()

    def card(self, kind: str, id: str) -> dict[str, Any]:
        """What a finished artefact's card says.

        Raises:
            BenchError: it is damaged.
        """
        with readable(self.path(kind, id) / CARD, "Remove its folder"):
            return json.loads((self.path(kind, id) / CARD).read_text())

    @contextlib.contextmanager
    def writing(self, kind: str, id: str, card: dict[str, Any]) -> Iterator[Path]:
        """A folder to write an artefact into; at the end the card is added and the folder gets its name.

        The card also gets `files`: a hash of each file, so that `bench verify` sees a change.

        Raises:
            BenchError: the disk is full. Nothing half-made stays.
        """
        final = self.path(kind, id)
        aside = final.with_name(f".{id}-{uuid4().hex[:8]}")
        try:
            aside.mkdir(parents=True)
            yield aside
            if rank():
                # Several processes have made the same; the first one keeps it.
                return
            hashes = {file.name: hash_file(file) for file in sorted(aside.iterdir())}
            (aside / CARD).write_text(json.dumps(card | {"files": hashes}, indent=2) + "\n")
            try:
                aside.rename(final)
            except OSError:
                # A worker of a killed run may have finished the same artefact in the meantime.
                if not self.has(kind, id):
                    raise
        except (OSError, SafetensorError) as error:
            # safetensors wraps the system's error in its own, and keeps the number in the text.
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            if full or "os error 28" in str(error) or "StorageFull" in str(error):
                raise BenchError(
                    f"the disk of {self.out} is full. Finished work is kept: free some room, or move the folder to a "
                    "larger disk, and run the same command again."
                ) from error
            raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what a killed run left half-written; only for the holder of the lock."""
        for leftover in self.root.glob("*/.*"):
            shutil.rmtree(leftover, ignore_errors=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the results folder alone.

        Raises:
            BenchError: another run holds it, or the folder cannot be written.
        """
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise BenchError(f"--out {self.out} is a file, not a folder. Give another --out") from None
        except OSError as error:
            raise BenchError(f"--out {self.out} cannot be made: {error.strerror}. Give another --out") from None
        lock = FileLock(self.out / ".lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise BenchError(
                f"another run is at work in {self.out}. Wait for it, or give this one a folder of its own with --out"
            ) from None
        except OSError as error:
            raise BenchError(f"--out {self.out} cannot be written: {error.strerror}. Give another --out") from None
        try:
            yield
        finally:
            lock.release()
