"""The main table: ASR (CA) of every defense against every attack."""

import pandas as pd

from bench.matrix.plan import CLEAN_MODEL
from metrics.intervals import wilson

PR_PERTURBATION = "trigger"


def main_table(results: pd.DataFrame) -> pd.DataFrame:
    """A row per defense, a column per attack: `ASR (CA)` in percent, each with its 95 % interval.

    Over several seeds, values are means; the spread over seeds is not in the interval, and stands beside it as
    min..max.
    """
    return _pivot(results, lambda cell: f"{_share(cell, 'ASR')} ({_share(cell, 'CA')})")


def poisoned_accuracy_table(results: pd.DataFrame) -> pd.DataFrame:
    """A row per defense, a column per attack: PA, the accuracy on triggered images of other classes, in percent."""
    return _pivot(results, lambda cell: _share(cell, "PA"))


def resistivity_table(results: pd.DataFrame) -> pd.DataFrame:
    """A row per defense, a column per attack: PR_cos / PR_ratio on the cell's own trigger."""
    return _pivot(results, lambda cell: f"{_mean(cell, 'PR_cos'):.3f} / {_mean(cell, 'PR_ratio'):.3f}")


def to_markdown(table: pd.DataFrame) -> str:
    return table.to_markdown(index=True)


def pooled(cell: pd.DataFrame, metric: str) -> tuple[float, float, float]:
    """Mean of a share over seeds and its 95 % Wilson interval, in percent.

    All seeds see the same test images, so more seeds do not narrow the interval: it is that of one seed's images.
    """
    rows = cell[cell["metric"] == metric]
    count, n = rows["count"].mean(), rows["n"].mean()
    low, high = wilson(round(count), round(n))
    return 100 * count / n if n else float("nan"), 100 * low, 100 * high


def did_not_take(results: pd.DataFrame, threshold: float) -> dict[str, float]:
    """Attacks whose undefended ASR, pooled over seeds, is below the threshold (percent)."""
    undefended = results[results["defense"] == "none"]
    values = {str(a): pooled(rows, "ASR")[0] for a, rows in undefended.groupby("attack", sort=False)}
    return {attack: asr for attack, asr in values.items() if asr < threshold}


def _pivot(results: pd.DataFrame, text) -> pd.DataFrame:
    defenses, attacks = results["defense"].unique(), results["attack"].unique()
    order = [CLEAN_MODEL, *[d for d in defenses if d != CLEAN_MODEL]]
    table = pd.DataFrame("–", index=pd.Index([d for d in order if d in defenses], name="defense"), columns=attacks)
    for (defense, attack), cell in results.groupby(["defense", "attack"], sort=False):
        table.loc[defense, attack] = text(cell)
    return table


def _share(cell: pd.DataFrame, metric: str) -> str:
    value, low, high = pooled(cell, metric)
    values = cell[cell["metric"] == metric]["value"]
    spread = f"; seeds {values.min():.1f}..{values.max():.1f}" if len(values) > 1 else ""
    return f"{value:.1f} [{low:.1f}, {high:.1f}{spread}]"


def _mean(cell: pd.DataFrame, metric: str) -> float:
    rows = cell[(cell["metric"] == metric) & (cell["perturbation"] == PR_PERTURBATION)]
    return float(rows["value"].mean())
