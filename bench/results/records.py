"""The typed records of a results folder: cards of artefacts, cells of tables, and runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from bench.core.names import CELL_COLUMNS, CLEAN_MODEL

Kind = Literal["trigger", "backdoor", "defense", "evaluation"]


class Record(BaseModel):
    """A record that is stored as JSON; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Reason(Record):
    """How many files were skipped for a reason, and the names of the first ones."""

    count: int
    first: tuple[str, ...]


class Skipped(Record):
    """How many files or pairs were skipped, and why."""

    count: int = 0
    reasons: dict[str, Reason] = {}


class Card(Record):
    """The description of an artefact: what determined it, what it cost, on which machine and by which code it was made.

    `seconds` is wall time. `peak_memory_mb` (1 MB is 2^20 bytes) is that of the tensors on a GPU ("cuda"), or of the
    whole process since it began. `sources` is a hash of the code, `commit` its commit. `files` are hashes by file name.
    `log` holds training curves by name.
    """

    id: str
    label: str
    determined_by: dict[str, Any]
    seconds: float
    peak_memory_mb: int | None
    peak_memory_of: Literal["cuda", "process"]
    device: str
    hardware: str
    processes: int
    bench: str
    commit: str
    sources: str
    torch: str
    files: dict[str, str] = {}
    log: dict[str, list[float]] = {}


class TriggerCard(Card):
    """The card of a trigger."""

    trigger_hash: str


class BackdoorCard(Card):
    """The card of a backdoored model.

    `backdoored` is the file of a model that was backdoored elsewhere; the counts of pairs are then 0. `apart_from` is
    the fingerprint of the evaluated images among which no training image was found.
    """

    trigger_seed: int
    trigger_hash: str
    target: str
    backdoored: str | None = None
    pairs: int = 0
    poisoned: int = 0
    decoys: int = 0
    skipped: Skipped = Skipped()
    apart_from: str | None = None
    learning_rate: float | None = None


class DefenseCard(Card):
    """The card of a defense.

    `changed`: the names of the tensors that it changed, `tunable`: how many numbers it trained in them,
    `token_embedding`: how many of these embed the text tower's tokens. `samples`: how
    many clean images and pairs it was given. `shots`: the ids of its images, or "all training images". `clean_pairs`:
    how many pairs it requested, by request. `apart_from`: as in `BackdoorCard`.
    """

    needs: tuple[str, ...]
    changed: tuple[str, ...]
    tunable: int
    token_embedding: int = 0
    samples: int
    shots: tuple[str, ...] | str
    clean_pairs: tuple[int, ...]
    skipped: Skipped = Skipped()
    apart_from: str | None = None


class EvaluationCard(Card):
    """The card of an evaluation: the names of its tables, and its `facts`.

    If several evaluations ran together, `seconds` is an equal share. `unchecked` are the reasons why training images
    of its model could not be compared with the evaluated ones.
    """

    task: str
    tables: tuple[str, ...]
    facts: dict[str, Any]
    images: int
    seconds_shared_by: int
    skipped: Skipped = Skipped()
    unchecked: tuple[str, ...] = ()


CARDS: dict[Kind, type[Card]] = {
    "trigger": TriggerCard,
    "backdoor": BackdoorCard,
    "defense": DefenseCard,
    "evaluation": EvaluationCard,
}


class Cell(Record):
    """A cell of the matrix: task, model, attack, target class, defense, data set, seed and variant.

    `settings` is the variant under whose settings it was made, `variant` its name in tables. `evaluation` and
    `backdoor` are ids of artefacts; None, with the `reason`, if the defense cannot be used against the attack.
    """

    COLUMNS: ClassVar[Sequence[str]] = CELL_COLUMNS

    task: str
    model: str
    attack: str
    target: str
    defense: str
    dataset: str
    seed: int
    variant: str = ""
    settings: str = ""
    evaluation: str | None = None
    backdoor: str | None = None
    reason: str = ""

    @property
    def place(self) -> dict[str, Any]:
        """The columns that identify this cell in tables."""
        return {name: getattr(self, name) for name in self.COLUMNS}

    @property
    def name(self) -> str:
        """The name of the cell in messages."""
        return cell_name(self.place)

    @property
    def clean(self) -> bool:
        """Whether it is of the clean model under the attack's trigger."""
        return self.defense == CLEAN_MODEL


def cell_name(place: dict[str, Any]) -> str:
    """The name of a cell in messages, from its columns; some may be missing."""
    variant = f" ({place['variant']})" if place.get("variant") else ""
    task = f", {place['task']}" if place.get("task", "zero_shot") != "zero_shot" else ""
    seed = f", seed {place['seed']}" if "seed" in place else ""
    return f"{place['attack']} / {place['defense']}{variant}{task}{seed}"


class Run(Record):
    """One `bench run`: its settings, those of each variant, and its cells."""

    settings: dict[str, Any]
    variants: dict[str, dict[str, Any]]
    cells: tuple[Cell, ...]


class RunFile(Record):
    """run.json: the runs whose cells are in the tables, latest first; each has another model, data set or target.

    `plugins` are the `--plugin` files of all runs.
    """

    # Raise it when the meaning of run.json or of a card changes; folders of another format are refused.
    format: Literal[2] = 2
    plugins: tuple[Path, ...] = ()
    runs: tuple[Run, ...] = ()
