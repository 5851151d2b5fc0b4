"""Tables of papers as grids of the page."""

from pathlib import Path

import pandas as pd

from bench.papers import Paper, papers
from bench.results.folder import ResultsFolder
from bench.results.tidy import DASH
from reports.grid import Grid, GridCell, Row
from reports.paper.render import DAGGER, in_parentheses, value_text
from reports.paper.tables import stem, title
from reports.paper.write import TABLES

PLACE_COLUMNS = ["model", "dataset", "target"]
NAMES = [*PLACE_COLUMNS, "method", "defense", "attack", "perturbation", "metric"]


def paper_grids(folder: ResultsFolder) -> list[Grid]:
    """The papers' tables that `reports.paper.write` wrote as CSV, in the order of the papers."""
    tables = [(paper, name) for paper in papers.values() for name in paper.tables]
    files = {(paper.name, name): folder.out / TABLES / f"{stem(paper, name)}.csv" for paper, name in tables}
    return [
        _grid(paper, title(paper, name), _read(files[paper.name, name]))
        for paper, name in tables
        if files[paper.name, name].is_file()
    ]


def _read(file: Path) -> pd.DataFrame:
    """Read a table with its names as text, "" for missing ones."""
    table = pd.read_csv(file, dtype=dict.fromkeys(NAMES, str), na_values=[""], keep_default_na=False)
    return table.fillna(dict.fromkeys(NAMES, ""))


def _grid(paper: Paper, caption: str, table: pd.DataFrame) -> Grid:
    # Columns are attacks; perturbations in tables of resistivity; metrics in tables of costs.
    column = next((name for name in ("attack", "perturbation") if table[name].any()), "metric")
    columns = list(table[column].unique())
    headers = [*(name for name in PLACE_COLUMNS if table[name].nunique() > 1), "method"]
    rows = []
    for key, row in table.groupby([*headers, "defense"], sort=False):
        numbers = [_number(row[row[column] == c], c if column == "attack" else "") for c in columns]
        *names, defense = map(str, key)
        rows.append(Row(tuple(names), defense, tuple(numbers)))
    labels = getattr(paper.labels, f"{column}s")
    shown = tuple((labels.get(c, c), c if column == "attack" else "") for c in columns)
    return Grid(caption, tuple(headers), shown, tuple(rows))


def _number(rows: pd.DataFrame, attack: str) -> GridCell:
    """The measured numbers of a cell, and the paper's if they are in the table."""
    measured, paper = (_texts(rows, column) for column in ("value", "published"))
    mark = "" if rows["took"].all() else f" {DAGGER}"
    return GridCell(measured + mark if measured else DASH, f"paper {paper}" if paper else "", attack)


def _texts(rows: pd.DataFrame, column: str) -> str:
    if column not in rows:
        return ""
    known = rows[rows[column].notna()]
    return in_parentheses(value_text(m, value) for m, value in zip(known["metric"], known[column], strict=True))
