"""What a results folder says of itself: cards of artefacts, the cells of its tables, and the runs that made them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from bench.core.names import CELL_COLUMNS, CLEAN_MODEL

Kind = Literal["trigger", "backdoor", "defense", "evaluation"]


class Record(BaseModel):
    """Something that is written as JSON and read again; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Reason(Record):
    """How many were skipped for a reason, and the first names."""

    count: int
    first: tuple[str, ...]


class Skipped(Record):
    """How many files or pairs were skipped, and for each of the first reasons, how many and which first."""

    count: int = 0
    reasons: dict[str, Reason] = {}


class Card(Record):
    """What every artefact tells: what determined it, what it cost, where and by which code it was made.

    `seconds` is wall time; `peak_memory_mb` (of 2^20 bytes) is of `peak_memory_of`: the tensors on a GPU, or the whole
    process since it began. `sources` is a hash of the code, `commit` where it came from. `files` are hashes by name,
    added when the artefact is finished. `log` holds training curves by name.
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
    """A trigger: what an attack prepared."""

    trigger_hash: str


class BackdoorCard(Card):
    """A backdoored model; `backdoored` is the file of one that was backdoored elsewhere, and then no pairs are told.

    `apart_from` is the fingerprint of the images that it was checked not to be trained on.
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
    """What a defense changed: names of tensors, `tunable` numbers in them, and the clean `samples` it was given.

    `token_embedding` of the tunable numbers are embeddings of the text tower's tokens.
    `shots` are the ids of labelled images, or "all training images"; `clean_pairs` how many pairs were asked for, each
    time.
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
    """What a task saw of a model: names of its tables, and its `facts`.

    `seconds` are a share of those that several evaluations took together. `unchecked` says where it could not be
    checked that no evaluated image was trained on, and why.
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
    """One place of the matrix: what was attacked how, defended how, and measured by which task on what.

    `settings` is the variant under whose settings it was made, `variant` what tables call it. `evaluation` and
    `backdoor` are ids of artefacts; None, with the `reason`, where the defense cannot face the attack.
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
        """The columns of tables that tell this cell from others."""
        return {name: getattr(self, name) for name in self.COLUMNS}

    @property
    def name(self) -> str:
        """How messages call the cell."""
        return cell_name(self.place)

    @property
    def clean(self) -> bool:
        """Whether it shows the clean model under the attack's trigger."""
        return self.defense == CLEAN_MODEL


def cell_name(place: dict[str, Any]) -> str:
    """How messages call a cell with these columns, some of which may be missing."""
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
    """run.json: the runs whose cells the tables show, the last one first; each is of another model, data set or target.

    `plugins` are the `--plugin` files of all of them.
    """

    # Raise it when run.json or a card changes its meaning: folders of another format are refused, with the mend.
    format: Literal[2] = 2
    plugins: tuple[Path, ...] = ()
    runs: tuple[Run, ...] = ()
