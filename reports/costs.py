"""What defenses cost, from the cards of what they made."""

from pathlib import Path

import pandas as pd

from bench.results.store import Store
from reports.results import KEYS, NUMBERS, finished_cells, place

COSTS = ("seconds", "peak_memory_mb", "tunable", "samples")


def collect_costs(out: Path) -> pd.DataFrame:
    """One row per (cell, cost) of single defenses, in the columns of the results; what no card tells is left out.

    `seconds` of wall time, `peak_memory_mb`, `tunable` parameters, training `samples`: of no images, without interval.
    """
    store, rows = Store(out), []
    for cell in finished_cells(out)[0]:
        id = store.card("evaluation", cell["evaluation"])["determined_by"]["subject"]
        if "+" in cell["defense"] or not store.has("defense", id):
            continue
        card = store.card("defense", id)
        told = {cost: float(card[cost]) for cost in COSTS if card.get(cost) is not None}
        what = place(cell) | {"perturbation": "", "n": 0}
        rows += [what | {"metric": cost, "value": value} for cost, value in told.items()]
    return pd.DataFrame(rows, columns=[*KEYS, *NUMBERS])
