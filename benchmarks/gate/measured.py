"""What the gate's benchmarks share: numbers of a results folder, and tables that grow row by row, so that a script can
be interrupted."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bench.results.folder import ResultsFolder


def shares(folder: ResultsFolder, metrics: Sequence[str] = ("ASR", "CA")) -> pd.DataFrame:
    """Attack, defense, seed, metric, value in percent, n."""
    rows = folder.results
    return rows[rows["metric"].isin(metrics)][["attack", "defense", "seed", "metric", "value", "n"]]


def known(file: Path, key: Sequence[str]) -> set[tuple]:
    """The keys of the rows that a table has already."""
    if not file.is_file():
        return set()
    return set(pd.read_csv(file)[list(key)].itertuples(index=False, name=None))


def append(file: Path, rows: pd.DataFrame) -> None:
    """Add rows to a table, which comes to be with the first ones."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows.to_csv(file, mode="a", header=not file.is_file(), index=False)
