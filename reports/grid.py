"""Tables of the page: rows of defenses, columns of attacks, so that both can be filtered."""

from collections.abc import Container
from dataclasses import dataclass

import pandas as pd

from bench.core.names import CLEAN_MODEL
from bench.core.task import Task
from bench.results.tidy import DASH, summarise
from reports.paper.render import DAGGER, in_parentheses, value_text


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


def _measured(found: dict[str, pd.Series], attack: str) -> Number:
    """Means by metric, and below them their intervals and spreads over seeds."""
    if not found:
        return Number(DASH, attack=attack)
    values = [value_text(metric, row["mean"]) for metric, row in found.items()]
    ends = [f"{value_text(metric, row['low'])}–{value_text(metric, row['high'])}" for metric, row in found.items()]
    small = in_parentheses(ends)
    if any(row["seeds"] > 1 for row in found.values()):
        spans = (f"{value_text(metric, row['min'])}..{value_text(metric, row['max'])}" for metric, row in found.items())
        small += f"; seeds {in_parentheses(spans)}"
    return Number(in_parentheses(values), small, attack)
