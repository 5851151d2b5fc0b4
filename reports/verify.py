"""`bench verify`: recompute every number of a results folder, and list differences."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from bench.core.errors import BenchError
from bench.core.images import hash_file, hash_of
from bench.core.metric import Observations
from bench.core.names import CELL_COLUMNS
from bench.core.task import tasks
from bench.results.folder import ResultsFolder
from bench.results.records import Cell, cell_name
from bench.results.store import CARD, LEFT_OUT
from bench.results.tidy import KEYS, NUMBERS, SUMMARY_KEYS, SUMMARY_NUMBERS, summarise
from reports.files import (
    OVER_CELLS,
    OVER_CELLS_KEYS,
    RESULTS,
    RESULTS_PARQUET,
    SUMMARY,
    over_cells,
    published_tables,
    read_table,
)

# The relative tolerance of means, whose last bits depend on the machine; counts must be equal.
PRECISION = 1e-9


@dataclass
class Verified:
    """How much was compared, by kind, and the differences, a line each."""

    compared: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The report: a line for each difference, and one that counts what was compared."""
        counted = ", ".join(f"{n:,} {what}" for what, n in self.compared.items() if n)
        end = f"{len(self.problems)} of these differ" if self.problems else "all as computed again"
        return "\n".join([*self.problems, f"verified {counted}: {end}"])


def verify(folder: ResultsFolder) -> Verified:
    """Compare artefacts with their cards, published observations with artefacts, and tables with observations.

    All numbers are recomputed from the observations that the report published, and from the artefacts for those it did
    not. Any process or machine gives the same numbers, as bootstrap resamples are seeded.

    Raises:
        BenchError: no cell is finished, or cells differ in code, split or checkpoint.
    """
    _ = folder.finished_cells
    folder.refuse_mixture()
    result = Verified()
    _artefacts(folder, result)
    out = folder.out
    tables = {name: read_table(out / name, NUMBERS) for name in (RESULTS, RESULTS_PARQUET)}
    summary, cells = read_table(out / SUMMARY, SUMMARY_NUMBERS), read_table(out / OVER_CELLS, NUMBERS)
    again = folder.numbers(_Observed(folder, result))
    for name, table in tables.items():
        _compare(name, table, again, KEYS, result)
    _compare(SUMMARY, summary, summarise(again), SUMMARY_KEYS, result)
    _compare(OVER_CELLS, cells, over_cells(again), OVER_CELLS_KEYS, result)
    return result


def _artefacts(folder: ResultsFolder, result: Verified) -> None:
    """Check that an artefact's id is its folder's name and the hash of its inputs, and check the hashes of files."""
    store = folder.store
    for path in sorted(path for path in store.root.glob("*/*") if not path.name.startswith(".")):
        name = path.relative_to(folder.out)
        result.compared["artefacts"] += 1
        try:
            card = store.card(path.parent.name, path.name)  # type: ignore[arg-type]
        except (OSError, KeyError, BenchError) as error:
            result.problems.append(f"{name}/{CARD} cannot be read: {type(error).__name__} {error}")
            continue
        if not card.id == hash_of(card.determined_by) == path.name:
            of_settings = hash_of(card.determined_by)
            result.problems.append(f"{name}: its card has the id {card.id}, and settings of the id {of_settings}")
        for file, expected in card.files.items():
            result.compared["files"] += 1
            if not (path / file).is_file():
                result.problems.append(f"{name}/{file} is missing")
            elif hash_file(path / file) != expected:
                result.problems.append(f"{name}/{file} is not the file that was written")
        for file in sorted(file.name for file in path.iterdir() if not file.name.startswith(".")):
            if file != CARD and file not in card.files:
                result.problems.append(f"{name}/{file} has no hash on the card: it was added later")
    for path in sorted((folder.out / LEFT_OUT).glob("*/*.json")):
        result.compared["cards of artefacts that were left out"] += 1
        card = store.card(path.parent.name, path.stem)  # type: ignore[arg-type]
        if not card.id == hash_of(card.determined_by) == path.stem:
            result.problems.append(f"{path.relative_to(folder.out)}: the card has the id {card.id}")


class _Observed:
    """Returns the observations of a cell, from the published tables if possible; records differences to artefacts."""

    def __init__(self, folder: ResultsFolder, result: Verified) -> None:
        self._folder, self._result = folder, result
        self._published: dict[str, dict[tuple, pd.DataFrame]] = {}
        cells = {tuple(cell.place.values()) for cell in folder.cells}
        for name in published_tables(folder):
            table = read_table(folder.out / f"{name}.parquet")
            by_cell = {key: rows.reset_index(drop=True) for key, rows in table.groupby(CELL_COLUMNS, sort=False)}
            self._published[name] = by_cell
            for key in by_cell.keys() - cells:
                place = cell_name(dict(zip(CELL_COLUMNS, key, strict=True)))
                result.problems.append(f"{name}.parquet: {place} is no finished cell")

    def __call__(self, cell: Cell) -> Observations:
        stored = self._folder.observations(cell)
        tables = dict(stored.tables)
        for name in tasks[cell.task].published:
            rows = self._published[name].get(tuple(cell.place.values()))
            if rows is None:
                self._result.problems.append(f"{name}.parquet: {cell.name} is missing")
                continue
            table = rows.reindex(columns=list(tables[name]))
            self._result.compared[name] += len(table)
            if differs := _difference(table, tables[name]):
                problem = f"{name}.parquet: {cell.name}, {differs} than evaluation {cell.evaluation}"
                self._result.problems.append(problem)
            tables[name] = table
        return Observations(tables, stored.facts)


def _difference(published: pd.DataFrame, stored: pd.DataFrame) -> str:
    """How two tables differ, ignoring the types of columns, which change if cells with other columns share a file."""
    if len(published) != len(stored):
        return f"other rows ({len(published)} and not {len(stored)})"
    same = (published == stored) | (published.isna() & stored.isna())
    differs = ~same.all(axis=1)
    if not differs.any():
        return ""
    first = stored[differs].iloc[0]
    return f"other values in {differs.sum()} rows ({first.get('id', first.name)} first)"


def _compare(file: str, stored: pd.DataFrame, again: pd.DataFrame, keys: list[str], result: Verified) -> None:
    if missing := [name for name in again if name not in stored]:
        result.problems.append(f"{file} lacks the columns {', '.join(map(str, missing))}: an older version wrote it")
        return
    first, second = (frame.set_index(keys) for frame in (stored, again))
    if first.index.has_duplicates:
        result.problems.append(f"{file} has rows twice: {_row(keys, first.index[first.index.duplicated()][0])}")
        return
    result.compared[f"rows of {file}"] += len(second)
    for key in second.index.difference(first.index, sort=False):
        result.problems.append(f"{file}: {_row(keys, key)} is missing")
    for key in first.index.difference(second.index, sort=False):
        result.problems.append(f"{file}: {_row(keys, key)} is of no finished cell")
    both = first.index.intersection(second.index, sort=False)
    first, second = first.loc[both], second.loc[both]
    for column in map(str, second):
        same = _same(first[column], second[column])
        for key in both[~same].tolist():
            values = [str(frame.at[key, column]) for frame in (first, second)]
            result.problems.append(f"{file}: {_row(keys, key)}: {column} {values[0]}, computed again {values[1]}")


def _same(stored: pd.Series, again: pd.Series) -> np.ndarray:
    if not pd.api.types.is_numeric_dtype(again):
        return (stored.astype(str) == again.astype(str)).to_numpy()
    exact = again.name in ("count", "n", "seeds")
    numbers = pd.to_numeric(stored, errors="coerce")
    return np.isclose(numbers, again.astype(float), rtol=0 if exact else PRECISION, atol=0, equal_nan=True)


def _row(keys: list[str], key: tuple) -> str:
    row = dict(zip(keys, key, strict=True))
    if "attack" not in row:
        return " ".join(map(str, key))
    perturbation = f" ({row['perturbation']})" if row["perturbation"] else ""
    return f"{row['metric']}{perturbation} of {cell_name(row)}"
