"""The published numbers of a paper, with bench's names."""

from typing import get_args

import pandas as pd

from bench.core.errors import BenchError
from bench.papers import Paper
from bench.papers.paper import Column

# Required columns of published.csv; the other columns may be missing.
NEEDED = ("version", "table", "metric", "value")


def published(paper: Paper, version: str) -> pd.DataFrame:
    """The published numbers of a version of a paper, a row each.

    Columns are `table`, `dataset`, `model`, `defense`, `attack`, `target`, `variant`, `perturbation`, `metric` and
    `value`: percent for shares, seconds, MB, or a count. Columns that do not apply are "".

    Raises:
        BenchError: the paper has no numbers of this version, or its file cannot be read.
    """
    rows = _printed(paper)
    rows = rows[rows["version"] == version].reset_index(drop=True)
    if rows.empty:
        raise BenchError(f"{paper.numbers} has no numbers of version {version}. Run it again without --published")
    translation = paper.translation
    filled = rows.copy()
    for column, meant in translation.empty.items():
        filled[column] = rows[column].where(rows[column] != "", rows[meant.by].map(meant.values).fillna(""))
    for column, names in translation.values.items():
        filled[column] = filled[column].replace(names)
    value = rows["value"] * rows["unit"].map(translation.units).fillna(1.0)
    return filled.assign(value=value).drop(columns=["version", "unit"])


def _printed(paper: Paper) -> pd.DataFrame:
    """The rows of published.csv, with all of bench's columns."""
    file, known = paper.numbers, get_args(Column)
    if file is None:
        raise BenchError(f"{paper.folder} has no published.csv. Run it again without --published")
    try:
        rows = pd.read_csv(file, keep_default_na=False, dtype=str)
        rows = rows.rename(columns={theirs: ours for ours, theirs in paper.translation.columns.items()})
        rows = rows.astype({"value": float} if "value" in rows else {})
    except (ValueError, OSError) as error:
        raise BenchError(f"{file} cannot be read: {error}. Its numbers must be numbers, such as 1.84") from None
    wrong = [f"it has the column {name}" for name in rows if name not in known]
    wrong += [f"it has no column {name}" for name in NEEDED if name not in rows]
    if wrong:
        raise BenchError(
            f"{file}: {'; '.join(wrong)}. The columns are {', '.join(known)}; published.yaml may rename them"
        )
    return rows.reindex(columns=[*rows, *(name for name in known if name not in rows)], fill_value="")
