"""Tables of papers as Markdown and as data frames."""

import math
from collections.abc import Callable, Iterable
from datetime import timedelta

import pandas as pd

from bench.core.metric import metrics as registered
from bench.core.names import CLEAN_MODEL
from bench.papers import Axis, Place
from bench.results.tidy import DASH
from reports.paper.costs import COSTS
from reports.paper.tables import MeasuredNumber, Table, TableCell

DAGGER = "†"
UNITS = {"seconds": " s", "peak_memory_mb": " MB"}
Bold = Callable[[str], str]


def markdown(table: Table, notes: list[str], about: str) -> str:
    """The table with its best numbers in bold, and notes; with published numbers, if any, below the text `about`."""
    body = layout(table, lambda text: f"**{text}**")
    body.columns = [": ".join(map(str, c)) if isinstance(c, tuple) else str(c) for c in body.columns]
    blocks = [f"## {table.title}", caption(table), _markdown(body.reset_index()), *notes]
    if table.has_published:
        blocks += ["### Published and measured", about, _markdown(comparison(table))]
    return "\n\n".join(blocks) + "\n"


def tidy(table: Table) -> pd.DataFrame:
    """A row per cell and metric: its names, value, 95 % interval, published value, and the difference to it."""
    rows = []
    for cell in table.cells:
        for metric in dict.fromkeys((*cell.measured, *cell.published)):
            number, paper = cell.measured.get(metric), cell.published.get(metric)
            what = {
                "model": cell.place.model,
                "dataset": cell.place.dataset,
                "target": cell.place.target,
                "method": cell.method.label,
                "defense": cell.method.defense,
                "attack": cell.attack,
                "perturbation": cell.perturbation,
                "metric": metric,
                "took": cell.took,
                "stands_for": cell.stands_for or None,
            }
            rows.append(what | (vars(number) if number else {}) | {"published": paper} | _difference(number, paper))
    frame = pd.DataFrame(rows)
    return frame.dropna(axis=1, how="all")


def value_text(metric: str, value: float, of_share: int = 1) -> str:
    """The printed form of a value: seconds as h:mm:ss, shares with `of_share` digits, a dash for NaN."""
    if math.isnan(value):
        return DASH
    if metric == "seconds":
        return str(timedelta(seconds=round(value)))
    return f"{value:,.{_digits(metric, of_share)}f}{UNITS.get(metric, '')}"


def in_parentheses(texts: Iterable[str]) -> str:
    """The first text, followed by the others, each in parentheses.

    >>> in_parentheses(["ASR", "CA"])
    'ASR (CA)'
    """
    first, *others = [*texts] or [""]
    return first + "".join(f" ({text})" for text in others)


def caption(table: Table) -> str:
    """The meaning of the numbers, and the numbers of images and seeds."""
    images: dict[Place, int] = {}
    for cell in table.cells:
        for number in cell.measured.values():
            images[cell.place] = max(images.get(cell.place, 0), number.n)
    seeds = {number.seeds for cell in table.cells for number in cell.measured.values()}
    counted = f"{_span(images.values())} images, {_span(seeds)} seed(s)" if any(images.values()) else ""
    best = " Bold: the best of the attacked models." if _best(table) else ""
    return f"{', '.join(part for part in (_meaning(table), counted) if part)}.{best}"


def layout(table: Table, bold: Bold) -> pd.DataFrame:
    """The table in its printed form: labels of rows and columns, and texts of the cells."""
    texts: dict[tuple, dict[tuple, str]] = {}
    best, spec = _best(table), table.spec
    for cell in table.cells:
        for metrics in _together(table):
            row, column = (tuple(_labels(table, cell, axes, metrics[0]).values()) for axes in (spec.rows, spec.columns))
            texts.setdefault(row, {})[column] = _text(cell, metrics, best, bold)
    columns = list(dict.fromkeys(column for line in texts.values() for column in line))
    return pd.DataFrame(
        [[line.get(column, DASH) for column in columns] for line in texts.values()],
        index=_index(list(texts), spec.rows),
        columns=_index(columns, spec.columns),
    )


def comparison(table: Table) -> pd.DataFrame:
    """A row per published cell; for each metric the published and measured numbers, and their difference.

    The published number is taken as exact, as it has no counts; so the interval is that of the measured one.
    """
    rows = []
    for cell in (cell for cell in table.cells if cell.published):
        for metrics in _together(table):
            row = _labels(table, cell, (*table.spec.rows, *table.spec.columns), metrics[0])
            for metric in metrics:
                number, paper = cell.measured.get(metric), cell.published.get(metric)
                name = f"{_label(table, metric)} " if "metric" not in row else ""
                row[f"{name}published"] = DASH if paper is None else value_text(metric, paper, of_share=2)
                row[f"{name}measured"] = DASH if number is None else value_text(metric, number.value)
                row[f"{name}difference"] = _difference_text(metric, _difference(number, paper))
            rows.append(row)
    return pd.DataFrame(rows)


def _markdown(frame: pd.DataFrame) -> str:
    return frame.to_markdown(index=False, disable_numparse=True)


def _meaning(table: Table) -> str:
    """The meaning of the numbers, such as `ASR (CA) in percent`."""
    metrics = table.spec.metrics
    unit = "in percent" if all(map(_is_share, metrics)) else ""
    if table.metrics_apart:
        return "Time as h:mm:ss" if "seconds" in metrics else unit.capitalize()
    return f"{in_parentheses(_label(table, metric) for metric in metrics)} {unit}".rstrip()


def _text(cell: TableCell, metrics: tuple[str, ...], best: dict, bold: Bold) -> str:
    """The text of a cell, such as `5.3 (94.0)`; a dash for a missing number."""
    if not any(metric in cell.measured for metric in metrics):
        return DASH
    texts = []
    for metric in metrics:
        number = cell.measured.get(metric)
        text = DASH if number is None else value_text(metric, number.value)
        texts.append(bold(text) if number is not None and best.get(_rivals(cell, metric)) == text else text)
    return in_parentheses(texts) + ("" if cell.took else f" {DAGGER}")


def _best(table: Table) -> dict[tuple, str]:
    """The printed form of the best number of each group of two or more (`_rivals`).

    The clean model and attacks that did not take are left out.
    """
    rivals: dict[tuple, list[float]] = {}
    for cell in (cell for cell in table.cells if cell.method.defense != CLEAN_MODEL and cell.took):
        for metric, number in cell.measured.items():
            rivals.setdefault(_rivals(cell, metric), []).append(number.value)
    high = [name for name in registered if registered[name].better == "higher"]
    choose = {key: max if key[-1] in high else min for key in rivals}
    return {key: value_text(key[-1], choose[key](values)) for key, values in rivals.items() if len(values) > 1}


def _rivals(cell: TableCell, metric: str) -> tuple:
    """The group within which a number can be the best: methods against one attack on one data set and model."""
    return (cell.place, cell.attack, cell.perturbation, metric)


def _together(table: Table) -> list[tuple[str, ...]]:
    """The metrics of the table, grouped by those in one cell."""
    return [(metric,) for metric in table.spec.metrics] if table.metrics_apart else [table.spec.metrics]


def _labels(table: Table, cell: TableCell, axes: tuple[Axis, ...], metric: str) -> dict[str, str]:
    names = table.paper.labels
    labels: dict[Axis, str] = {
        "place": cell.place.label,
        "method": cell.method.label,
        "attack": names.attacks.get(cell.attack, cell.attack),
        "perturbation": names.perturbations.get(cell.perturbation, cell.perturbation),
        "metric": _label(table, metric),
    }
    return {axis: labels[axis] for axis in axes}


def _label(table: Table, metric: str) -> str:
    return table.paper.labels.metrics.get(metric, metric)


def _index(keys: list[tuple], axes: tuple[Axis, ...]) -> pd.Index:
    if len(axes) == 1:
        return pd.Index([key[0] for key in keys], name=axes[0])
    return pd.MultiIndex.from_tuples(keys, names=axes)


def _digits(metric: str, of_share: int = 1) -> int:
    return 0 if metric in COSTS else of_share if _is_share(metric) else 3


def _is_share(metric: str) -> bool:
    """Whether a metric is in percent."""
    return metric in registered and registered[metric].hits is not None


def _difference(number: MeasuredNumber | None, paper: float | None) -> dict[str, float]:
    if number is None or paper is None:
        return {}
    ends = {"difference": number.value, "difference_low": number.low, "difference_high": number.high}
    return {name: end - paper for name, end in ends.items()}


def _difference_text(metric: str, difference: dict[str, float]) -> str:
    if not difference:
        return DASH
    value, low, high = (f"{end:+,.{_digits(metric)}f}" for end in difference.values())
    return f"{value}{UNITS.get(metric, '')}" if "nan" in low else f"{value} [{low}, {high}]"


def _span(numbers: Iterable[int]) -> str:
    values = sorted(set(numbers))
    return f"{values[0]:,}" + (f" to {values[-1]:,}" if len(values) > 1 else "")
