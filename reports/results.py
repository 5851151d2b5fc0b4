"""Finished cells of a results folder as one tidy table, a row per cell and metric."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd

from bench.core.errors import BenchError
from bench.core.metric import Estimate, Observations, metrics
from bench.matrix.stages import read_observations
from bench.results.run_file import RUN_FILE, read_record, runs_of
from bench.results.store import Store
from metrics.intervals import wilson
from reports.mixing import cards, refuse_mixture

PLACE = ["model", "attack", "target", "defense", "dataset", "seed", "variant"]
KEYS = [*PLACE, "metric", "perturbation"]
NUMBERS = ["value", "count", "n", "low", "high"]
# Which evaluation it was, by what, where: `cell` is a hash of all that determines it.
ORIGIN = ["cell", "bench", "torch", "device", "hardware"]
COLUMNS = [*KEYS, *NUMBERS, *ORIGIN]
SUMMARY_KEYS = [key for key in KEYS if key != "seed"]
SUMMARY_NUMBERS = ["seeds", "mean", "min", "max", "count", "n", "low", "high"]

RESULTS, RESULTS_PARQUET = "results.csv", "results.parquet"
SUMMARY, PREDICTIONS = "summary.csv", "predictions.parquet"


def read_run(out: Path) -> dict:
    """Settings and cells of the last run into a results folder; `runs_of` gives those at other places, too.

    Raises:
        BenchError: the folder holds no run, or its record is damaged.
    """
    if not (out / RUN_FILE).is_file():
        raise BenchError(f"{out} holds no results. `bench run --out {out}` makes some.")
    return read_record(out)


def plugins_of(out: Path) -> tuple[Path, ...]:
    """The `--plugin` files of all runs into a results folder."""
    return tuple(map(Path, read_run(out)["plugins"]))


def finished_cells(out: Path) -> tuple[list[dict], list[dict]]:
    """Cells that have been evaluated, and those that have not; not those that are not applicable."""
    store = Store(out)
    cells = [cell for run in runs_of(read_run(out)) for cell in run["cells"] if cell["evaluation"]]
    done = [cell for cell in cells if store.has("evaluation", cell["evaluation"])]
    return done, [cell for cell in cells if cell not in done]


def some_finished_cells(out: Path) -> tuple[list[dict], list[dict]]:
    """The same as `finished_cells`.

    Raises:
        BenchError: no cell has been evaluated.
    """
    done, missing = finished_cells(out)
    if not done:
        raise BenchError(f"no cell of {out} is finished. Mend what failed, if so, and run its `bench run` again.")
    return done, missing


def own_cells(out: Path) -> list[dict]:
    """Finished cells of the last run into a results folder, not those at other places."""
    own = read_run(out)["cells"]
    return [cell for cell in finished_cells(out)[0] if cell in own]


def place(cell: dict) -> dict[str, Any]:
    """Where a cell of run.json stands in the tables. A cell with the settings of its run has the variant ""."""
    return {"variant": ""} | {key: cell[key] for key in PLACE if key in cell}


def observations(out: Path, cell: dict) -> Observations:
    """What a finished cell saw."""
    store = Store(out)
    card = store.card("evaluation", cell["evaluation"])
    return Observations(*read_observations(store.path("evaluation", cell["evaluation"])), target=card["target"])


def collect(out: Path) -> pd.DataFrame:
    """One row per (cell, metric, perturbation), computed anew from the per-image observations.

    CA, ASR and PA are in percent. `low` and `high` bound the 95 % interval; they speak of the sample of test images,
    not of the spread over seeds. `cell` names the evaluation: a hash of the settings, data and versions behind it.

    Raises:
        BenchError: the cells are of several versions, splits or checkpoints.
    """
    done, _ = finished_cells(out)
    refuse_mixture(out, done)
    return pd.DataFrame([row for cell in done for row in rows(out, cell, observations(out, cell))], columns=COLUMNS)


def rows(out: Path, cell: dict, seen: Observations) -> list[dict]:
    """All metrics of what one cell saw, as rows of the tidy table."""
    card = cards(out, cell)[-1]
    origin = {"cell": card["id"]} | {key: card.get(key, "") for key in ORIGIN[1:]}
    estimates = [(name, *found) for name in metrics for found in metrics[name].measure(seen).items()]
    return [
        place(cell) | {"metric": name, "perturbation": perturbation} | vars(estimate) | origin
        for name, perturbation, estimate in estimates
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
        spread = [len(values), values.mean(), values.min(), values.max()]
        table.append([*key, *spread, *(sample[name] for name in SUMMARY_NUMBERS[4:])])
    return pd.DataFrame(table, columns=[*SUMMARY_KEYS, *SUMMARY_NUMBERS])


def all_predictions(out: Path) -> pd.DataFrame:
    """The per-image predictions of all finished cells, a row per cell and image."""
    done, _ = finished_cells(out)
    frames = [observations(out, cell).predictions.assign(**place(cell)) for cell in done]
    if not frames:
        return pd.DataFrame(columns=[*PLACE, "index", "id", "label", "clean", "triggered"])
    joined = pd.concat(frames, ignore_index=True)
    return joined[[*PLACE, *(c for c in joined if c not in PLACE)]]


def write_results(out: Path, results: pd.DataFrame) -> None:
    """Write the tidy table (CSV, Parquet), its summary over seeds, and the predictions behind it."""
    results.to_csv(out / RESULTS, index=False)
    results.to_parquet(out / RESULTS_PARQUET, index=False)
    summarise(results).to_csv(out / SUMMARY, index=False)
    all_predictions(out).to_parquet(out / PREDICTIONS, index=False)


def read_table(file: Path, numbers: list[str]) -> pd.DataFrame:
    """A written table with the exact numbers, and with "" where text is empty.

    Raises:
        BenchError: it is not there, or not readable.
    """
    if not file.is_file():
        raise BenchError(f"{file} is not there. `bench report {file.parent}` writes it.")
    try:
        if file.suffix == ".parquet":
            return pd.read_parquet(file)
        kinds: defaultdict[str, type] = defaultdict(lambda: str, dict.fromkeys(numbers, float) | {"seed": int})
        missing = {name: [""] for name in numbers}
        return pd.read_csv(file, dtype=kinds, keep_default_na=False, na_values=missing)
    except (ValueError, OSError) as error:
        raise BenchError(f"{file} cannot be read: {error}. `bench report {file.parent}` writes it anew.") from None
