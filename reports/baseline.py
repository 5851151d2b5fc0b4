"""A baseline: the numbers of a results folder, seed by seed, in one JSON file, with all that decides what they compare
with.

Results of the same settings whose sums were added in another order, reruns, show how far training is from run to run.
"""

import importlib.metadata
import json
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bench.core.code_state import commit_of
from bench.core.errors import BenchError
from bench.core.images import hash_of
from bench.core.names import CELL_COLUMNS, OWN_TRIGGER
from bench.results.folder import ResultsFolder
from bench.results.records import Cell, cell_name
from reports.command import command_of, flat

# Raise it when the file's contents change their meaning.
FORMAT = 3
CELL = [key for key in CELL_COLUMNS if key != "seed"]
LIBRARIES = ("numpy", "open_clip_torch", "torchvision")
# Other kernels of torch's libraries, which add in another order, as another processor's do.
ANOTHER_ROUNDING = "ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE"
# Ids of other artefacts, and what says which code and seed it was: not part of what makes two numbers comparable.
NOT_SETTINGS = {"kind", "version", "subject", "backdoor", "seed"}


def make_baseline(folder: ResultsFolder, reruns: Sequence[ResultsFolder] = ()) -> dict[str, Any]:
    """The finished cells of a results folder, as `bench baseline` writes them: each number has its values by seed.

    A seed's first value is that of `folder`; then come those of the `reruns` that have the seed.

    Raises:
        BenchError: no cell is finished; the cells are of several states of the code, splits, checkpoints or settings;
            a rerun has other settings, or the very same numbers.
    """
    finished = folder.some_cells
    settings: dict[str, Any] = {}
    cells = []
    for place, made, numbers in _cells(folder):
        settings[hash_of(made)] = made
        cells.append(place | {"settings": hash_of(made), "numbers": numbers})
    baseline = {
        "format": FORMAT,
        "command": _command(folder, finished),
        # Of the defense's own checkout, where the command is run.
        "commit": commit_of(Path.cwd()) or None,
        "seeds": sorted({cell.seed for cell in finished}),
        "reruns": len(reruns),
        "versions": _versions(folder.results),
        "cells": cells,
        "settings": settings,
    }
    for rerun in reruns:
        _add(baseline, folder, rerun)
    return baseline


def refuse_single_seeds(baseline: dict[str, Any]) -> None:
    """Check that every cell has two seeds or more.

    Raises:
        BenchError: one has a single seed, from which no spread can be told.
    """
    for cell in baseline["cells"]:
        if len(seeds := baseline["settings"][cell["settings"]]["seeds"]) < 2:
            raise BenchError(
                f"{cell_name(cell)} has seed {seeds[0]} alone, and one seed tells no spread. Run with --seeds 0,1,2"
            )


def to_json(baseline: dict[str, Any]) -> str:
    return json.dumps(baseline, indent=1) + "\n"


def read_baseline(file: Path) -> dict[str, Any]:
    """A baseline from its file.

    Raises:
        BenchError: there is none, or it is not one that this version can read.
    """
    if not file.is_file():
        raise BenchError(f"--baseline {file}: no such file. `bench baseline RESULTS --out {file}` writes one.")
    try:
        found = json.loads(file.read_text())
        if found["format"] == FORMAT:
            return found
        told = " It has no numbers by seed, so nothing says how far training varies." if found["format"] == 2 else ""
    except (ValueError, KeyError, TypeError):
        told = ""
    raise BenchError(
        f"--baseline {file} is not a baseline of format {FORMAT}.{told} `bench baseline RESULTS --out NEW.json` writes "
        "one."
    )


def _cells(folder: ResultsFolder) -> Iterable[tuple[dict[str, Any], dict[str, Any], dict[str, dict[str, Any]]]]:
    """The finished cells of a folder, their seeds together: where it is, what determined it, its numbers."""
    results = folder.results
    own = results["perturbation"].isin(["", OWN_TRIGGER])
    numbers = dict(iter(results[own].groupby(CELL, sort=False)))
    seeds: dict[tuple, list[Cell]] = {}
    for cell in folder.some_cells:
        seeds.setdefault(tuple(cell.place[key] for key in CELL), []).append(cell)
    for key, of_seeds in seeds.items():
        yield dict(zip(CELL, key, strict=True)), _settings(folder, of_seeds), _numbers(numbers[key])


def _add(baseline: dict[str, Any], folder: ResultsFolder, rerun: ResultsFolder) -> None:
    """Add the values of a rerun behind those of the baseline, seed by seed."""
    places = {tuple(cell[key] for key in CELL): cell for cell in baseline["cells"]}
    same = []
    for place, made, numbers in _cells(rerun):
        cell = places.get(tuple(place.values()))
        if cell is None:
            raise BenchError(f"{rerun.out} has {cell_name(place)}, and {folder.out} has not: it is no rerun of it")
        wanted = baseline["settings"][cell["settings"]]
        if told := differences({**wanted, "seeds": made["seeds"]}, made):
            raise BenchError(f"{rerun.out} is no rerun of {folder.out}, {cell_name(place)}: {'; '.join(told)}")
        if extra := set(made["seeds"]) - set(wanted["seeds"]):
            raise BenchError(f"{rerun.out} is no rerun of {folder.out}: it has the seeds {sorted(extra)} beside")
        for name in numbers.keys() & cell["numbers"].keys():
            for seed, values in numbers[name]["values"].items():
                known = cell["numbers"][name]["values"][seed]
                same.append(values[0] in known)
                known += values
    if all(same):
        raise BenchError(
            f"{rerun.out} has the very numbers of an earlier run, so it says nothing of rounding. Make it on another "
            f"processor, or as one would: {ANOTHER_ROUNDING} bench run ... --out {rerun.out}"
        )


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Settings that differ, key by key."""
    was, is_ = flat(old), flat(new)
    nothing = "not there"
    return [
        f"{key} was {was.get(key, nothing)}, is {is_.get(key, nothing)}"
        for key in dict.fromkeys([*was, *is_])
        if was.get(key, nothing) != is_.get(key, nothing)
    ]


def _command(folder: ResultsFolder, finished: Sequence[Cell]) -> str:
    runs = [(run, [cell for cell in finished if cell in set(run.cells)]) for run in folder.record.runs]
    return " && ".join(command_of(run, cells) for run, cells in runs if cells)


def _settings(folder: ResultsFolder, of_seeds: list[Cell]) -> dict[str, Any]:
    """What determines a cell but the code: settings of methods, recipes, fingerprints of model and data; its seeds."""
    made = [_determined_by(folder, cell) for cell in of_seeds]
    for cell, other in zip(of_seeds, made, strict=True):
        if other != made[0]:
            keys = ", ".join(k for k in flat(made[0]) | flat(other) if flat(made[0]).get(k) != flat(other).get(k))
            raise BenchError(f"{of_seeds[0].name} and {cell.name} differ in {keys}: they cannot be pooled")
    return made[0] | {"seeds": sorted(cell.seed for cell in of_seeds)}


def _determined_by(folder: ResultsFolder, cell: Cell) -> dict[str, Any]:
    lineage = folder.lineage(cell)
    if lineage.backdoor is None or not lineage.whole:
        raise BenchError(
            f"how {cell.name} was made cannot be told: the card of its backdoor or of a defense was deleted. "
            "Keep artefacts/*/*/card.json, or run it anew with another --out"
        )
    chain = {f"defense_{i}": _without_code(card.determined_by) for i, card in enumerate(lineage.defenses, 1)}
    backdoor, evaluation = (_without_code(c.determined_by) for c in (lineage.backdoor, lineage.evaluation))
    return {"backdoor": backdoor, **chain, "evaluation": evaluation}


def _without_code(inputs: dict[str, Any]) -> dict[str, Any]:
    return {key: _without_versions(value) for key, value in inputs.items() if key not in NOT_SETTINGS}


def _without_versions(value: Any) -> Any:
    """Identities of methods without their versions and sources; a file counts by its contents, wherever it lies."""
    if not isinstance(value, dict):
        return value
    if not {"name", "version", "settings"} <= value.keys():
        return {key: _without_versions(inner) for key, inner in value.items()}
    files = {key: digest for key, digest in value.get("files", {}).items() if key != "source"}
    settings = {key: inner for key, inner in value["settings"].items() if key not in files}
    return {"name": value["name"], "settings": settings | files}


def _numbers(results: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The numbers of one cell by metric: `n` images, and `values` by seed, a list of one; a share is in percent."""
    found: dict[str, dict[str, Any]] = {}
    for (metric, perturbation), rows in results.groupby(["metric", "perturbation"], sort=False):
        name = f"{metric} ({perturbation})" if perturbation else str(metric)
        # JSON has no NaN.
        values = [None if pd.isna(value) else float(value) for value in rows["value"]]
        by_seed = {str(seed): [value] for seed, value in zip(rows["seed"], values, strict=True)}
        found[name] = {"n": round(rows["n"].fillna(0).mean()), "values": by_seed}
    return found


def _versions(results: pd.DataFrame) -> dict[str, str]:
    """Of bench and torch, those that made the numbers; of the others, those here."""
    made = {name: results[name].iloc[0] for name in ("bench", "torch")}
    return made | {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in LIBRARIES}
