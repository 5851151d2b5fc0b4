"""Tables of the page: rows of defenses, columns of attacks, so that both can be filtered."""

from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bench.core.names import CLEAN_MODEL
from bench.core.task import Task
from bench.results.tidy import DASH, summarise
from reports.paper_tables import ATTACKS, METRICS, PERTURBATIONS, TABLES
from reports.render import DAGGER, title, value_text

PLACE = ["model", "dataset", "target"]
NAMES = [*PLACE, "method", "defense", "attack", "perturbation", "metric"]


@dataclass(frozen=True)
class Number:
    """A cell of a grid: what it says, and in small print its interval or the paper's number."""

    text: str
    small: str = ""
    attack: str = ""


@dataclass(frozen=True)
class Row:
    names: tuple[str, ...]
    defense: str
    numbers: tuple[Number, ...]


@dataclass(frozen=True)
class Grid:
    """A table: names of its row headers, (label, attack) of its columns, rows."""

    title: str
    headers: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]


def main_grids(results: pd.DataFrame, task: type[Task], weak: Container[str] = ()) -> list[Grid]:
    """The matrix in each view of a task that has numbers: means over seeds, and the intervals of the images.

    A view has the attacks and defenses that it has a number of; attacks that are `weak` did not take, and are marked.
    """
    table = summarise(results)
    summary = dict(table.set_index(["defense", "attack", "metric", "perturbation"]).iterrows())
    attacks, present = list(results["attack"].unique()), list(results["defense"].unique())
    defenses = sorted(present, key=lambda name: (name != CLEAN_MODEL, present.index(name)))
    headline = tuple((metric, "") for metric in task.headline)
    names = " ".join([task.headline[0], *(f"({metric})" for metric in task.headline[1:])])
    grids = []
    for caption, metrics in {f"{names} in percent, and 95 % intervals": headline, **task.views}.items():
        shown = table[[pair in metrics for pair in zip(table["metric"], table["perturbation"], strict=True)]]
        columns = [attack for attack in attacks if (shown["attack"] == attack).any()]
        rows = []
        for defense in (name for name in defenses if (shown["defense"] == name).any()):
            numbers = []
            for attack in columns:
                keys = {metric: (defense, attack, metric, perturbation) for metric, perturbation in metrics}
                found = {metric: summary[key] for metric, key in keys.items() if key in summary}
                numbers.append(_measured(found, attack))
            rows.append(Row((defense,), defense, tuple(numbers)))
        if rows:
            labels = tuple((f"{a} {DAGGER}" if a in weak else a, a) for a in columns)
            grids.append(Grid(caption, ("defense",), labels, tuple(rows)))
    return grids


def paper_grids(folder: Path) -> list[Grid]:
    """The paper's tables that `reports.write_tables` wrote as CSV into a folder, in the paper's order."""
    files = {table: folder / f"{table.name}.csv" for table in TABLES}
    return [_paper_grid(title(table), _read(file)) for table, file in files.items() if file.is_file()]


def _read(file: Path) -> pd.DataFrame:
    """A paper's table: its names as text, "" where there is none."""
    table = pd.read_csv(file, dtype=dict.fromkeys(NAMES, str), na_values=[""], keep_default_na=False)
    return table.fillna(dict.fromkeys(NAMES, ""))


def _paper_grid(caption: str, table: pd.DataFrame) -> Grid:
    # A table of resistivity has perturbations for columns, one of costs its metrics.
    column = next((name for name in ("attack", "perturbation") if table[name].any()), "metric")
    columns = list(table[column].unique())
    headers = [*(name for name in PLACE if table[name].nunique() > 1), "method"]
    rows = []
    for key, row in table.groupby([*headers, "defense"], sort=False):
        numbers = [_published(row[row[column] == c], c if column == "attack" else "") for c in columns]
        *names, defense = map(str, key)
        rows.append(Row(tuple(names), defense, tuple(numbers)))
    labels = {"attack": ATTACKS, "perturbation": PERTURBATIONS, "metric": METRICS}[column]
    shown = tuple((labels.get(c, c), c if column == "attack" else "") for c in columns)
    return Grid(caption, tuple(headers), shown, tuple(rows))


def _measured(found: dict[str, pd.Series], attack: str) -> Number:
    """Means by metric, and below them their intervals and the first one's spread over seeds."""
    if not found:
        return Number(DASH, attack=attack)
    values = [value_text(metric, row["mean"]) for metric, row in found.items()]
    ends = [f"{value_text(metric, row['low'])}–{value_text(metric, row['high'])}" for metric, row in found.items()]
    small = _parentheses(ends)
    metric, first = next(iter(found.items()))
    if first["seeds"] > 1:
        small += f"; seeds {value_text(metric, first['min'])}..{value_text(metric, first['max'])}"
    return Number(_parentheses(values), small, attack)


def _published(rows: pd.DataFrame, attack: str) -> Number:
    """The measured numbers of a cell, and the paper's where they were asked for."""

    def said(column: str) -> str:
        if column not in rows:
            return ""
        known = rows[rows[column].notna()]
        return _parentheses([value_text(m, value) for m, value in zip(known["metric"], known[column], strict=True)])

    paper = said("published")
    value, mark = said("value"), "" if rows["took"].all() else f" {DAGGER}"
    return Number(value + mark if value else DASH, f"paper {paper}" if paper else "", attack)


def _parentheses(texts: Iterable[str]) -> str:
    first, *rest = [*texts, ""]
    return f"{first} ({rest[0]})" if rest and rest[0] else first
