"""Tables of the page, with a row per defense and a column per attack, so that both can be filtered."""

from collections.abc import Container
from dataclasses import dataclass

import pandas as pd

from bench.core.task import Task
from bench.results.tidy import DASH, in_order, summarise
from reports.paper.render import DAGGER, in_parentheses, value_text


@dataclass(frozen=True)
class GridCell:
    """A cell of a grid: its text, and in small print the interval or the paper's number."""

    text: str
    small: str = ""
    attack: str = ""


@dataclass(frozen=True)
class Row:
    names: tuple[str, ...]
    defense: str
    numbers: tuple[GridCell, ...]


@dataclass(frozen=True)
class Grid:
    """A table: titles of its header columns, (label, attack) of its other columns, and its rows."""

    title: str
    headers: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]


def main_grids(results: pd.DataFrame, task: type[Task], weak: Container[str] = ()) -> list[Grid]:
    """A grid for the headline and each further view of a task: means over seeds, with intervals.

    Views without numbers are left out, as are attacks and defenses without a number in a view. Attacks in `weak` did
    not take and are marked.
    """
    table = summarise(results)
    summary = dict(table.set_index(["defense", "attack", "metric", "perturbation"]).iterrows())
    attacks, defenses = list(results["attack"].unique()), in_order(results["defense"])
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
                available = {metric: summary[key] for metric, key in keys.items() if key in summary}
                numbers.append(_measured(available, attack))
            rows.append(Row((defense,), defense, tuple(numbers)))
        if rows:
            labels = tuple((f"{a} {DAGGER}" if a in weak else a, a) for a in columns)
            grids.append(Grid(caption, ("defense",), labels, tuple(rows)))
    return grids


def _measured(summaries: dict[str, pd.Series], attack: str) -> GridCell:
    """The means of metrics, and in small print their intervals and their spread over seeds."""
    if not summaries:
        return GridCell(DASH, attack=attack)
    values = [value_text(metric, row["mean"]) for metric, row in summaries.items()]
    ends = [f"{value_text(metric, row['low'])}–{value_text(metric, row['high'])}" for metric, row in summaries.items()]
    small = in_parentheses(ends)
    if any(row["seeds"] > 1 for row in summaries.values()):
        spans = (f"{value_text(name, row['min'])}..{value_text(name, row['max'])}" for name, row in summaries.items())
        small += f"; seeds {in_parentheses(spans)}"
    return GridCell(in_parentheses(values), small, attack)
