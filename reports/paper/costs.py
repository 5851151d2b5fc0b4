"""The costs of defenses, from their cards."""

import pandas as pd

from bench.results.folder import ResultsFolder
from bench.results.tidy import KEYS, NUMBERS

COSTS = ("seconds", "peak_memory_mb", "tunable", "samples")


def collect_costs(folder: ResultsFolder) -> pd.DataFrame:
    """A row per (cell, cost) of single defenses, with the columns of the results; unknown costs are left out.

    Costs are `seconds` of wall time, `peak_memory_mb`, `tunable` parameters without the token embedding, and training
    `samples`. n is 0, and there is no interval.
    """
    rows = []
    for cell in folder.cells:
        chain = folder.lineage(cell).defenses
        if not chain or "+" in cell.defense:
            continue
        card = chain[-1]
        costs = {name: getattr(card, name) for name in COSTS} | {"tunable": card.tunable - card.token_embedding}
        what = cell.place | {"perturbation": "", "n": 0}
        rows += [what | {"metric": name, "value": float(cost)} for name, cost in costs.items() if cost is not None]
    return pd.DataFrame(rows, columns=[*KEYS, *NUMBERS])
