"""Compare two defenses on the same images: differences with intervals, and McNemar's test."""

import numpy as np
import pandas as pd

from bench.core.errors import BenchError, unknown
from bench.core.metric import Observations, metrics
from bench.core.names import CELL_COLUMNS
from bench.core.task import Task, tasks
from bench.results.folder import ResultsFolder
from bench.results.records import Cell
from metrics.intervals import mcnemar, newcombe

WHERE = [key for key in CELL_COLUMNS if key not in ("defense", "seed")]
ALL_SEEDS = "all"
COLUMNS = [*WHERE, "seed", "metric", "first", "second", "difference", "low", "high", "p", "first_only", "second_only"]

# Counts of images that are hits under both defenses, the first only, the second only, neither.
Table = tuple[int, int, int, int]


def compare(folder: ResultsFolder, first: str, second: str, attack: str | None = None) -> tuple[pd.DataFrame, int]:
    """Differences of a task's headline shares (ASR and CA), first minus second, in percentage points.

    [`low`, `high`] is Newcombe's 95 % interval for paired shares, `p` the p-value of the exact McNemar test.
    `first_only` and `second_only` count the images that are hits under that defense only. With several seeds there is a
    row `all`: its 2x2 table is the mean over seeds, so its interval is that of one seed (each image counts once), and
    its `p` is NaN.

    Returns:
        A table with a row per (attack, seed, metric), and how often only one of the two defenses is finished.

    Raises:
        BenchError: a defense or attack is unknown, no attack and seed has both, or they were evaluated on other images.
    """
    for kind, name in (("defense", first), ("defense", second), ("attack", attack)):
        known = sorted({getattr(cell, kind) for cell in folder.cells})
        if name is not None and name not in known:
            raise unknown(kind, name, known, f"These are the finished ones in {folder.out}.")
    places: dict[tuple, dict[str, Cell]] = {}
    for cell in folder.cells:
        # Two models can be paired only by the items of a published table.
        paired = bool(tasks[cell.task].published)
        if paired and cell.defense in (first, second) and attack in (None, cell.attack):
            where = tuple(cell.place[key] for key in (*WHERE, "seed"))
            places.setdefault(where, {})[cell.defense] = cell
    pairs = {where: pair for where, pair in places.items() if len(pair) == 2}
    if not pairs:
        raise BenchError(
            f"no attack and seed of {folder.out} has both {first} and {second}. Give --defenses {first},{second}"
        )
    tables: dict[tuple, dict[int, Table]] = {}
    for key, pair in pairs.items():
        where, seed = key[:-1], key[-1]
        for metric, table in _paired(folder, pair[first], pair[second]).items():
            tables.setdefault((*where, metric), {})[seed] = table
    rows = [
        dict(zip(WHERE, where, strict=True)) | {"seed": seed, "metric": metric} | row
        for (*where, metric), by_seed in tables.items()
        for seed, row in _rows(by_seed).items()
    ]
    return pd.DataFrame(rows, columns=COLUMNS), len(places) - len(pairs)


def _paired(folder: ResultsFolder, first: Cell, second: Cell) -> dict[str, Table]:
    """The 2x2 tables of two cells, by each headline metric that is a share."""
    task, observations = tasks[first.task], (folder.observations(first), folder.observations(second))
    _check_same_items(task, *observations, f"{first.defense} and {second.defense}, {first.attack}, seed {first.seed}")
    tables = {}
    for name in task.headline:
        hits = [measure(one) for one in observations if (measure := metrics[name].hits) is not None]
        pair = [rows for rows in hits if rows is not None]
        if len(pair) == 2:
            tables[name] = two_by_two(*pair)
    return tables


def two_by_two(first: pd.Series, second: pd.Series) -> Table:
    """Counts of paired hits (n,): both, the first only, the second only, neither."""
    return (
        int((first & second).sum()),
        int((first & ~second).sum()),
        int((~first & second).sum()),
        int((~first & ~second).sum()),
    )


def to_markdown(table: pd.DataFrame, first: str, second: str) -> str:
    """The differences as a Markdown table, with an explanation."""
    several = [name for name in WHERE if table[name].nunique() > 1 or name == "attack"]
    shown = table[[*several, "seed", "metric"]].copy()
    shown[f"{first} %"], shown[f"{second} %"] = (
        table["first"].map("{:.1f}".format),
        table["second"].map("{:.1f}".format),
    )
    ends = zip(table["difference"], table["low"], table["high"], strict=True)
    shown["difference [95 %], points"] = [f"{d:+.1f} [{low:+.1f}, {high:+.1f}]" for d, low, high in ends]
    shown["p"] = ["–" if np.isnan(p) else f"{p:.2g}" for p in table["p"]]
    shown["one alone"] = [f"{a:g} / {b:g}" for a, b in zip(table["first_only"], table["second_only"], strict=True)]
    lines = [
        f"{first} minus {second} on the same images; Newcombe's interval of paired shares, McNemar's exact test.",
        f"`one alone` counts images that are hits under {first} / under {second} alone.",
        "",
        shown.to_markdown(index=False, disable_numparse=True),
    ]
    if (table["seed"] == ALL_SEEDS).any():
        lines += [
            "",
            "Seed `all` is the mean over seeds. All seeds see the same images, so its interval is that of one seed's "
            "images, and McNemar's test is per seed only: pooled, it would count every image several times.",
        ]
    return "\n".join(lines)


def _rows(by_seed: dict[int, Table]) -> dict[int | str, dict[str, float]]:
    rows: dict[int | str, dict[str, float]] = {seed: _row([table]) for seed, table in by_seed.items()}
    if len(by_seed) > 1:
        rows[ALL_SEEDS] = _row(list(by_seed.values())) | {"p": np.nan}
    return rows


def _row(tables: list[Table]) -> dict[str, float]:
    both, first, second, neither = np.mean(tables, axis=0)
    n = both + first + second + neither
    low, high = newcombe(round(both), round(first), round(second), round(neither))
    percent = 100 / n if n else np.nan
    return {
        "first": percent * (both + first),
        "second": percent * (both + second),
        "difference": percent * (first - second),
        "low": 100 * low,
        "high": 100 * high,
        "p": mcnemar(round(first), round(second)),
        "first_only": first,
        "second_only": second,
    }


def _check_same_items(task: type[Task], first: Observations, second: Observations, where: str) -> None:
    columns = list(task.items)
    tables = [observations[task.published[0]][columns] for observations in (first, second)]
    if first.facts != second.facts or not tables[0].equals(tables[1]):
        raise BenchError(f"{where}: their images or labels differ, so they cannot be paired. Run both again.")
