"""The cells of one of the paper's tables: what was measured here, and what the paper prints."""

import itertools
from collections.abc import Hashable
from dataclasses import dataclass, field, replace

import pandas as pd

from bench.core.attack import attacks
from bench.core.defense import defenses
from bench.matrix import plan
from reports.paper_tables import PAPER_PLACES, Method, PaperTable, Place
from reports.results import pooled
from reports.table import did_not_take

KEYS = ["model", "dataset", "target", "defense", "variant", "attack", "perturbation", "metric"]
Groups = dict[Hashable, pd.DataFrame]


@dataclass(frozen=True)
class Number:
    """A measured value, its 95 % interval (NaN without one), of how many images (0 of a cost) and seeds."""

    value: float
    low: float
    high: float
    n: int
    seeds: int


@dataclass(frozen=True)
class Cell:
    """One cell of a table; `measured` and `published` are by metric, and lack what there is not."""

    place: Place
    method: Method
    attack: str = ""
    perturbation: str = ""
    measured: dict[str, Number] = field(default_factory=dict)
    published: dict[str, float] = field(default_factory=dict)
    applicable: bool = True
    took: bool = True


def table_cells(
    table: PaperTable, results: pd.DataFrame, own: Place, took: float, published: pd.DataFrame | None = None
) -> list[Cell]:
    """All cells of a table, measured or not, in its order.

    Args:
        results: a row per (cell, seed, metric, perturbation), as `reports.results.collect` makes it.
        own: where the run's own cells are; it decides whether the table has the paper's places or stands in for them.
        took: undefended ASR in percent below which an attack did not take.
        published: numbers of the paper, as `reports.published.published` gives them.
    """
    here = _groups(results, table)
    theirs = _groups(published[published["table"] == table.published], table) if published is not None else {}
    cells = []
    for place, counterpart in _places(table, results, own):
        weak = did_not_take(_main_cells(results, place), took)
        axes = (table.methods, table.attacks or ("",), table.perturbations or ("",))
        for method, attack, perturbation in itertools.product(*axes):
            ours = {m: _pick(here, place, method, attack, perturbation, m) for m in table.metrics}
            paper = {m: _pick(theirs, counterpart, method, attack, perturbation, m) for m in table.metrics}
            cells.append(
                Cell(
                    place,
                    method,
                    attack,
                    perturbation,
                    {m: _number(rows) for m, rows in ours.items() if rows is not None},
                    {m: float(rows["value"].iloc[0]) for m, rows in paper.items() if rows is not None},
                    applicable(method.defense, attack),
                    attack not in weak,
                )
            )
    return cells


def own_place(model: str, dataset: str, target: str) -> Place:
    """Where a run's own cells are; `model` is its label."""
    return Place(dataset, model, dataset, target.lower())


def is_paper_place(place: Place) -> bool:
    """Whether the paper measured there, so that numbers can be compared as a replication."""
    return replace(place, model=_architecture(place.model)).key in PAPER_PLACES


def applicable(defense: str, attack: str) -> bool:
    """Whether a defense can face an attack: a key in the text needs a text side. Unknown names pass."""
    return attack not in attacks or plan.applicable((p for p in defense.split("+") if p in defenses), attack)


def _places(table: PaperTable, results: pd.DataFrame, own: Place) -> list[tuple[Place, Place | None]]:
    """Where the table's cells are measured, each with the paper's place that it is compared with."""
    if is_paper_place(own):
        return [(measured, place) for place in table.places for measured in _measured(place, table, results, own)]
    if table.beyond is None:
        return [(own, table.places[0])]
    seen = [Place("", *map(str, key)) for key in results[["model", "dataset", "target"]].drop_duplicates().to_numpy()]
    if table.beyond == "dataset":
        return [(replace(place, label=place.dataset), None) for place in seen if place.dataset != own.dataset]
    others = (place for place in seen if place.model != own.model and place.dataset == own.dataset)
    return [(replace(place, label=place.model), None) for place in others]


def _measured(place: Place, table: PaperTable, results: pd.DataFrame, own: Place) -> list[Place]:
    """A place of the paper with the models of its architecture that were measured there, the run's own first.

    A table that has no room for several shows the first.
    """
    there = results[(results["dataset"] == place.dataset) & (results["target"] == place.target)]
    models = [model for model in there["model"].unique() if _architecture(model) == place.model]
    models.sort(key=lambda model: model != own.model)
    if len(models) > 1 and "place" in (*table.rows, *table.columns):
        return [replace(place, model=model, label=f"{place.label}, {model}") for model in models]
    return [replace(place, model=models[0]) if models else place]


def _architecture(label: str) -> str:
    """The architecture of a model's label, its first word; the label itself if it was backdoored elsewhere, since that
    is no model of the paper's."""
    return label if ", backdoored " in label else label.split()[0].replace("/", "-")


def _groups(rows: pd.DataFrame, table: PaperTable) -> Groups:
    """Rows by cell and metric of the table; of one without attacks, those of all attacks together."""
    rows = rows[rows["metric"].isin(table.metrics)]
    return dict(iter((rows if table.attacks else rows.assign(attack="")).groupby(KEYS, sort=False)))


def _pick(
    groups: Groups, place: Place | None, method: Method, attack: str, perturbation: str, metric: str
) -> pd.DataFrame | None:
    """The rows of one cell and metric; None where there are none."""
    if place is None:
        return None
    keys = ((*place.key, method.defense, variant, attack, perturbation, metric) for variant in method.variants)
    return next((groups[key] for key in keys if key in groups), None)


def _number(rows: pd.DataFrame) -> Number:
    sample = pooled(rows)
    return Number(sample.value, sample.low, sample.high, sample.n, rows["seed"].nunique())


def _main_cells(results: pd.DataFrame, place: Place) -> pd.DataFrame:
    there = (results[["model", "dataset", "target"]] == list(place.key)).all(axis=1)
    return results[there & (results["variant"] == "")]
