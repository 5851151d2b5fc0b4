"""Numbers of finished cells as tables: a row per cell and metric, summaries over seeds, and printed tables."""

from collections.abc import Callable, Iterable, Sequence

import pandas as pd

from bench.core.metric import Estimate, Observations, metrics
from bench.core.names import CELL_COLUMNS, CLEAN_MODEL, UNDEFENDED
from bench.results.records import Cell, EvaluationCard
from metrics.intervals import wilson

KEYS = [*CELL_COLUMNS, "metric", "perturbation"]
NUMBERS = ["value", "count", "n", "low", "high"]
# Where a number comes from; `cell` is the id of the evaluation.
ORIGIN = ["cell", "bench", "torch", "device", "hardware"]
COLUMNS = [*KEYS, *NUMBERS, *ORIGIN]
SUMMARY_KEYS = [key for key in KEYS if key != "seed"]
SUMMARY_NUMBERS = ["seeds", "mean", "min", "max", "count", "n", "low", "high"]
DASH = "–"
# The note at tables over several seeds.
NOT_THE_SPREAD = (
    "Intervals (95 %) are for the sample of test images. They do not include the spread over seeds, which is shown "
    "beside them (min..max)."
)


def rows_of(cell: Cell, card: EvaluationCard, observations: Observations) -> list[dict]:
    """All metrics of a cell, as rows with `COLUMNS`."""
    origin = {"cell": card.id} | {key: getattr(card, key) for key in ORIGIN[1:]}
    return [
        cell.place | {"metric": name, "perturbation": perturbation} | vars(estimate) | origin
        for name in metrics
        if metrics[name].task == cell.task
        for perturbation, estimate in metrics[name].measure(observations).items()
    ]


def pooled(over_seeds: pd.DataFrame) -> Estimate:
    """One estimate from one metric's rows, a row per seed; the value is the mean over seeds.

    All seeds are evaluated on the same test images, so more seeds do not narrow the interval: it is that of one seed.
    For a share it is Wilson's, of the mean count; for a mean over images, its ends are means over seeds. n is 0 for
    numbers that are not about images, such as a cost.
    """
    return _of_means(*over_seeds[NUMBERS].mean())


def _of_means(value: float, count: float, n: float, low: float, high: float) -> Estimate:
    if pd.notna(count):
        low, high = (100 * end for end in wilson(round(count), round(n)))
    return Estimate(float(value), float(count), 0 if pd.isna(n) else round(n), float(low), float(high))


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """A row per cell and metric, summarised over seeds, with columns `SUMMARY_KEYS` and `SUMMARY_NUMBERS`.

    `mean`, `min` and `max` are over the `seeds`; `count`, `n`, `low` and `high` come from `pooled`.
    """
    cells = results.groupby(SUMMARY_KEYS, sort=False)
    spread = cells["value"].agg(seeds="size", mean="mean", min="min", max="max")
    samples = [vars(_of_means(*means)) for means in cells[NUMBERS].mean().itertuples(index=False)]
    table = spread.join(pd.DataFrame(samples, index=spread.index, columns=NUMBERS))
    return table.reset_index()[[*SUMMARY_KEYS, *SUMMARY_NUMBERS]]


def did_not_take(results: pd.DataFrame, threshold: float, metric: str = "ASR") -> dict[str, float]:
    """Attacks that did not take: their undefended `metric`, pooled over seeds, is below the threshold; in percent.

    Empty if the metric is no rate of success: it is no share, or higher is better.
    """
    if metrics[metric].hits is None or metrics[metric].better == "higher":
        return {}
    undefended = results[(results["defense"] == UNDEFENDED) & (results["metric"] == metric)]
    values = {str(attack): pooled(rows).value for attack, rows in undefended.groupby("attack", sort=False)}
    return {attack: asr for attack, asr in values.items() if asr < threshold}


def view_table(results: pd.DataFrame, numbers: Sequence[tuple[str, str]]) -> pd.DataFrame | None:
    """A table with a row per defense and a column per attack.

    `numbers` are (metric, perturbation): the first one, and the others in parentheses. Values are means over seeds;
    shares have their 95 % interval, and with several seeds the spread as min..max. None if no cell has these numbers.
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
    """The printed form of one metric of one cell; `rows` has a row per seed."""
    if rows.empty:
        return DASH
    sample, values = pooled(rows), rows["value"]
    if pd.isna(sample.count):
        spread = f" [seeds {values.min():.3f}..{values.max():.3f}]" if len(values) > 1 else ""
        return f"{sample.value:.3f}{spread}"
    spread = f"; seeds {values.min():.1f}..{values.max():.1f}" if len(values) > 1 else ""
    return f"{sample.value:.1f} [{sample.low:.1f}, {sample.high:.1f}{spread}]"


def marked(table: pd.DataFrame, weak: Iterable[str]) -> pd.DataFrame:
    """The table with `(did not take)` in the column names of these attacks."""
    return table.rename(columns={attack: f"{attack} (did not take)" for attack in weak})


def in_order(models: Iterable[str]) -> list[str]:
    """Models as tables list them: clean, undefended, and the others as they come.

    Not as they come alone: a later run may have made the undefended model's rows anew.

    >>> in_order(["linear_probe", "none", "clean_model", "none"])
    ['clean_model', 'none', 'linear_probe']
    """
    names = list(dict.fromkeys(models))
    first = [name for name in (CLEAN_MODEL, UNDEFENDED) if name in names]
    return first + [name for name in names if name not in first]


def _pivot(results: pd.DataFrame, text: Callable[[pd.DataFrame], str]) -> pd.DataFrame:
    rows = pd.Index(in_order(results["defense"]), name="defense")
    table = pd.DataFrame(DASH, index=rows, columns=results["attack"].unique())
    for (defense, attack), cell in results.groupby(["defense", "attack"], sort=False):
        table.loc[defense, attack] = text(cell)
    return table
