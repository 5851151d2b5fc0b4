"""Finished cells of a results folder as one tidy table."""

import json
from pathlib import Path

import pandas as pd

from bench.core.errors import BenchError
from bench.core.metric import Estimate, Observations, metrics
from bench.matrix.runner import RUN_FILE
from bench.matrix.stages import read_observations
from bench.matrix.store import Store

PLACE = ["model", "attack", "target", "defense", "dataset", "seed"]
COLUMNS = [*PLACE, "metric", "perturbation", "value", "count", "n", "low", "high"]


def read_run(out: Path) -> dict:
    """Settings and cells of a results folder.

    Raises:
        BenchError: the folder holds no run.
    """
    if not (out / RUN_FILE).is_file():
        raise BenchError(f"{out} holds no results. `bench run --out {out}` makes some.")
    return json.loads((out / RUN_FILE).read_text())


def finished_cells(out: Path) -> tuple[list[dict], list[dict]]:
    """Cells that have been evaluated, and those that have not; not those that are not applicable."""
    store = Store(out)
    cells = [cell for cell in read_run(out)["cells"] if cell["evaluation"]]
    done = [cell for cell in cells if store.has("evaluation", cell["evaluation"])]
    return done, [cell for cell in cells if cell not in done]


def observations(out: Path, cell: dict) -> Observations:
    """What a finished cell saw."""
    store = Store(out)
    card = store.card("evaluation", cell["evaluation"])
    return Observations(*read_observations(store.path("evaluation", cell["evaluation"])), target=card["target"])


def collect(out: Path) -> pd.DataFrame:
    """One row per (cell, metric, perturbation), computed anew from the per-image observations.

    CA, ASR and PA are in percent. `low` and `high` bound the 95 % interval; they speak of the sample of test images,
    not of the spread over seeds.
    """
    rows = []
    for cell in finished_cells(out)[0]:
        seen = observations(out, cell)
        for name in metrics:
            for perturbation, estimate in metrics[name].measure(seen).items():
                rows.append({**{k: cell[k] for k in PLACE}, **_row(name, perturbation, estimate)})
    return pd.DataFrame(rows, columns=COLUMNS)


def all_predictions(out: Path) -> pd.DataFrame:
    """The per-image predictions of all finished cells, a row per cell and image."""
    done, _ = finished_cells(out)
    frames = [observations(out, cell).predictions.assign(**{k: cell[k] for k in PLACE}) for cell in done]
    if not frames:
        return pd.DataFrame(columns=[*PLACE, "index", "id", "label", "clean", "triggered"])
    joined = pd.concat(frames, ignore_index=True)
    return joined[[*PLACE, *(c for c in joined if c not in PLACE)]]


def _row(name: str, perturbation: str, estimate: Estimate) -> dict:
    return {"metric": name, "perturbation": perturbation, **vars(estimate)}
