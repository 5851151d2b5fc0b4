"""Compute every number of a results folder again, and say what differs."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from bench.core.images import hash_file, hash_of
from bench.core.metric import Observations
from bench.results.store import CARD, Store
from reports.mixing import name_of, refuse_mixture
from reports.results import (
    COLUMNS,
    KEYS,
    NUMBERS,
    PLACE,
    PREDICTIONS,
    RESULTS,
    RESULTS_PARQUET,
    SUMMARY,
    SUMMARY_KEYS,
    SUMMARY_NUMBERS,
    observations,
    place,
    read_table,
    rows,
    some_finished_cells,
    summarise,
)

# Counts must be equal; means to this share of themselves, since their last bits depend on the machine's sums.
PRECISION = 1e-9


@dataclass
class Verified:
    """What was compared (a count of each kind), and what differs (a line for each)."""

    compared: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The report, a line for each problem and one for what was compared."""
        counted = ", ".join(f"{n:,} {what}" for what, n in self.compared.items() if n)
        end = f"{len(self.problems)} of these differ" if self.problems else "all as computed again"
        return "\n".join([*self.problems, f"verified {counted}: {end}"])


def verify(out: Path) -> Verified:
    """Compare artefacts with their cards, predictions with artefacts, and the tables with the predictions.

    Every number is computed again from predictions.parquet, and the similarities that each evaluation stored. Other
    processes and machines give the same: bootstrap resamples are seeded.

    Raises:
        BenchError: there are no results, or they are of several versions, splits or checkpoints.
    """
    done, _ = some_finished_cells(out)
    refuse_mixture(out, done)
    result = Verified()
    _artefacts(out, result)
    tables = {name: read_table(out / name, NUMBERS) for name in (RESULTS, RESULTS_PARQUET)}
    summary = read_table(out / SUMMARY, SUMMARY_NUMBERS)
    again = _computed_again(out, done, result)
    for name, table in tables.items():
        _compare(name, table, again, KEYS, result)
    _compare(SUMMARY, summary, summarise(again), SUMMARY_KEYS, result)
    return result


def _artefacts(out: Path, result: Verified) -> None:
    """Each artefact's id is its folder's name and the hash of what determined it, its files have their hashes."""
    store = Store(out)
    for folder in sorted(path for path in store.root.glob("*/*") if not path.name.startswith(".")):
        name = folder.relative_to(out)
        result.compared["artefacts"] += 1
        try:
            card = store.card(folder.parent.name, folder.name)
            found, determined = card["id"], hash_of(card["determined_by"])
        except (OSError, ValueError, KeyError) as error:
            result.problems.append(f"{name}/{CARD} cannot be read: {type(error).__name__} {error}")
            continue
        if not found == determined == folder.name:
            result.problems.append(f"{name}: its card has the id {found}, and settings of the id {determined}")
        if "files" not in card:
            result.compared["artefacts without hashes of their files, made by an older version"] += 1
        for file, expected in card.get("files", {}).items():
            result.compared["files"] += 1
            if not (folder / file).is_file():
                result.problems.append(f"{name}/{file} is not there")
            elif hash_file(folder / file) != expected:
                result.problems.append(f"{name}/{file} is not the file that was written")


def _computed_again(out: Path, cells: list[dict], result: Verified) -> pd.DataFrame:
    """The tidy table, from predictions.parquet and the stored similarities."""
    published = read_table(out / PREDICTIONS, [])
    by_cell = {key: found.reset_index(drop=True) for key, found in published.groupby(PLACE, sort=False)}
    table: list[dict] = []
    for cell in cells:
        stored = observations(out, cell)
        found = by_cell.pop(tuple(place(cell)[key] for key in PLACE), None)
        if found is None:
            result.problems.append(f"{PREDICTIONS}: {name_of(cell)} is not there")
            continue
        predictions = found.reindex(columns=list(stored.predictions))
        result.compared["predictions"] += len(predictions)
        if differs := _difference(predictions, stored.predictions):
            result.problems.append(f"{PREDICTIONS}: {name_of(cell)}, {differs} than evaluation {cell['evaluation']}")
        table += rows(out, cell, Observations(predictions, stored.similarities, stored.target))
    for key in by_cell:
        result.problems.append(f"{PREDICTIONS}: {name_of(dict(zip(PLACE, key, strict=True)))} is no cell of the run")
    return pd.DataFrame(table, columns=COLUMNS)


def _difference(published: pd.DataFrame, stored: pd.DataFrame) -> str:
    """What differs, image by image; types of columns do not count, since cells with other columns lie in one file."""
    if len(published) != len(stored):
        return f"other images ({len(published)} and not {len(stored)})"
    differs = (published != stored).any(axis=1)
    first = f"{stored['id'][differs].iloc[0]} first" if differs.any() else ""
    return f"other predictions of {differs.sum()} images ({first})" if first else ""


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
        result.problems.append(f"{file}: {_row(keys, key)} is not there")
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
    perturbation = f" ({row['perturbation']})" if row["perturbation"] else ""
    return f"{row['metric']}{perturbation} of {name_of(row)}"
