"""The paper's tables as files: Markdown to read, CSV to compute with, LaTeX (booktabs) to print."""

import math
import re
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path

import pandas as pd

from bench.core.metric import metrics as registered
from bench.core.names import CLEAN_MODEL
from bench.results.tidy import DASH
from reports.cells import Cell, Number
from reports.costs import COSTS
from reports.paper_tables import ATTACKS, METRICS, PERTURBATIONS, Axis, PaperTable, Place

DAGGER = "†"
UNITS = {"seconds": " s", "peak_memory_mb": " MB"}
ESCAPES = str.maketrans(
    {letter: f"\\{letter}" for letter in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}"}
)
MINUS = re.compile(r"(?<![\w.-])-(?=\d)")
# A table that is wider than the line is scaled down to it.
FIT = r"\smallskip\small\setlength{\tabcolsep}{3pt}\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{"
Bold = Callable[[str], str]


def markdown(table: PaperTable, cells: list[Cell], notes: list[str], about: str) -> str:
    """The table with its best numbers in bold, and notes; beside the paper's numbers, below what is said about them."""
    body = layout(table, cells, lambda text: f"**{text}**")
    body.columns = [": ".join(map(str, c)) if isinstance(c, tuple) else str(c) for c in body.columns]
    blocks = [f"## {title(table)}", caption(table, cells), _markdown(body.reset_index()), *notes]
    if any(cell.published for cell in cells):
        blocks += ["### Published and measured", about, _markdown(comparison(table, cells))]
    return "\n\n".join(blocks) + "\n"


def latex(table: PaperTable, cells: list[Cell], notes: list[str], about: str) -> str:
    """The same for LaTeX: no table is wider than the line; notes stand below, those that tell a command as comments."""
    body = layout(table, cells, lambda text: rf"\textbf{{{text}}}")
    said = f"{table.title}. {caption(table, cells)}"
    comments = [note for note in notes if "`" in note]
    below = [note for note in notes if note not in comments]
    parts = ["% \\usepackage{booktabs,graphicx}", *(f"% {note}" for note in comments)]
    parts.append(_tabular(body, said, table.name, below))
    if any(cell.published for cell in cells):
        frame = comparison(table, cells).set_index([*table.rows, *table.columns])
        if all(" " in name for name in frame.columns):
            frame.columns = pd.MultiIndex.from_tuples([tuple(name.rsplit(" ", 1)) for name in frame.columns])
        said = f"{table.title}, published and measured. {about}"
        parts.append(_tabular(frame, said, f"{table.name}-published", []))
    return "\n".join(parts) + "\n"


def tidy(cells: list[Cell]) -> pd.DataFrame:
    """A row per cell and metric: what it is, value, 95 % interval, published value and the difference to it."""
    rows = []
    for cell in cells:
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
            }
            rows.append(what | (vars(number) if number else {}) | {"published": paper} | _difference(number, paper))
    frame = pd.DataFrame(rows)
    return frame.dropna(axis=1, how="all")


def value_text(metric: str, value: float, of_share: int = 1) -> str:
    """A value as it is printed: a PR, a time as h:mm:ss, another cost, or a share with some digits; a dash for NaN."""
    if math.isnan(value):
        return DASH
    if metric == "seconds":
        return str(timedelta(seconds=round(value)))
    return f"{value:,.{_digits(metric, of_share)}f}{UNITS.get(metric, '')}"


def title(table: PaperTable) -> str:
    return f"Table {table.name.removeprefix('table-')}: {table.title}"


def caption(table: PaperTable, cells: list[Cell]) -> str:
    """What a cell says, and of how many images and seeds."""
    images: dict[Place, int] = {}
    for cell in cells:
        for number in cell.measured.values():
            images[cell.place] = max(images.get(cell.place, 0), number.n)
    seeds = {number.seeds for cell in cells for number in cell.measured.values()}
    whats = {"ASR": "ASR (CA) in percent", "PA": "PA in percent", "PR_ratio": "PR", "seconds": "Time as h:mm:ss"}
    what = whats[table.metrics[0]]
    counted = f", {_span(images.values())} images, {_span(seeds)} seed(s)" if any(images.values()) else ""
    best = " Bold: the best of the attacked models." if _best(cells) else ""
    return f"{what}{counted}.{best}"


def layout(table: PaperTable, cells: list[Cell], bold: Bold) -> pd.DataFrame:
    """The table as it is printed: labels of the axes at rows and columns, texts in the cells."""
    texts: dict[tuple, dict[tuple, str]] = {}
    best = _best(cells)
    for cell in cells:
        for metrics in _together(table):
            row, column = (tuple(_labels(cell, axes, metrics[0]).values()) for axes in (table.rows, table.columns))
            texts.setdefault(row, {})[column] = _text(cell, metrics, best, bold)
    columns = list(dict.fromkeys(column for line in texts.values() for column in line))
    return pd.DataFrame(
        [[line.get(column, DASH) for column in columns] for line in texts.values()],
        index=_index(list(texts), table.rows),
        columns=_index(columns, table.columns),
    )


def comparison(table: PaperTable, cells: list[Cell]) -> pd.DataFrame:
    """A row per cell that the paper prints: for each metric published, measured, difference with its interval.

    The published number is taken as exact, since it comes without counts: the interval is that of the measured one.
    """
    rows = []
    for cell in (cell for cell in cells if cell.published):
        for metrics in _together(table):
            row = _labels(cell, (*table.rows, *table.columns), metrics[0])
            for metric in metrics:
                number, paper = cell.measured.get(metric), cell.published.get(metric)
                name = f"{METRICS.get(metric, metric)} " if "metric" not in row else ""
                row[f"{name}published"] = DASH if paper is None else value_text(metric, paper, of_share=2)
                row[f"{name}measured"] = DASH if number is None else value_text(metric, number.value)
                row[f"{name}difference"] = _difference_text(metric, _difference(number, paper))
            rows.append(row)
    return pd.DataFrame(rows)


def write(folder: Path, table: PaperTable, cells: list[Cell], notes: list[str], about: str) -> None:
    """Write NAME.md, NAME.csv and NAME.tex."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{table.name}.md").write_text(markdown(table, cells, notes, about))
    (folder / f"{table.name}.tex").write_text(latex(table, cells, notes, about))
    tidy(cells).to_csv(folder / f"{table.name}.csv", index=False)


def _markdown(frame: pd.DataFrame) -> str:
    return frame.to_markdown(index=False, disable_numparse=True)


def _tabular(frame: pd.DataFrame, caption: str, label: str, notes: list[str]) -> str:
    plain = frame.copy()
    plain.index.names, plain.columns.names = [None] * frame.index.nlevels, [None] * frame.columns.nlevels
    style = plain.style.format(_signs).format_index(_escaped, axis=0).format_index(_escaped, axis=1)
    shown, name = _escaped(caption), f"tab:{label}"
    text = style.to_latex(
        hrules=True, multicol_align="c", multirow_align="naive", position_float="centering", caption=shown, label=name
    )
    text = text.replace(r"\begin{tabular}", FIT + r"\begin{tabular}").replace(r"\end{tabular}", r"\end{tabular}}")
    below = "".join(f"\\par\\footnotesize {_signs(_escaped(note))}\n" for note in notes)
    return text.replace(r"\end{table}", below + r"\end{table}")


def _signs(text: object) -> str:
    return MINUS.sub("$-$", str(text)).replace(DASH, "--").replace(DAGGER, r"\dag{}")


def _escaped(text: object) -> str:
    return str(text).translate(ESCAPES)


def _text(cell: Cell, metrics: tuple[str, ...], best: dict, bold: Bold) -> str:
    """Such as `5.3 (94.0)`; a dash for what there is not."""
    texts = []
    for metric in metrics:
        number = cell.measured.get(metric)
        text = DASH if number is None else value_text(metric, number.value)
        texts.append(bold(text) if number is not None and best.get(_rivals(cell, metric)) == text else text)
    if not any(metric in cell.measured for metric in metrics):
        return DASH
    mark = "" if cell.took else f" {DAGGER}"
    return texts[0] + "".join(f" ({text})" for text in texts[1:]) + mark


def _best(cells: list[Cell]) -> dict[tuple, str]:
    """The best number, as printed, of those that are rivals; none of one alone.

    The clean model does not compete, and nothing is best against an attack that did not take.
    """
    rivals: dict[tuple, list[float]] = {}
    for cell in (cell for cell in cells if cell.method.defense != CLEAN_MODEL and cell.took):
        for metric, number in cell.measured.items():
            rivals.setdefault(_rivals(cell, metric), []).append(number.value)
    high = [name for name in registered if registered[name].better == "higher"]
    choose = {key: max if key[-1] in high else min for key in rivals}
    return {key: value_text(key[-1], choose[key](values)) for key, values in rivals.items() if len(values) > 1}


def _rivals(cell: Cell, metric: str) -> tuple:
    """What numbers are compared within: methods against the same attack at the same place."""
    return (cell.place, cell.attack, cell.perturbation, metric)


def _together(table: PaperTable) -> list[tuple[str, ...]]:
    """The metrics that share a cell."""
    return [(metric,) for metric in table.metrics] if "metric" in table.columns else [table.metrics]


def _labels(cell: Cell, axes: tuple[Axis, ...], metric: str) -> dict[str, str]:
    labels: dict[Axis, str] = {
        "place": cell.place.label,
        "method": cell.method.label,
        "attack": ATTACKS.get(cell.attack, cell.attack),
        "perturbation": PERTURBATIONS.get(cell.perturbation, cell.perturbation),
        "metric": METRICS.get(metric, metric),
    }
    return {axis: labels[axis] for axis in axes}


def _index(keys: list[tuple], axes: tuple[Axis, ...]) -> pd.Index:
    if len(axes) == 1:
        return pd.Index([key[0] for key in keys], name=axes[0])
    return pd.MultiIndex.from_tuples(keys, names=axes)


def _digits(metric: str, of_share: int = 1) -> int:
    return 0 if metric in COSTS else 3 if metric.startswith("PR") else of_share


def _difference(number: Number | None, paper: float | None) -> dict[str, float]:
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
