"""Two defenses on the same images: how much they differ, and whether that is more than chance."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from bench.core.errors import BenchError, unknown
from bench.core.metric import Observations
from metrics.intervals import mcnemar, newcombe
from reports.results import PLACE, finished_cells, observations, place

# What counts as a hit of one image, among the images that the metric looks at.
HITS: dict[str, Callable[[Observations], pd.Series]] = {
    "ASR": lambda seen: (seen.predictions["triggered"] == seen.target)[seen.predictions["label"] != seen.target],
    "CA": lambda seen: seen.predictions["clean"] == seen.predictions["label"],
}
WHERE = [key for key in PLACE if key not in ("defense", "seed")]
ALL_SEEDS = "all"
COLUMNS = [*WHERE, "seed", "metric", "first", "second", "difference", "low", "high", "p", "first_only", "second_only"]

# Images that are hits under both defenses, the first alone, the second alone, neither.
Table = tuple[int, int, int, int]


def compare(out: Path, first: str, second: str, attack: str | None = None) -> tuple[pd.DataFrame, int]:
    """Differences of ASR and CA, first minus second, in percentage points; a row per (attack, seed, metric).

    `low` and `high` are Newcombe's 95 % interval for paired shares, `p` the exact McNemar test; `first_only` and
    `second_only` count the images that are hits under one defense alone. With several seeds a row `all` follows: its
    2x2 table is the mean over seeds, so its interval is that of one seed's images (the same images count once), and
    it has no p.

    Returns:
        The table, and the number of places where only one of the two defenses is finished.

    Raises:
        BenchError: an unknown defense or attack, no place with both, or other images in one than in the other.
    """
    cells, _ = finished_cells(out)
    for kind, name in (("defense", first), ("defense", second), ("attack", attack)):
        known = sorted({cell[kind] for cell in cells})
        if name is not None and name not in known:
            raise unknown(kind, name, known, f"These are the finished ones in {out}.")
    cells = [cell for cell in cells if attack in (None, cell["attack"])]
    places: dict[tuple, dict[str, dict]] = {}
    for cell in cells:
        if cell["defense"] in (first, second):
            where = tuple(place(cell)[key] for key in (*WHERE, "seed"))
            places.setdefault(where, {})[cell["defense"]] = cell
    pairs = {where: pair for where, pair in places.items() if len(pair) == 2}
    if not pairs:
        raise BenchError(f"no attack and seed of {out} has both {first} and {second}. Give --defenses {first},{second}")
    tables: dict[tuple, dict[int, Table]] = {}
    for key, pair in pairs.items():
        where, seed = key[:-1], key[-1]
        seen = observations(out, pair[first]), observations(out, pair[second])
        _same_images(*seen, f"{first} and {second}, {pair[first]['attack']}, seed {seed}")
        for metric, hits in HITS.items():
            tables.setdefault((*where, metric), {})[seed] = two_by_two(hits(seen[0]), hits(seen[1]))
    table = [
        dict(zip(WHERE, where, strict=True)) | {"seed": seed, "metric": metric} | row
        for (*where, metric), by_seed in tables.items()
        for seed, row in _rows(by_seed).items()
    ]
    return pd.DataFrame(table, columns=COLUMNS), len(places) - len(pairs)


def two_by_two(first: pd.Series, second: pd.Series) -> Table:
    """Counts of paired hits: both, the first alone, the second alone, neither."""
    return (
        int((first & second).sum()),
        int((first & ~second).sum()),
        int((~first & second).sum()),
        int((~first & ~second).sum()),
    )


def to_markdown(table: pd.DataFrame, first: str, second: str) -> str:
    """The differences as a Markdown table, with a sentence on what they say."""
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
    found: dict[int | str, dict[str, float]] = {seed: _row([table]) for seed, table in by_seed.items()}
    if len(by_seed) > 1:
        found[ALL_SEEDS] = _row(list(by_seed.values())) | {"p": np.nan}
    return found


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


def _same_images(first: Observations, second: Observations, where: str) -> None:
    columns = ["index", "id", "label"]
    if first.target != second.target or not first.predictions[columns].equals(second.predictions[columns]):
        raise BenchError(f"{where}: they saw other images or labels, so they cannot be paired. Run both anew.")
