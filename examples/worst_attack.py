"""A metric over cells: for each defense, the attack with the highest ASR."""

import pandas as pd

from bench import Estimate, OverCells, cell_metric


@cell_metric("worst_attack")
def worst_attack(results: pd.DataFrame) -> list[OverCells]:
    """The highest ASR of each defense over attacks and seeds, in percent, with the interval of that cell."""
    asr = results[(results["metric"] == "ASR") & (results["variant"] == "")]
    numbers = []
    for defense, cells in asr.groupby("defense", sort=False):
        worst = cells.loc[cells["value"].idxmax()]
        estimate = Estimate(*(worst[name] for name in ("value", "count", "n", "low", "high")))
        numbers.append(OverCells(str(defense), estimate, f"{worst['attack']}, seed {worst['seed']}."))
    return numbers
