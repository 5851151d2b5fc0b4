"""A baseline: the numbers of a results folder by seed, in one JSON file, with the settings that make them comparable.

Reruns are results of the same settings with other rounding errors, as on another processor. They show how much the
numbers vary from run to run.
"""

import importlib.metadata
import json
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import pandas as pd
from pydantic import BaseModel, Field, ValidationError, model_validator

from bench.core.code_state import commit_of
from bench.core.errors import BenchError
from bench.core.images import hash_of
from bench.core.metric import metrics
from bench.core.names import CELL_COLUMNS, OWN_TRIGGER
from bench.results.folder import ResultsFolder
from bench.results.records import Cell, cell_name
from reports.command import command_of, flat

# Raise it when the meaning of the file's contents changes.
FORMAT = 4
CELL = [key for key in CELL_COLUMNS if key != "seed"]
LIBRARIES = ("numpy", "open_clip_torch", "torchvision")
# Inputs of artefacts that two comparable numbers may differ in: ids of other artefacts, versions of the code, seeds.
NOT_SETTINGS = {"kind", "version", "subject", "backdoor", "seed"}


Value = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class BaselineNumber(BaseModel):
    """A metric of a cell: of `n` images, by seed a value of each run; None where it is not defined."""

    n: Annotated[int, Field(strict=True, ge=0)]
    values: dict[str, Annotated[list[Value | None], Field(min_length=1)]]


class BaselineCell(BaseModel):
    task: str
    model: str
    attack: str
    target: str
    defense: str
    dataset: str
    variant: str
    settings: str
    code: str
    numbers: dict[str, BaselineNumber]


class BaselineFile(BaseModel):
    """What a baseline's file must have."""

    command: str
    commit: str | None
    seeds: list[int]
    reruns: int
    versions: dict[str, str]
    cells: list[BaselineCell]
    settings: dict[str, dict[str, Any]]

    @model_validator(mode="after")
    def fits_together(self) -> Self:
        """Check that cells are there once, have a value of each of their seeds, and shares between 0 and 100 %."""
        places = [tuple(getattr(cell, key) for key in CELL) for cell in self.cells]
        for cell, place in zip(self.cells, places, strict=True):
            name = cell_name(cell.model_dump())
            seeds = self.settings.get(cell.settings, {}).get("seeds")
            if places.count(place) > 1:
                raise ValueError(f"{name} is there twice")
            if not isinstance(seeds, list) or not seeds:
                raise ValueError(f"the settings of {name} have no seeds")
            for metric, number in cell.numbers.items():
                if set(number.values) != set(map(str, seeds)):
                    raise ValueError(f"{metric} of {name} is of seeds {list(number.values)}, not of {seeds}")
                values = [value for runs in number.values.values() for value in runs if value is not None]
                if metric in metrics and metrics[metric].hits and not all(0 <= value <= 100 for value in values):
                    raise ValueError(f"{metric} of {name} is no share in percent")
        return self


def make_baseline(folder: ResultsFolder, reruns: Sequence[ResultsFolder] = ()) -> dict[str, Any]:
    """The finished cells of a results folder, as `bench baseline` writes them, with the values of each seed.

    The first value of a seed is from `folder`, the others are from `reruns`.

    Raises:
        BenchError: no cell is finished; cells differ in code, split, checkpoint or settings; a rerun has other settings
            or identical numbers.
    """
    finished = folder.finished_cells
    settings: dict[str, Any] = {}
    cells = []
    for place, inputs, code, numbers in _cells(folder):
        id = hash_of(inputs)
        settings[id] = inputs
        cells.append(place | {"settings": id, "code": code, "numbers": numbers})
    baseline = {
        "format": FORMAT,
        "command": _command(folder, finished),
        # The commit of the checkout in which the command is run, which may be a plug-in's.
        "commit": commit_of(Path.cwd()) or None,
        "seeds": sorted({cell.seed for cell in finished}),
        "reruns": 0,
        "versions": _versions(folder.results),
        "cells": cells,
        "settings": settings,
    }
    for rerun in reruns:
        add_rerun(baseline, make_baseline(rerun), f"{rerun.out}", f"{folder.out}")
    return baseline


def add_rerun(baseline: dict[str, Any], rerun: dict[str, Any], name: str, of: str, may_repeat: bool = False) -> None:
    """Append the values of another baseline to those of a baseline, by seed; `name` and `of` are for errors.

    `may_repeat`: the rerun may have the numbers of an earlier run, as it is known to be one of its own.

    Raises:
        BenchError: the rerun has other cells, settings, seeds or code, or one of its runs is there already.
    """
    places = {tuple(cell[key] for key in CELL): cell for cell in baseline["cells"]}
    no_rerun = f"{name} is no rerun of {of}"
    # Whether each cell and seed of a run, by its number, has the numbers of an earlier run.
    known: dict[int, list[bool]] = {}
    for other in rerun["cells"]:
        cell = places.pop(tuple(other[key] for key in CELL), None)
        if cell is None:
            raise BenchError(f"{no_rerun}, which has no {cell_name(other)}")
        wanted, inputs = baseline["settings"][cell["settings"]], rerun["settings"][other["settings"]]
        if different := differences({**wanted, "seeds": inputs["seeds"]}, inputs):
            raise BenchError(f"{no_rerun}, {cell_name(other)}: {'; '.join(different)}")
        if cell["code"] != other["code"]:
            raise BenchError(f"{no_rerun}, {cell_name(other)}: its code has another version. Write a new baseline")
        if extra := set(inputs["seeds"]) - set(wanted["seeds"]):
            raise BenchError(f"{no_rerun}, which has no seeds {sorted(extra)}")
        if lacking := set(wanted["seeds"]) - set(inputs["seeds"]):
            raise BenchError(f"{name} has no seeds {sorted(lacking)} of {cell_name(other)}: finish it with `bench run`")
        shared = sorted(other["numbers"].keys() & cell["numbers"].keys())
        for seed in map(str, inputs["seeds"]):
            earlier, more = ([c["numbers"][metric]["values"][seed] for metric in shared] for c in (cell, other))
            there = list(zip(*earlier, strict=False))
            for i, values in enumerate(zip(*more, strict=False)):
                known.setdefault(i, []).append(values in there)
            for values, added in zip(earlier, more, strict=True):
                values += added
    if places:
        # A few runs of some cells would stand for the spread of all.
        names = ", ".join(cell_name(cell) for cell in places.values())
        raise BenchError(f"{name} has no {names}: finish it with `bench run`")
    if not may_repeat and any(all(of_run) for of_run in known.values()):
        raise BenchError(
            f"{name} has a run with the same numbers as an earlier one: that is no new run. Make one on another "
            "processor, or let bench round otherwise: `bench baseline RESULTS --reruns 5 --out FILE`"
        )
    baseline["reruns"] += 1 + rerun["reruns"]


def refuse_single_seeds(baseline: dict[str, Any]) -> None:
    """Check that every cell has two seeds or more.

    Raises:
        BenchError: a cell has a single seed, which shows no spread.
    """
    for cell in baseline["cells"]:
        if len(seeds := baseline["settings"][cell["settings"]]["seeds"]) < 2:
            raise BenchError(
                f"{cell_name(cell)} has only seed {seeds[0]}, and one seed shows no spread. Run with --seeds 0,1,2"
            )


def to_json(baseline: dict[str, Any]) -> str:
    return json.dumps(baseline, indent=1) + "\n"


def read_baseline(file: Path) -> dict[str, Any]:
    """A baseline from its file.

    Raises:
        BenchError: the file is missing, or is not a baseline of this format.
    """
    if not file.is_file():
        raise BenchError(f"{file}: no such file. `bench baseline RESULTS --reruns 5 --out {file}` writes one.")
    try:
        baseline = json.loads(file.read_text())
        if baseline["format"] == FORMAT:
            BaselineFile.model_validate(baseline)
            return baseline
        reason = " It has no numbers by seed, which show how much training varies." if baseline["format"] == 2 else ""
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}." for part in first["loc"]).removesuffix(".")
        reason = f" It is damaged: {f'{where}: ' if where else ''}{first['msg'].removeprefix('Value error, ')}."
    except (ValueError, KeyError, TypeError):
        reason = ""
    raise BenchError(
        f"{file} is not a baseline of format {FORMAT}.{reason} "
        "`bench baseline RESULTS --reruns 5 --out NEW.json` writes one."
    )


def _cells(folder: ResultsFolder) -> Iterable[tuple[dict[str, Any], dict[str, Any], str, dict[str, dict[str, Any]]]]:
    """For each finished cell of a folder, over its seeds: its place, its inputs, its code, its numbers."""
    results = folder.results
    own = results["perturbation"].isin(["", OWN_TRIGGER])
    numbers = dict(iter(results[own].groupby(CELL, sort=False)))
    seeds: dict[tuple, list[Cell]] = {}
    for cell in folder.finished_cells:
        seeds.setdefault(tuple(cell.place[key] for key in CELL), []).append(cell)
    for key, of_seeds in seeds.items():
        inputs = [_inputs(folder, cell) for cell in of_seeds]
        place, code = dict(zip(CELL, key, strict=True)), hash_of(_code(inputs[0]))
        yield place, _settings(of_seeds, inputs), code, _numbers(numbers[key])


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The settings that differ, by key."""
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


def _settings(of_seeds: Sequence[Cell], inputs: Sequence[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """The `inputs` of a cell's seeds, which must agree, apart from the code: settings, fingerprints; and the seeds."""
    first, *others = map(_without_code, inputs)
    for cell, other in zip(of_seeds[1:], others, strict=True):
        if other != first:
            keys = ", ".join(k for k in flat(first) | flat(other) if flat(first).get(k) != flat(other).get(k))
            raise BenchError(f"{of_seeds[0].name} and {cell.name} differ in {keys}: they cannot be pooled")
    return first | {"seeds": sorted(cell.seed for cell in of_seeds)}


def _inputs(folder: ResultsFolder, cell: Cell) -> dict[str, dict[str, Any]]:
    """What determines each artefact behind a cell."""
    lineage = folder.lineage(cell)
    if lineage.backdoor is None or not lineage.whole:
        raise BenchError(
            f"the inputs of {cell.name} are unknown: the card of its backdoor or of a defense was deleted. "
            "Keep artefacts/*/*/card.json, or run again with another --out"
        )
    chain = {f"defense_{i}": card.determined_by for i, card in enumerate(lineage.defenses, 1)}
    return {"backdoor": lineage.backdoor.determined_by, **chain, "evaluation": lineage.evaluation.determined_by}


def _without_code(inputs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        name: {key: _without_versions(value) for key, value in artefact.items() if key not in NOT_SETTINGS}
        for name, artefact in inputs.items()
    }


def _code(value: dict[str, Any]) -> dict[str, Any]:
    """The versions of artefacts and methods, and the source files of plug-ins."""
    inner = {key: _code(part) for key, part in value.items() if isinstance(part, dict)}
    return {key: value[key] for key in ("version", "source") if key in value} | {k: v for k, v in inner.items() if v}


def _without_versions(value: Any) -> Any:
    """Identities of methods without versions and sources; files are identified by contents, not by path."""
    if not isinstance(value, dict):
        return value
    if not {"name", "version", "settings"} <= value.keys():
        return {key: _without_versions(inner) for key, inner in value.items()}
    files = {key: digest for key, digest in value.get("files", {}).items() if key != "source"}
    settings = {key: inner for key, inner in value["settings"].items() if key not in files}
    return {"name": value["name"], "settings": settings | files}


def _numbers(results: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The numbers of one cell by metric: `n` images, and a list of one value by seed; shares are in percent."""
    numbers: dict[str, dict[str, Any]] = {}
    for (metric, perturbation), rows in results.groupby(["metric", "perturbation"], sort=False):
        name = f"{metric} ({perturbation})" if perturbation else str(metric)
        # JSON has no NaN.
        values = [None if pd.isna(value) else float(value) for value in rows["value"]]
        by_seed = {str(seed): [value] for seed, value in zip(rows["seed"], values, strict=True)}
        numbers[name] = {"n": round(rows["n"].fillna(0).mean()), "values": by_seed}
    return numbers


def _versions(results: pd.DataFrame) -> dict[str, str]:
    """The versions of bench and torch that made the numbers, and the present versions of Python and other libraries."""
    recorded = {name: results[name].iloc[0] for name in ("bench", "torch")}
    return recorded | {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in LIBRARIES}
