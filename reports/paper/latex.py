"""Tables of papers for LaTeX, with booktabs, scaled to the width of the line."""

import re
from collections.abc import Hashable, Iterator, Sequence
from itertools import groupby

import pandas as pd

from bench.results.tidy import DASH
from reports.paper.render import DAGGER, caption, comparison, layout
from reports.paper.tables import Table

PACKAGES = r"% \usepackage{booktabs,graphicx}"
ESCAPES = str.maketrans(
    {letter: f"\\{letter}" for letter in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}"}
)
MINUS = re.compile(r"(?<![\w.-])-(?=\d)")
# A table that is wider than the line is scaled down to it.
FIT = r"\smallskip\small\setlength{\tabcolsep}{3pt}\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{"


def latex(table: Table, notes: Sequence[str], about: str) -> str:
    """A table, and a second one with published beside measured numbers if there are published ones.

    Notes are put below the table; those with a command become LaTeX comments.
    """
    comments = [note for note in notes if "`" in note]
    below = [note for note in notes if note not in comments]
    body = layout(table, lambda text: rf"\textbf{{{text}}}")
    title = table.spec.title
    lines = [PACKAGES, *(f"% {note}" for note in comments)]
    lines += _float(body, f"{title}. {caption(table)}", table.stem, below)
    if table.has_published:
        frame = _in_groups(comparison(table).set_index([*table.spec.rows, *table.spec.columns]))
        lines += ["", *_float(frame, f"{title}, published and measured. {about}", f"{table.stem}-published", [])]
    return "\n".join(lines) + "\n\n"


def tabular(frame: pd.DataFrame) -> Iterator[str]:
    """The lines of a tabular. Labels are escaped; of cells, only minus signs, dashes and daggers are translated.

    >>> print(*tabular(pd.DataFrame({"A_1": ["-2"]}, index=["50 %"])), sep="\\n")
    \\begin{tabular}{ll}
    \\toprule
     & A\\_1 \\\\
    \\midrule
    50 \\% & $-$2 \\\\
    \\bottomrule
    \\end{tabular}
    """
    rows, columns = _keys(frame.index), _keys(frame.columns)
    corner = [""] * frame.index.nlevels
    yield rf"\begin{{tabular}}{{{'l' * (len(corner) + len(columns))}}}"
    yield r"\toprule"
    for level in range(frame.columns.nlevels):
        yield _line([*corner, *_header(columns, level)])
    yield r"\midrule"
    before: tuple[Hashable, ...] = ()
    for key, texts in zip(rows, frame.itertuples(index=False, name=None), strict=True):
        # Repeated labels are left blank, except in the innermost level.
        names = ["" if i + 1 < len(key) and key[: i + 1] == before[: i + 1] else _escaped(n) for i, n in enumerate(key)]
        yield _line([*names, *map(_signs, texts)])
        before = key
    yield r"\bottomrule"
    yield r"\end{tabular}"


def _float(body: pd.DataFrame, text: str, label: str, notes: Sequence[str]) -> list[str]:
    first, *lines, last = tabular(body)
    return [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escaped(text)}}}",
        rf"\label{{tab:{label}}}",
        FIT + first,
        *lines,
        last + "}",
        *(rf"\par\footnotesize {_signs(_escaped(note))}" for note in notes),
        r"\end{table}",
    ]


def _in_groups(frame: pd.DataFrame) -> pd.DataFrame:
    """Split columns such as `ASR published` into two header levels, if all have two words."""
    if all(" " in name for name in frame.columns):
        frame.columns = pd.MultiIndex.from_tuples([tuple(name.rsplit(" ", 1)) for name in frame.columns])
    return frame


def _header(columns: Sequence[tuple[Hashable, ...]], level: int) -> Iterator[str]:
    """The labels of one header level; adjacent columns with the same label share it."""
    innermost = level + 1 == len(columns[0])
    for key, group in groupby(enumerate(columns), lambda at: (at[1][: level + 1], at[0] if innermost else 0)):
        label, width = _escaped(key[0][level]), len(list(group))
        yield label if width == 1 else rf"\multicolumn{{{width}}}{{c}}{{{label}}}"


def _keys(index: pd.Index) -> list[tuple[Hashable, ...]]:
    return [key if isinstance(key, tuple) else (key,) for key in index]


def _line(texts: Sequence[str]) -> str:
    return " & ".join(texts) + r" \\"


def _signs(text: object) -> str:
    return MINUS.sub("$-$", str(text)).replace(DASH, "--").replace(DAGGER, r"\dag{}")


def _escaped(text: object) -> str:
    return str(text).translate(ESCAPES)
