"""A results folder as one object: settings, cells, numbers, models, triggers, cards."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch

from bench.core.attack import Trigger
from bench.core.clip import Clip
from bench.core.errors import BenchError
from bench.core.metric import Observations
from bench.core.registry import load_plugins
from bench.core.task import tasks
from bench.core.victim import Victim
from bench.experiment.resources import Resources
from bench.experiment.settings import BASE, RunSettings
from bench.results.records import BackdoorCard, Card, Cell, DefenseCard, EvaluationCard, Run
from bench.results.run_file import RUN_FILE, parse_settings, read_run_file
from bench.results.store import CACHE, Store
from bench.results.tidy import COLUMNS, rows_of, view_table

# How many cells are named in a message.
NAMED = 3


@dataclass(frozen=True)
class Lineage:
    """The cards of all artefacts behind a finished cell.

    If cards were deleted to save room, `backdoor` is None, or `defenses` lacks the first ones.
    """

    backdoor: BackdoorCard | None
    defenses: tuple[DefenseCard, ...]
    evaluation: EvaluationCard

    @property
    def cards(self) -> tuple[Card, ...]:
        """All cards, in the order in which the artefacts were made."""
        return (*((self.backdoor,) if self.backdoor else ()), *self.defenses, self.evaluation)

    @property
    def whole(self) -> bool:
        """Whether no card is missing."""
        subject = self.evaluation.determined_by["subject"]
        ids = {card.id for card in self.cards}
        return self.backdoor is not None and (self.evaluation.determined_by["clean"] or subject in ids)


class ResultsFolder:
    """A results folder. run.json is read once; open the folder again to see later runs.

    >>> folder = ResultsFolder(Path("results"))  # doctest: +SKIP
    >>> folder.table()  # doctest: +SKIP
    >>> victim = folder.victim(folder.cells[0])  # doctest: +SKIP

    Raises:
        BenchError: the folder holds no run, or its run.json is damaged or of another format.
    """

    def __init__(self, out: Path | str, device: torch.device | str = "cpu") -> None:
        self.out, self.device = Path(out), str(device)
        self.store = Store(self.out)
        self.record = read_run_file(self.out)
        if not self.record.runs:
            raise BenchError(f"{self.out} holds no results. `bench run --out {self.out}` makes some.")
        load_plugins(tuple(file for file in self.record.plugins if file.is_file()))

    @property
    def run(self) -> Run:
        """The latest run."""
        return self.record.runs[0]

    @cached_property
    def settings(self) -> RunSettings:
        """The settings of the latest run.

        Raises:
            BenchError: they are of another version of bench.
        """
        return self.settings_of(self.run)

    def settings_of(self, run: Run, variant: str = BASE) -> RunSettings:
        """The settings of a variant of a run.

        Raises:
            BenchError: they are of another version of bench.
        """
        settings = parse_settings(run.variants.get(variant, run.settings))
        if settings is None:
            raise BenchError(
                f"the settings in {self.out / RUN_FILE} are of another version of bench. Run again with another --out"
            )
        return settings

    @cached_property
    def resources(self) -> Resources:
        """The model and data of the latest run, opened on first use."""
        return Resources(self.settings, self.out / CACHE, self.device)

    @cached_property
    def all_cells(self) -> tuple[Cell, ...]:
        """The cells of all runs: finished, unfinished, and not applicable."""
        return tuple(cell for run in self.record.runs for cell in run.cells)

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """The finished cells."""
        return tuple(c for c in self.all_cells if c.evaluation and self.store.has("evaluation", c.evaluation))

    @cached_property
    def unfinished(self) -> tuple[Cell, ...]:
        """The cells that are still to be evaluated."""
        finished = set(self.cells)
        return tuple(c for c in self.all_cells if c.evaluation and c not in finished)

    @cached_property
    def own_cells(self) -> tuple[Cell, ...]:
        """The finished cells of the latest run."""
        own = set(self.run.cells)
        return tuple(cell for cell in self.cells if cell in own)

    @property
    def finished_cells(self) -> tuple[Cell, ...]:
        """The finished cells, at least one.

        Raises:
            BenchError: there are none.
        """
        if not self.cells:
            raise BenchError(
                f"no cell of {self.out} is finished. Run its `bench run` again, after correcting failures, if any."
            )
        return self.cells

    def lineage(self, cell: Cell) -> Lineage:
        """The cards of the artefacts behind a finished cell."""
        evaluation = self.store.evaluation_card(self._evaluation(cell))
        chain = self.store.chain(evaluation.determined_by["subject"])
        backdoor = cell.backdoor or ""
        card = self.store.backdoor_card(backdoor) if self.store.has_card("backdoor", backdoor) else None
        return Lineage(card, chain, evaluation)

    def observations(self, cell: Cell) -> Observations:
        """The observations of a finished cell."""
        return self.store.observations(self._evaluation(cell))

    def victim(self, cell: Cell) -> Victim:
        """The model that a finished cell evaluated.

        Raises:
            BenchError: its artefacts are no longer in the folder.
        """
        inputs = self.store.evaluation_card(self._evaluation(cell)).determined_by
        if inputs["clean"]:
            return Victim(self.resources.clip)
        backdoor, subject = inputs["backdoor"], inputs["subject"]
        defense = None if subject == backdoor else subject
        if not self.store.has("backdoor", backdoor) or (defense and not self.store.has("defense", defense)):
            raise BenchError(f"the model of {cell.name} is no longer in {self.store.root}")
        return self.store.victim(self._backdoored(backdoor), defense)

    def trigger(self, cell: Cell) -> Trigger:
        """The trigger of a finished cell in its test form.

        Raises:
            BenchError: its backdoored model is no longer in the folder.
        """
        if cell.backdoor is None or not self.store.has("backdoor", cell.backdoor):
            raise BenchError(f"the trigger of {cell.attack} is no longer in {self.store.root}")
        return self.store.trained_trigger(cell.backdoor).at_test()

    @cached_property
    def results(self) -> pd.DataFrame:
        """A row per (cell, metric, perturbation), recomputed from the stored observations.

        Shares are in percent. [`low`, `high`] is the 95 % interval for the sample of test images; the spread over seeds
        is not in it. `cell` is the id of the evaluation, a hash of its settings, data and versions.

        Raises:
            BenchError: the cells are from several states of the code, splits or checkpoints.
        """
        self.refuse_mixture()
        return self.numbers(self.observations)

    def numbers(self, observe: Callable[[Cell], Observations]) -> pd.DataFrame:
        """The numbers of all finished cells, computed from the observations that `observe` returns for each."""
        cards = {cell: self.store.evaluation_card(self._evaluation(cell)) for cell in self.cells}
        rows = [row for cell, card in cards.items() for row in rows_of(cell, card, observe(cell))]
        numbers = pd.DataFrame(rows, columns=COLUMNS)
        # For metrics over cells: below which undefended ASR an attack did not take, and cells of variants that poison
        # nothing.
        numbers.attrs["took"] = self.settings.took
        numbers.attrs["unpoisoned"] = [
            cell.evaluation
            for run in self.record.runs
            for cell in run.cells
            if run.variants.get(cell.variant, run.settings)["poison"]["epochs"] == 0
        ]
        return numbers

    def main_results(self, task: str = "zero_shot") -> pd.DataFrame:
        """The rows of `results` for the latest run's model, data set, target and settings; no variants."""
        wanted = {"variant": "", "task": task, **self.settings.place}
        return self.results[(self.results[list(wanted)] == list(wanted.values())).all(axis=1)]

    def table(self, task: str = "zero_shot") -> pd.DataFrame:
        """The main table of a task: a row per defense, a column per attack.

        For zero-shot classification, a cell is `ASR [95 % interval] (CA [95 % interval])` in percent.

        Raises:
            BenchError: no cell of the task is finished.
        """
        table = view_table(self.main_results(task), [(name, "") for name in tasks[task].headline])
        if table is None:
            raise BenchError(f"no cell of the task {task} is finished in {self.out}. `bench run --tasks {task}`")
        return table

    def refuse_mixture(self) -> None:
        """Check that all finished cells have the same code, split, and checkpoint and data behind each name.

        Raises:
            BenchError: they differ; the message lists which cells have which.
        """
        by_kind: dict[str, dict[str, list[str]]] = {}
        # Messages name the first commit of each state of the code; a commit that changes no code is no new state.
        commits: dict[str, str] = {}
        for cell in self.cells:
            lineage = self.lineage(cell)
            for card in lineage.cards:
                commits.setdefault(card.sources, f"{card.commit}, sources {card.sources}")
            for kind, values in _origin(cell, lineage).items():
                for value in sorted(values):
                    by_kind.setdefault(kind, {}).setdefault(commits.get(value, value), []).append(cell.name)
        for kind, by_value in by_kind.items():
            if len(by_value) > 1:
                parts = "; ".join(f"{value}: {_listed(names)}" for value, names in by_value.items())
                raise BenchError(
                    f"{self.out} mixes {kind}, which one table must not. {parts}. Make one of them again in another "
                    "folder: `bench run ... --out OTHER`"
                )

    @cached_property
    def _open_clips(self) -> dict[str, Clip]:
        return {}

    def _backdoored(self, id: str) -> Clip:
        """A backdoored model; the latest one is kept in memory."""
        if id not in self._open_clips:
            self._open_clips.clear()
            self._open_clips[id] = self.store.clip(id, self.device, self.settings.execution.rounding)
        return self._open_clips[id]

    def _evaluation(self, cell: Cell) -> str:
        if cell.evaluation is None:
            raise BenchError(f"{cell.name} was not evaluated: {cell.reason}")
        if not self.store.has("evaluation", cell.evaluation):
            raise BenchError(f"{cell.name} is not finished. Run its `bench run` again")
        return cell.evaluation


def _origin(cell: Cell, lineage: Lineage) -> dict[str, set[str]]:
    """The values, by kind, that must be the same in all cells of a table."""
    cards, evaluation = lineage.cards, lineage.evaluation.determined_by
    variant = f" ({cell.variant})" if cell.variant else ""
    origin = {
        "versions of bench": {card.bench for card in cards},
        "states of the code": {card.sources for card in cards},
        "versions of torch": {card.torch for card in cards},
        "splits": {evaluation["evaluate"]["split"]},
        f"contents of the data set {cell.dataset}{variant}": {evaluation["dataset"]},
    }
    if lineage.backdoor is not None:
        inputs = lineage.backdoor.determined_by
        checkpoints = filter(None, (inputs["model"], inputs.get("backdoored")))
        origin[f"checkpoints of {cell.model}{variant}"] = {" and ".join(checkpoints)}
    return origin


def _listed(names: Sequence[str]) -> str:
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - NAMED} more" if len(unique) > NAMED else ""
    return ", ".join(unique[:NAMED]) + more
