"""The main table: ASR (CA) of every defense against every attack."""

from collections.abc import Iterable

import pandas as pd

from bench.core.names import CLEAN_MODEL, OWN_TRIGGER, UNDEFENDED
from reports.results import pooled

DASH = "–"


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
    return _pivot(results, lambda cell: f"{_mean(cell, 'PR_cos')} / {_mean(cell, 'PR_ratio')}")


def keys_table(results: pd.DataFrame) -> pd.DataFrame | None:
    """A row per defense, for each dual-key attack three columns: ASR with both keys, and with one alone, in percent.

    None where no attack has two keys. A key alone should do little: the backdoor opens to both.
    """
    dual = [str(attack) for attack in results[results["metric"] == "ASR_image"]["attack"].unique()]
    if not dual:
        return None
    keys = {"ASR": "both keys", "ASR_image": "image key alone", "ASR_text": "text key alone"}
    here = results[results["attack"].isin(dual)]
    tables = {name: _pivot(here, lambda cell, metric=metric: _share(cell, metric)) for metric, name in keys.items()}
    return pd.concat({f"{a}, {name}": table[a] for a in dual for name, table in tables.items()}, axis=1)


def marked(table: pd.DataFrame, weak: Iterable[str]) -> pd.DataFrame:
    """The table with `(did not take)` at the columns of these attacks."""
    return table.rename(columns={attack: f"{attack} (did not take)" for attack in weak})


def did_not_take(results: pd.DataFrame, threshold: float) -> dict[str, float]:
    """Attacks whose undefended ASR, pooled over seeds, is below the threshold (percent)."""
    undefended = results[(results["defense"] == UNDEFENDED) & (results["metric"] == "ASR")]
    values = {str(attack): pooled(rows).value for attack, rows in undefended.groupby("attack", sort=False)}
    return {attack: asr for attack, asr in values.items() if asr < threshold}


def _pivot(results: pd.DataFrame, text) -> pd.DataFrame:
    defenses, attacks = results["defense"].unique(), results["attack"].unique()
    order = [CLEAN_MODEL, *[d for d in defenses if d != CLEAN_MODEL]]
    table = pd.DataFrame(DASH, index=pd.Index([d for d in order if d in defenses], name="defense"), columns=attacks)
    for (defense, attack), cell in results.groupby(["defense", "attack"], sort=False):
        table.loc[defense, attack] = text(cell)
    return table


def _share(cell: pd.DataFrame, metric: str) -> str:
    rows = cell[cell["metric"] == metric]
    if rows.empty:
        return DASH
    share, values = pooled(rows), rows["value"]
    spread = f"; seeds {values.min():.1f}..{values.max():.1f}" if len(values) > 1 else ""
    return f"{share.value:.1f} [{share.low:.1f}, {share.high:.1f}{spread}]"


def _mean(cell: pd.DataFrame, metric: str) -> str:
    rows = cell[(cell["metric"] == metric) & (cell["perturbation"] == OWN_TRIGGER)]
    return DASH if rows.empty else f"{rows['value'].mean():.3f}"
