"""A baseline: the numbers of a results folder in one small JSON file, with the settings that make them comparable."""

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import pandas as pd

from bench.core.code_state import commit_of
from bench.core.errors import BenchError
from bench.core.images import hash_of
from bench.core.names import CELL_COLUMNS, OWN_TRIGGER
from bench.results.folder import ResultsFolder
from bench.results.records import Cell
from bench.results.tidy import pooled
from reports.command import command_of, flat

# Raise it when the meaning of the file's contents changes.
FORMAT = 2
CELL = [key for key in CELL_COLUMNS if key != "seed"]
LIBRARIES = ("numpy", "open_clip_torch", "torchvision")
# Inputs of artefacts that two comparable numbers may differ in: ids of other artefacts, versions of the code, seeds.
NOT_SETTINGS = {"kind", "version", "subject", "backdoor", "seed"}


def make_baseline(folder: ResultsFolder) -> dict[str, Any]:
    """The finished cells of a results folder, pooled over seeds, as `bench baseline` writes them.

    Raises:
        BenchError: no cell is finished, or cells differ in code, split, checkpoint or settings.
    """
    finished = folder.finished_cells
    results = folder.results
    own = results["perturbation"].isin(["", OWN_TRIGGER])
    numbers = dict(iter(results[own].groupby(CELL, sort=False)))
    seeds: dict[tuple, list[Cell]] = {}
    for cell in finished:
        seeds.setdefault(tuple(cell.place[key] for key in CELL), []).append(cell)
    settings: dict[str, Any] = {}
    cells = []
    for key, of_seeds in seeds.items():
        inputs = _settings(folder, of_seeds)
        id = hash_of(inputs)
        settings[id] = inputs
        cells.append(dict(zip(CELL, key, strict=True)) | {"settings": id, "numbers": _numbers(numbers[key])})
    runs = [(run, [cell for cell in finished if cell in set(run.cells)]) for run in folder.record.runs]
    return {
        "format": FORMAT,
        "command": " && ".join(command_of(run, cells) for run, cells in runs if cells),
        # The commit of the checkout in which the command is run, which may be a plug-in's.
        "commit": commit_of(Path.cwd()) or None,
        "seeds": sorted({cell.seed for cell in finished}),
        "versions": _versions(results),
        "cells": cells,
        "settings": settings,
    }


def to_json(baseline: dict[str, Any]) -> str:
    return json.dumps(baseline, indent=1) + "\n"


def read_baseline(file: Path) -> dict[str, Any]:
    """A baseline from its file.

    Raises:
        BenchError: the file is missing, or is not a baseline of this format.
    """
    if not file.is_file():
        raise BenchError(f"--baseline {file}: no such file. `bench baseline RESULTS --out {file}` writes one.")
    try:
        baseline = json.loads(file.read_text())
        if baseline["format"] == FORMAT:
            return baseline
    except (ValueError, KeyError, TypeError):
        pass
    raise BenchError(
        f"--baseline {file} is not a baseline of format {FORMAT}. `bench baseline RESULTS --out NEW.json` writes one."
    )


def _settings(folder: ResultsFolder, of_seeds: list[Cell]) -> dict[str, Any]:
    """The inputs of a cell apart from the code: settings, fingerprints of model and data, and its seeds."""
    first, *others = [_determined_by(folder, cell) for cell in of_seeds]
    for cell, other in zip(of_seeds[1:], others, strict=True):
        if other != first:
            keys = ", ".join(k for k in flat(first) | flat(other) if flat(first).get(k) != flat(other).get(k))
            raise BenchError(f"{of_seeds[0].name} and {cell.name} differ in {keys}: they cannot be pooled")
    return first | {"seeds": sorted(cell.seed for cell in of_seeds)}


def _determined_by(folder: ResultsFolder, cell: Cell) -> dict[str, Any]:
    lineage = folder.lineage(cell)
    if lineage.backdoor is None or not lineage.whole:
        raise BenchError(
            f"the inputs of {cell.name} are unknown: the card of its backdoor or of a defense was deleted. "
            "Keep artefacts/*/*/card.json, or run again with another --out"
        )
    chain = {f"defense_{i}": _without_code(card.determined_by) for i, card in enumerate(lineage.defenses, 1)}
    backdoor, evaluation = (_without_code(c.determined_by) for c in (lineage.backdoor, lineage.evaluation))
    return {"backdoor": backdoor, **chain, "evaluation": evaluation}


def _without_code(inputs: dict[str, Any]) -> dict[str, Any]:
    return {key: _without_versions(value) for key, value in inputs.items() if key not in NOT_SETTINGS}


def _without_versions(value: Any) -> Any:
    """Identities of methods without versions and sources; files are identified by contents, not by path."""
    if not isinstance(value, dict):
        return value
    if not {"name", "version", "settings"} <= value.keys():
        return {key: _without_versions(inner) for key, inner in value.items()}
    files = {key: digest for key, digest in value.get("files", {}).items() if key != "source"}
    settings = {key: inner for key, inner in value["settings"].items() if key not in files}
    return {"name": value["name"], "settings": settings | files}


def _numbers(results: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """Pooled numbers of one cell by metric; `count` is None if the number is no share."""
    numbers: dict[str, dict[str, float | None]] = {}
    for (metric, perturbation), rows in results.groupby(["metric", "perturbation"], sort=False):
        name = f"{metric} ({perturbation})" if perturbation else str(metric)
        estimate = pooled(rows)
        count = None if pd.isna(estimate.count) else estimate.count
        value = None if pd.isna(estimate.value) else estimate.value
        numbers[name] = {"value": value, "count": count, "n": estimate.n}
    return numbers


def _versions(results: pd.DataFrame) -> dict[str, str]:
    """The versions of bench and torch that made the numbers, and the present versions of Python and other libraries."""
    recorded = {name: results[name].iloc[0] for name in ("bench", "torch")}
    return recorded | {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in LIBRARIES}
