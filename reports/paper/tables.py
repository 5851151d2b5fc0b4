"""A table of a paper: for each cell, what was measured here and what the paper prints."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd
from pandas.api.typing import DataFrameGroupBy

from bench.core.attack import attacks
from bench.core.defense import defenses
from bench.core.names import CLEAN_MODEL, UNDEFENDED
from bench.core.task import tasks
from bench.experiment.settings import RunSettings
from bench.experiment.suites import EMBEDDED
from bench.matrix.plan import unsuited
from bench.papers import Method, Paper, PaperTable, Place, papers, table_name
from bench.results.tidy import did_not_take, pooled

KEYS = ["model", "dataset", "target", "defense", "variant", "attack", "perturbation", "metric"]
Groups = DataFrameGroupBy


@dataclass(frozen=True)
class Number:
    """A measured value, its 95 % interval (NaN without one), of how many images (0 of a cost) and seeds, and these
    seeds' least and largest value."""

    value: float
    low: float
    high: float
    n: int
    seeds: int
    min: float
    max: float


@dataclass(frozen=True)
class Cell:
    """One cell of a table; `measured` and `published` are by metric, and lack what there is not.

    `reason` says why the cell cannot be measured; empty where it can.
    """

    place: Place
    method: Method
    attack: str = ""
    perturbation: str = ""
    measured: dict[str, Number] = field(default_factory=dict)
    published: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    took: bool = True


@dataclass(frozen=True)
class Table:
    """A table of a paper beside a run: all its cells, measured or not, in the paper's order."""

    paper: Paper
    name: str
    run: RunSettings
    cells: tuple[Cell, ...]

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
        """Where the run's own cells are."""
        return own_place(self.run)

    @property
    def replicates(self) -> bool:
        """Whether the run is at a place of the paper, so that numbers can be compared as a replication."""
        return is_paper_place(self.paper, self.own)

    @property
    def measured(self) -> bool:
        """Whether any cell is."""
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
        """Variants that the suite leaves out here, and why."""
        declared = self.paper.suites[self.spec.suite].declared(self.run.dataset == EMBEDDED)
        return {name: reason for name, reason in declared.items() if isinstance(reason, str)}

    @property
    def lacking(self) -> list[Cell]:
        """Cells that could be measured, and are not."""
        return [c for c in self.cells if not (c.measured or c.reason or c.method.variant in self.left_out)]


def fill(
    paper: Paper, name: str, results: pd.DataFrame, run: RunSettings, published: pd.DataFrame | None = None
) -> Table:
    """A table of a paper with what was measured of it.

    Args:
        results: the tidy results of a folder, and the costs of its defenses.
        run: the folder's last run; its place decides whether the table has the paper's places or stands in for them.
        published: numbers of the paper, as `reports.paper.published.published` gives them.
    """
    spec, here = paper.tables[name], results[results["task"] == paper.tables[name].task]
    ours = _groups(here, spec)
    theirs = None if published is None else _groups(published[published["table"] == spec.published], spec)
    axes = (paper.methods_of(spec), spec.attacks or ("",), spec.perturbations or ("",))
    cells = []
    for place, counterpart in _places(paper, spec, here, own_place(run)):
        weak = did_not_take(_main_cells(here, place), run.took, tasks[spec.task].headline[0])
        for method, attack, perturbation in itertools.product(*axes):
            what = (method, attack, perturbation)
            measured = {m: _pick(ours, place, *what, m) for m in spec.metrics}
            printed = {m: _pick(theirs, counterpart, *what, m) for m in spec.metrics}
            cells.append(
                Cell(
                    place,
                    *what,
                    {m: _number(rows) for m, rows in measured.items() if rows is not None},
                    {m: float(rows["value"].iloc[0]) for m, rows in printed.items() if rows is not None},
                    _unsuited(run, spec.task, attack, method.defense),
                    attack not in weak,
                )
            )
    return Table(paper, name, run, tuple(cells))


def title(paper: Paper, name: str) -> str:
    """Such as `Table 1: Defenses`; where there are several papers, it says whose."""
    of = f" of {paper.name}" if len(papers) > 1 else ""
    return f"Table {name.removeprefix('table-')}{of}: {paper.tables[name].title}"


def stem(paper: Paper, name: str) -> str:
    """What the table's files are called, without their endings."""
    return table_name(paper, name).replace("/", "-")


def own_place(run: RunSettings) -> Place:
    """Where a run's own cells are."""
    return Place(label=run.place["dataset"], **run.place)


def is_paper_place(paper: Paper, place: Place) -> bool:
    """Whether the paper measured there, with whichever weights of the architecture."""
    return bool(paper_places(paper, place))


def paper_places(paper: Paper, place: Place) -> list[Place]:
    """The paper's places with the data set, the target and the architecture of a measured one."""
    key = (_architecture(place.model), place.dataset, place.target)
    return [theirs for theirs in paper.places.values() if theirs.key == key]


def _unsuited(run: RunSettings, task: str, attack: str, defense: str) -> str:
    """Why a defense cannot face an attack, or the task measure it; empty where it can. Unknown names pass."""
    chain = () if defense in ("", UNDEFENDED, CLEAN_MODEL) else tuple(defense.split("+"))
    known = attack in attacks and all(name in defenses for name in chain)
    # The table says which defense it is, so the reason need not.
    return unsuited(run, task, attack, chain).removeprefix(f"{defense}: ") if known else ""


def _places(paper: Paper, spec: PaperTable, results: pd.DataFrame, own: Place) -> Sequence[tuple[Place, Place | None]]:
    """Where the table's cells are measured, each with the paper's place that it is compared with."""
    places = paper.places_of(spec)
    if is_paper_place(paper, own):
        return [(measured, place) for place in places for measured in _measured(place, spec, results, own)]
    if spec.beyond is None:
        return [(own, places[0])]
    seen = [
        Place(label=str(dataset), model=str(model), dataset=str(dataset), target=str(target))
        for model, dataset, target in results[["model", "dataset", "target"]].drop_duplicates().to_numpy()
    ]
    if spec.beyond == "dataset":
        return [(place, None) for place in seen if place.dataset != own.dataset]
    others = (place for place in seen if place.model != own.model and place.dataset == own.dataset)
    return [(_with(place, label=place.model), None) for place in others]


def _measured(place: Place, spec: PaperTable, results: pd.DataFrame, own: Place) -> list[Place]:
    """A place of the paper with the models of its architecture that were measured there, the run's own first.

    A table that has no room for several shows the first.
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
    """The architecture of a model's label, its first word; the label itself if it was backdoored elsewhere, since that
    is no model of a paper's."""
    return label if ", backdoored " in label else label.split()[0].replace("/", "-")


def _groups(rows: pd.DataFrame, spec: PaperTable) -> Groups:
    """A table's rows by cell and metric; of a table without attacks, those of all attacks together."""
    rows = rows[rows["metric"].isin(spec.metrics)]
    return (rows if spec.attacks else rows.assign(attack="")).groupby(KEYS, sort=False)


def _pick(
    groups: Groups | None, place: Place | None, method: Method, attack: str, perturbation: str, metric: str
) -> pd.DataFrame | None:
    """The rows of one cell and metric; None where there are none."""
    if groups is None or place is None:
        return None
    key = (*place.key, method.defense, method.variant, attack, perturbation, metric)
    return groups.get_group(key) if key in groups.indices else None


def _number(rows: pd.DataFrame) -> Number:
    sample = pooled(rows)
    values = rows["value"]
    return Number(sample.value, sample.low, sample.high, sample.n, rows["seed"].nunique(), values.min(), values.max())


def _main_cells(results: pd.DataFrame, place: Place) -> pd.DataFrame:
    there = (results[["model", "dataset", "target"]] == list(place.key)).all(axis=1)
    return results[there & (results["variant"] == "")]
