"""Numbers of finished cells as tidy tables: a row per cell and metric, over seeds, and as it is printed."""

from collections.abc import Callable, Iterable, Sequence

import pandas as pd

from bench.core.metric import Estimate, Observations, metrics
from bench.core.names import CELL_COLUMNS, CLEAN_MODEL, UNDEFENDED
from bench.results.records import Cell, EvaluationCard
from metrics.intervals import wilson

KEYS = [*CELL_COLUMNS, "metric", "perturbation"]
NUMBERS = ["value", "count", "n", "low", "high"]
# Which evaluation it was, by what, where: `cell` is a hash of all that determines it.
ORIGIN = ["cell", "bench", "torch", "device", "hardware"]
COLUMNS = [*KEYS, *NUMBERS, *ORIGIN]
SUMMARY_KEYS = [key for key in KEYS if key != "seed"]
SUMMARY_NUMBERS = ["seeds", "mean", "min", "max", "count", "n", "low", "high"]
DASH = "–"
# What stands below tables over several seeds.
NOT_THE_SPREAD = (
    "Intervals (95 %) are of the sample of test images. The spread over seeds, min..max, is not in them and stands "
    "beside."
)


def rows_of(cell: Cell, card: EvaluationCard, seen: Observations) -> list[dict]:
    """All metrics of what one cell saw, as rows of the tidy table."""
    origin = {"cell": card.id} | {key: getattr(card, key) for key in ORIGIN[1:]}
    return [
        cell.place | {"metric": name, "perturbation": perturbation} | vars(estimate) | origin
        for name in metrics
        if metrics[name].task == cell.task
        for perturbation, estimate in metrics[name].measure(seen).items()
    ]


def pooled(over_seeds: pd.DataFrame) -> Estimate:
    """One metric's rows, a row per seed, as one estimate.

    All seeds see the same test images, so more seeds do not narrow the interval: it is that of one seed's images.
    Wilson's of the mean count for a share; for a mean over images, the mean of the seeds' ends. n is 0 for a number
    that is not of images, such as a cost.
    """
    value, count, n, low, high = over_seeds[NUMBERS].mean()
    if pd.notna(count):
        low, high = (100 * end for end in wilson(round(count), round(n)))
    return Estimate(float(value), float(count), 0 if pd.isna(n) else round(n), float(low), float(high))


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """A row per cell and metric over its seeds.

    `mean`, `min`, `max` of `seeds` are the spread over seeds; `count`, `n`, `low`, `high` the sample of test images
    (`pooled`).
    """
    table = []
    for key, over_seeds in results.groupby(SUMMARY_KEYS, sort=False):
        values, sample = over_seeds["value"], vars(pooled(over_seeds))
        spread = {"seeds": len(values), "mean": values.mean(), "min": values.min(), "max": values.max()}
        table.append(dict(zip(SUMMARY_KEYS, key, strict=True)) | spread | sample)
    return pd.DataFrame(table, columns=[*SUMMARY_KEYS, *SUMMARY_NUMBERS])


def did_not_take(results: pd.DataFrame, threshold: float, metric: str = "ASR") -> dict[str, float]:
    """Attacks whose undefended ASR, pooled over seeds, is below the threshold (percent).

    None where the metric does not say how often an attack succeeds: it is no share, or a high one is good.
    """
    if metrics[metric].hits is None or metrics[metric].better == "higher":
        return {}
    undefended = results[(results["defense"] == UNDEFENDED) & (results["metric"] == metric)]
    values = {str(attack): pooled(rows).value for attack, rows in undefended.groupby("attack", sort=False)}
    return {attack: asr for attack, asr in values.items() if asr < threshold}


def view_table(results: pd.DataFrame, numbers: Sequence[tuple[str, str]]) -> pd.DataFrame | None:
    """A row per defense, a column per attack: the first (metric, perturbation), and the second in parentheses.

    Over several seeds, values are means; a share has its 95 % interval, and the spread over seeds beside it as
    min..max. None where no cell has any of these numbers.
    """
    keys = pd.Series(list(zip(results["metric"], results["perturbation"], strict=True)), index=results.index)
    here = results[keys.isin(numbers)]
    if here.empty:
        return None

    def text(cell: pd.DataFrame) -> str:
        texts = [number_text(cell[(cell["metric"] == m) & (cell["perturbation"] == p)]) for m, p in numbers]
        return texts[0] + "".join(f" ({other})" for other in texts[1:])

    return _pivot(here, text)


def number_text(rows: pd.DataFrame) -> str:
    """One metric of one cell, a row per seed, as it is printed."""
    if rows.empty:
        return DASH
    sample, values = pooled(rows), rows["value"]
    if pd.isna(sample.count):
        spread = f" [seeds {values.min():.3f}..{values.max():.3f}]" if len(values) > 1 else ""
        return f"{sample.value:.3f}{spread}"
    spread = f"; seeds {values.min():.1f}..{values.max():.1f}" if len(values) > 1 else ""
    return f"{sample.value:.1f} [{sample.low:.1f}, {sample.high:.1f}{spread}]"


def marked(table: pd.DataFrame, weak: Iterable[str]) -> pd.DataFrame:
    """The table with `(did not take)` at the columns of these attacks."""
    return table.rename(columns={attack: f"{attack} (did not take)" for attack in weak})


def _pivot(results: pd.DataFrame, text: Callable[[pd.DataFrame], str]) -> pd.DataFrame:
    defenses, attacks = results["defense"].unique(), results["attack"].unique()
    order = [CLEAN_MODEL, *[d for d in defenses if d != CLEAN_MODEL]]
    table = pd.DataFrame(DASH, index=pd.Index([d for d in order if d in defenses], name="defense"), columns=attacks)
    for (defense, attack), cell in results.groupby(["defense", "attack"], sort=False):
        table.loc[defense, attack] = text(cell)
    return table
