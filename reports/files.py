"""Writing and reading the tables of a report."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bench.core.errors import BenchError
from bench.core.metric import cell_metrics
from bench.core.names import CELL_COLUMNS
from bench.core.task import tasks
from bench.results.folder import ResultsFolder
from bench.results.tidy import NUMBERS, summarise

RESULTS, RESULTS_PARQUET = "results.csv", "results.parquet"
SUMMARY = "summary.csv"
OVER_CELLS = "cell_metrics.csv"
OVER_CELLS_KEYS = ["task", "metric", "what"]
OVER_CELLS_COLUMNS = [*OVER_CELLS_KEYS, *NUMBERS, "note"]


def write_results(folder: ResultsFolder) -> None:
    """Write the results (CSV, Parquet), their summary over seeds, metrics over cells, and published observations."""
    out, results = folder.out, folder.results
    results.to_csv(out / RESULTS, index=False)
    results.to_parquet(out / RESULTS_PARQUET, index=False)
    summarise(results).to_csv(out / SUMMARY, index=False)
    over_cells(results).to_csv(out / OVER_CELLS, index=False)
    for name in published_tables(folder):
        all_observations(folder, name).to_parquet(out / f"{name}.parquet", index=False)


def over_cells(results: pd.DataFrame) -> pd.DataFrame:
    """All metrics over cells of the results: a row per number, or per reason why there is none."""
    rows = []
    for name in cell_metrics:
        task = cell_metrics[name].task
        of_task = results[results["task"] == task]
        if of_task.empty:
            continue
        for number in cell_metrics[name].measure(of_task):
            values = vars(number.estimate) if number.estimate else {}
            rows.append({"task": task, "metric": name, "what": number.what, **values, "note": number.note})
    return pd.DataFrame(rows, columns=OVER_CELLS_COLUMNS)


def published_tables(folder: ResultsFolder) -> list[str]:
    """The tables of observations that are written for all cells together."""
    return list(dict.fromkeys(name for cell in folder.cells for name in tasks[cell.task].published))


def all_observations(folder: ResultsFolder, name: str) -> pd.DataFrame:
    """One table of observations, joined over all finished cells that have it, with the columns of the cells."""
    frames = []
    for cell in folder.cells:
        if name in tasks[cell.task].published:
            frames.append(folder.observations(cell)[name].assign(**cell.place))
    joined = pd.concat(frames, ignore_index=True)
    return joined[[*CELL_COLUMNS, *(column for column in joined if column not in CELL_COLUMNS)]]


def read_table(file: Path, numbers: Sequence[str] = ()) -> pd.DataFrame:
    """Read a table that a report wrote: exact numbers in the columns `numbers`, "" for empty text.

    Raises:
        BenchError: the file is missing or cannot be read.
    """
    if not file.is_file():
        raise BenchError(f"{file} is missing. `bench report {file.parent}` writes it.")
    try:
        if file.suffix == ".parquet":
            return pd.read_parquet(file)
        kinds: defaultdict[str, type] = defaultdict(lambda: str, dict.fromkeys(numbers, float) | {"seed": int})
        missing = {name: [""] for name in numbers}
        return pd.read_csv(file, dtype=kinds, keep_default_na=False, na_values=missing)
    except (ValueError, OSError) as error:
        raise BenchError(f"{file} cannot be read: {error}. `bench report {file.parent}` writes it again.") from None
