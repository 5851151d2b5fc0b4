"""Artefacts on disk, named by their ids: written aside and renamed, so that what is there is whole."""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import pandas as pd
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bench.core.attack import Trigger
from bench.core.clip import Clip
from bench.core.distributed import rank
from bench.core.errors import BenchError
from bench.core.images import hash_file
from bench.core.metric import Observations
from bench.core.victim import Delta, Victim
from bench.results.records import CARDS, BackdoorCard, Card, DefenseCard, EvaluationCard, Kind, TriggerCard

CARD = "card.json"
# The folder, beside the artefacts, of decoded images.
CACHE = "data"
TRIGGER_FILE = "trigger.safetensors"
MANIFEST_FILE = "manifest.csv"
DELTA_FILE = "delta.safetensors"
AnyCard = TypeVar("AnyCard", bound=Card)


@contextlib.contextmanager
def readable(file: Path, mend: str) -> Iterator[None]:
    """Read a JSON or Parquet file of a results folder.

    Raises:
        BenchError: it is damaged, which `mend` and another run mend.
    """
    try:
        yield
    except ValueError as error:
        # The errors of JSON, of Arrow and of pydantic are such.
        told = str(error).splitlines()
        raise BenchError(f"{file} is damaged: {told[0]}. {mend}; the same `bench run` makes it again.") from error


class Store:
    """The artefacts of a results folder, `artefacts/KIND/ID/`; an artefact is there when its card is.

    What is stored is opened here and nowhere else: models, triggers, what defenses changed, what tasks observed.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.root = out / "artefacts"

    def path(self, kind: str, id: str) -> Path:
        return self.root / kind / id

    def has(self, kind: str, id: str) -> bool:
        return (self.path(kind, id) / CARD).is_file()

    def card(self, kind: Kind, id: str) -> Card:
        """What a finished artefact's card says; `trigger_card` and its like give the card of one kind.

        Raises:
            BenchError: it is damaged.
        """
        return self._card(kind, id, CARDS[kind])

    def trigger_card(self, id: str) -> TriggerCard:
        return self._card("trigger", id, TriggerCard)

    def backdoor_card(self, id: str) -> BackdoorCard:
        return self._card("backdoor", id, BackdoorCard)

    def defense_card(self, id: str) -> DefenseCard:
        return self._card("defense", id, DefenseCard)

    def evaluation_card(self, id: str) -> EvaluationCard:
        return self._card("evaluation", id, EvaluationCard)

    def chain(self, subject: str) -> tuple[DefenseCard, ...]:
        """The cards of the defenses behind a model, the first one first; those before a deleted card are not known."""
        cards: list[DefenseCard] = []
        while self.has("defense", subject):
            cards.insert(0, self.defense_card(subject))
            subject = cards[0].determined_by["subject"]
        return tuple(cards)

    def clip(self, id: str, device: torch.device | str = "cpu") -> Clip:
        """A backdoored model, undefended."""
        return Clip.load(self.path("backdoor", id)).to(device)

    def victim(self, base: Clip, defense: str | None = None) -> Victim:
        """An opened backdoored model as a defense, the last one of a chain, made it."""
        return Victim(base) if defense is None else Victim.restore(base, self.delta(defense))

    def delta(self, defense: str) -> Delta:
        """What tells a defended model from its undefended one."""
        return Delta.load(self.path("defense", defense) / DELTA_FILE)

    def prepared(self, trigger: str) -> dict[str, Tensor]:
        """What an attack prepared: the tensors of a trigger."""
        return load_file(self.path("trigger", trigger) / TRIGGER_FILE)

    def trained_trigger(self, backdoor: str) -> Trigger:
        """The trigger of a backdoored model as it was in training."""
        tensors = load_file(self.path("backdoor", backdoor) / TRIGGER_FILE)
        return Trigger(self.backdoor_card(backdoor).trigger_seed, tensors)

    def observations(self, id: str) -> Observations:
        """What an evaluation saw.

        Raises:
            BenchError: a file of it is damaged.
        """
        card, folder = self.evaluation_card(id), self.path("evaluation", id)
        with readable(folder, "Remove the folder"):
            return Observations({name: pd.read_parquet(folder / f"{name}.parquet") for name in card.tables}, card.facts)

    def _card(self, kind: Kind, id: str, record: type[AnyCard]) -> AnyCard:
        file = self.path(kind, id) / CARD
        with readable(file, "Remove its folder"):
            return record.model_validate_json(file.read_bytes())

    @contextlib.contextmanager
    def writing(self, kind: Kind, card: Card) -> Iterator[Path]:
        """A folder to write an artefact into; at the end the card is added and the folder gets its name.

        The card also gets `files`: a hash of each file, so that `bench verify` sees a change.

        Raises:
            BenchError: the disk is full. Nothing half-made stays.
        """
        final = self.path(kind, card.id)
        aside = final.with_name(f".{card.id}-{uuid4().hex[:8]}")
        try:
            aside.mkdir(parents=True)
            yield aside
            if rank():
                # Several processes have made the same; the first one keeps it.
                return
            hashes = {file.name: hash_file(file) for file in sorted(aside.iterdir())}
            (aside / CARD).write_text(card.model_copy(update={"files": hashes}).model_dump_json(indent=2) + "\n")
            try:
                aside.rename(final)
            except OSError:
                # A worker of a killed run may have finished the same artefact in the meantime.
                if not self.has(kind, card.id):
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
