"""Artefacts on disk, named by their ids; written to a temporary folder and renamed, so none is half-written."""

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
# Of an export (`bench.results.export`): cards of artefacts whose files were left out, `cards/KIND/ID.json`.
LEFT_OUT = "cards"
# The folder of decoded images, beside the artefacts.
CACHE = "data"
TRIGGER_FILE = "trigger.safetensors"
MANIFEST_FILE = "manifest.csv"
DELTA_FILE = "delta.safetensors"
AnyCard = TypeVar("AnyCard", bound=Card)


@contextlib.contextmanager
def readable(file: Path, remedy: str) -> Iterator[None]:
    """Turn errors of reading a JSON or Parquet file of a results folder into a `BenchError`.

    Raises:
        BenchError: the file is damaged; the message says to do `remedy` and run again.
    """
    try:
        yield
    except ValueError as error:
        # JSON, Arrow and pydantic raise subclasses of it.
        reason = str(error).splitlines()[0]
        raise BenchError(f"{file} is damaged: {reason}. {remedy}; the same `bench run` makes it again.") from error


class Store:
    """The artefacts of a results folder, in `artefacts/KIND/ID/`; an artefact with a card is complete.

    Only this class reads stored models, triggers, deltas of defenses and observations.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.root = out / "artefacts"

    def path(self, kind: str, id: str) -> Path:
        return self.root / kind / id

    def has(self, kind: str, id: str) -> bool:
        """Whether an artefact is there, with its files."""
        return (self.path(kind, id) / CARD).is_file()

    def has_card(self, kind: str, id: str) -> bool:
        """Whether an artefact is there, or at least its card."""
        return self._card_file(kind, id).is_file()

    def card(self, kind: Kind, id: str) -> Card:
        """The card of an artefact; `trigger_card` and the like return the type of one kind.

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
        """The cards of the chain of defenses of a model, first to last; those before a deleted card are left out."""
        cards: list[DefenseCard] = []
        while self.has_card("defense", subject):
            cards.insert(0, self.defense_card(subject))
            subject = cards[0].determined_by["subject"]
        return tuple(cards)

    def clip(self, id: str, device: torch.device | str = "cpu", rounding: int = 0) -> Clip:
        """The undefended backdoored model; `rounding` is that of the run (`execution.rounding`)."""
        clip = Clip.load(self.path("backdoor", id))
        return (clip.nudged(rounding) if rounding else clip).to(device)

    def victim(self, base: Clip, defense: str | None = None) -> Victim:
        """The victim after the defense with this id, the last one of a chain; `base` is the backdoored model."""
        return Victim(base) if defense is None else Victim.restore(base, self.delta(defense))

    def delta(self, defense: str) -> Delta:
        """The difference between a defended model and the undefended one."""
        return Delta.load(self.path("defense", defense) / DELTA_FILE)

    def prepared(self, trigger: str) -> dict[str, Tensor]:
        """The tensors of a trigger, as the attack prepared them."""
        return load_file(self.path("trigger", trigger) / TRIGGER_FILE)

    def trained_trigger(self, backdoor: str) -> Trigger:
        """The trigger that a backdoored model was trained with."""
        tensors = load_file(self.path("backdoor", backdoor) / TRIGGER_FILE)
        return Trigger(self.backdoor_card(backdoor).trigger_seed, tensors)

    def observations(self, id: str) -> Observations:
        """The observations of an evaluation.

        Raises:
            BenchError: one of its files is damaged.
        """
        card, folder = self.evaluation_card(id), self.path("evaluation", id)
        with readable(folder, "Remove the folder"):
            return Observations({name: pd.read_parquet(folder / f"{name}.parquet") for name in card.tables}, card.facts)

    def _card(self, kind: Kind, id: str, record: type[AnyCard]) -> AnyCard:
        file = self._card_file(kind, id)
        with readable(file, "Remove its folder"):
            return record.model_validate_json(file.read_bytes())

    def _card_file(self, kind: str, id: str) -> Path:
        return self.path(kind, id) / CARD if self.has(kind, id) else self.out / LEFT_OUT / kind / f"{id}.json"

    @contextlib.contextmanager
    def writing(self, kind: Kind, card: Card) -> Iterator[Path]:
        """A temporary folder to write an artefact into; at the end, the card is added and the folder is renamed.

        The card gets a hash of each file, `files`, so that `bench verify` detects changes.

        Raises:
            BenchError: the disk is full. The temporary folder is removed.
        """
        final = self.path(kind, card.id)
        temporary = final.with_name(f".{card.id}-{uuid4().hex[:8]}")
        try:
            temporary.mkdir(parents=True)
            yield temporary
            if rank():
                # All processes of a group have made the same; only the first one stores it.
                return
            hashes = {file.name: hash_file(file) for file in sorted(temporary.iterdir())}
            (temporary / CARD).write_text(card.model_copy(update={"files": hashes}).model_dump_json(indent=2) + "\n")
            try:
                temporary.rename(final)
            except OSError:
                # A worker of a killed run may have finished the same artefact in the meantime.
                if not self.has(kind, card.id):
                    raise
        except (OSError, SafetensorError) as error:
            # safetensors raises an error of its own, with the system's error number in the text.
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            if full or "os error 28" in str(error) or "StorageFull" in str(error):
                raise BenchError(
                    f"the disk of {self.out} is full. Finished work is kept: free some room, or move the folder to a "
                    "larger disk, and run the same command again."
                ) from error
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def sweep(self) -> None:
        """Remove temporary folders of killed runs; only while holding the lock."""
        for leftover in self.root.glob("*/.*"):
            shutil.rmtree(leftover, ignore_errors=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the results folder for one run.

        Raises:
            BenchError: another run has locked it, or the folder cannot be written.
        """
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise BenchError(f"--out {self.out} is a file, not a folder. Give another --out") from None
        except OSError as error:
            raise BenchError(f"--out {self.out} cannot be created: {error.strerror}. Give another --out") from None
        lock = FileLock(self.out / ".lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise BenchError(
                f"another run is using {self.out}. Wait for it, or use another folder: --out FOLDER"
            ) from None
        except OSError as error:
            raise BenchError(f"--out {self.out} cannot be written: {error.strerror}. Give another --out") from None
        try:
            yield
        finally:
            lock.release()
