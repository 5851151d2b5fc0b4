"""Tables of a paper: for each cell the measured and the published numbers."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd
from pandas.api.typing import DataFrameGroupBy

from bench.core.attack import attacks
from bench.core.defense import defenses
from bench.core.names import CLEAN_MODEL, UNDEFENDED
from bench.core.task import tasks
from bench.experiment.settings import RunSettings
from bench.matrix.plan import unsuited
from bench.papers import Method, Paper, PaperTable, Place, papers, table_name
from bench.results.tidy import did_not_take, pooled

KEYS = ["model", "dataset", "target", "defense", "variant", "attack", "perturbation", "metric"]
Groups = DataFrameGroupBy


@dataclass(frozen=True)
class MeasuredNumber:
    """A measured value with its 95 % interval (NaN if none), its number of images (0 for a cost) and of seeds, and the
    smallest and largest value of a seed."""

    value: float
    low: float
    high: float
    n: int
    seeds: int
    min: float
    max: float


@dataclass(frozen=True)
class TableCell:
    """A cell of a table, with the available `measured` and `published` numbers by metric.

    `reason` says why the cell cannot be measured; "" if it can. `took` is False if the attack did not take.
    `stands_for` is the label of the paper's place if the cell is at its embedded counterpart; otherwise "".
    """

    place: Place
    method: Method
    attack: str = ""
    perturbation: str = ""
    measured: dict[str, MeasuredNumber] = field(default_factory=dict)
    published: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    took: bool = True
    stands_for: str = ""


@dataclass(frozen=True)
class Table:
    """A table of a paper, filled from a run: all cells, measured or not, in the paper's order."""

    paper: Paper
    name: str
    run: RunSettings
    cells: tuple[TableCell, ...]

    @property
    def spec(self) -> PaperTable:
        return self.paper.tables[self.name]

    @property
    def title(self) -> str:
        return title(self.paper, self.name)

    @property
    def stem(self) -> str:
        return stem(self.paper, self.name)

    @property
    def own(self) -> Place:
        """The model, data set and target of the run."""
        return own_place(self.run)

    @property
    def replicates(self) -> bool:
        """Whether the paper has the run's model, data set and target, so that numbers are a replication."""
        return bool(_at(self.paper.places, self.own))

    @property
    def own_presets(self) -> set[str | None]:
        """The presets of the run's own place, if it is the paper's or an embedded counterpart; otherwise empty."""
        return {place.preset for place in _at(_sought(self.paper, self.own), self.own)}

    @property
    def stands_for(self) -> dict[str, str]:
        """The labels of embedded counterparts in the table, each with that of the paper's place."""
        return {cell.place.label: cell.stands_for for cell in self.cells if cell.stands_for}

    @property
    def without_counterpart(self) -> list[str]:
        """The labels of places that have no embedded counterpart, if the run is at one."""
        there = _sought(self.paper, self.own)
        return [self.paper.places[name].label for name in self.spec.places if there and name not in there]

    @property
    def measured(self) -> bool:
        """Whether any cell is measured."""
        return any(cell.measured for cell in self.cells)

    @property
    def has_published(self) -> bool:
        return any(cell.published for cell in self.cells)

    @property
    def metrics_apart(self) -> bool:
        """Whether each metric has rows or columns of its own."""
        return "metric" in (*self.spec.rows, *self.spec.columns)

    @cached_property
    def left_out(self) -> dict[str, str]:
        """Variants that the suite does not run on this data set, with reasons."""
        declared = self.paper.suites[self.spec.suite].declared(self.run.embedded)
        return {name: reason for name, reason in declared.items() if isinstance(reason, str)}

    @property
    def lacking(self) -> list[TableCell]:
        """The cells that could be measured and are not."""
        return [c for c in self.cells if not (c.measured or c.reason or c.method.variant in self.left_out)]


def fill(
    paper: Paper, name: str, results: pd.DataFrame, run: RunSettings, published: pd.DataFrame | None = None
) -> Table:
    """Fill a table of a paper.

    Args:
        results: the results of a folder, and the costs of its defenses.
        run: the folder's latest run. If the paper has its model, data set and target, the table has the paper's
            places; if it is at an embedded counterpart of one of them, their counterparts; otherwise the run's own.
        published: the paper's numbers, from `reports.paper.published.published`.
    """
    spec, here = paper.tables[name], results[results["task"] == paper.tables[name].task]
    ours = _groups(here, spec)
    theirs = None if published is None else _groups(published[published["table"] == spec.published], spec)
    axes = (paper.methods_of(spec), spec.attacks or ("",), spec.perturbations or ("",))
    cells = []
    own = own_place(run)
    embedded = _sought(paper, own) not in ({}, paper.places)
    for place, theirs_at in _places(paper, spec, here, own):
        weak = did_not_take(_main_cells(here, place), run.took, tasks[spec.task].headline[0])
        for method, attack, perturbation in itertools.product(*axes):
            what = (method, attack, perturbation)
            measured = {m: _pick(ours, place, *what, m) for m in spec.metrics}
            printed = {m: _pick(theirs, theirs_at, *what, m) for m in spec.metrics}
            cells.append(
                TableCell(
                    place,
                    *what,
                    {m: _number(rows) for m, rows in measured.items() if rows is not None},
                    {m: float(rows["value"].iloc[0]) for m, rows in printed.items() if rows is not None},
                    _unsuited(run, spec.task, attack, method.defense),
                    attack not in weak,
                    theirs_at.label if embedded and theirs_at else "",
                )
            )
    return Table(paper, name, run, tuple(cells))


def title(paper: Paper, name: str) -> str:
    """The title, such as `Table 1: Defenses`; with the paper's name if there are several papers."""
    of = f" of {paper.name}" if len(papers) > 1 else ""
    return f"Table {name.removeprefix('table-')}{of}: {paper.tables[name].title}"


def stem(paper: Paper, name: str) -> str:
    """The name of the table's files, without suffix."""
    return table_name(paper, name).replace("/", "-")


def own_place(run: RunSettings) -> Place:
    """The place (model, data set, target) of a run's own cells."""
    return Place.model_validate({"label": run.tested_on, **run.place})


def _sought(paper: Paper, own: Place) -> Mapping[str, Place]:
    """Where the paper's places are measured, by their names: there, if the run is at one of them, or at their embedded
    counterparts, if it is at one of those. Empty if it is elsewhere."""
    return next((places for places in (paper.places, paper.counterparts) if _at(places, own)), {})


def _at(places: Mapping[str, Place], own: Place) -> list[Place]:
    """The places with the same data set, target and architecture, with any weights."""
    key = (_architecture(own.model), own.dataset, own.target)
    return [place for place in places.values() if place.key == key]


def _unsuited(run: RunSettings, task: str, attack: str, defense: str) -> str:
    """Why a defense cannot be used against an attack, or the task cannot measure it; "" if both can or are unknown."""
    chain = () if defense in ("", UNDEFENDED, CLEAN_MODEL) else tuple(defense.split("+"))
    known = attack in attacks and all(name in defenses for name in chain)
    # The table names the defense already.
    return unsuited(run, task, attack, chain).removeprefix(f"{defense}: ") if known else ""


def _places(paper: Paper, spec: PaperTable, results: pd.DataFrame, own: Place) -> Sequence[tuple[Place, Place | None]]:
    """The places of the table's cells, each with the paper's place that it is compared with."""
    if sought := _sought(paper, own):
        there = [name for name in spec.places if name in sought]
        return [(place, paper.places[name]) for name in there for place in _measured(sought[name], spec, results, own)]
    if spec.beyond is None:
        return [(own, paper.places_of(spec)[0])]
    measured_places = [
        Place(label=str(dataset), model=str(model), dataset=str(dataset), target=str(target))
        for model, dataset, target in results[["model", "dataset", "target"]].drop_duplicates().to_numpy()
    ]
    if spec.beyond == "dataset":
        return [(place, None) for place in measured_places if place.dataset != own.dataset]
    others = (p for p in measured_places if p.model != own.model and p.dataset == own.dataset)
    return [(_with(place, label=place.model), None) for place in others]


def _measured(place: Place, spec: PaperTable, results: pd.DataFrame, own: Place) -> list[Place]:
    """A place with each measured model of its architecture, the run's own first.

    If the table has no rows or columns for places, only the first.
    """
    there = results[(results["dataset"] == place.dataset) & (results["target"] == place.target)]
    models = [model for model in there["model"].unique() if _architecture(model) == place.model]
    models.sort(key=lambda model: model != own.model)
    if len(models) > 1 and "place" in (*spec.rows, *spec.columns):
        return [_with(place, model=model, label=f"{place.label}, {model}") for model in models]
    return [_with(place, model=models[0]) if models else place]


def _with(place: Place, **changes: str) -> Place:
    return place.model_copy(update=changes)


def _architecture(label: str) -> str:
    """The architecture of a model, the first word of its label.

    For a model that was backdoored elsewhere it is the whole label, which equals no paper's.
    """
    return label if ", backdoored " in label else label.split()[0].replace("/", "-")


def _groups(rows: pd.DataFrame, spec: PaperTable) -> Groups:
    """A table's rows grouped by cell and metric; over all attacks if the table has none."""
    rows = rows[rows["metric"].isin(spec.metrics)]
    return (rows if spec.attacks else rows.assign(attack="")).groupby(KEYS, sort=False)


def _pick(
    groups: Groups | None, place: Place | None, method: Method, attack: str, perturbation: str, metric: str
) -> pd.DataFrame | None:
    """The rows of one cell and metric; None if there are none."""
    if groups is None or place is None:
        return None
    key = (*place.key, method.defense, method.variant, attack, perturbation, metric)
    return groups.get_group(key) if key in groups.indices else None


def _number(rows: pd.DataFrame) -> MeasuredNumber:
    sample = pooled(rows)
    values, seeds = rows["value"], rows["seed"].nunique()
    return MeasuredNumber(sample.value, sample.low, sample.high, sample.n, seeds, values.min(), values.max())


def _main_cells(results: pd.DataFrame, place: Place) -> pd.DataFrame:
    there = (results[["model", "dataset", "target"]] == list(place.key)).all(axis=1)
    return results[there & (results["variant"] == "")]
