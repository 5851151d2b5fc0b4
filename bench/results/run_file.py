"""run.json: the runs whose cells the tables of a results folder show."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench.core.dataset import datasets
from bench.core.errors import BenchError
from bench.experiment.settings import BASE, Experiment, RunSettings, Variants
from bench.results.records import Cell, Run, RunFile
from bench.results.store import readable

RUN_FILE = "run.json"
# The settings that say where a cell is measured; a variant that differs in nothing else needs no name in tables.
PLACE = ("model", "dataset", "target", "evaluate")


def read_run_file(out: Path) -> RunFile:
    """The contents of a folder's run.json; those of no run where there is none.

    Raises:
        BenchError: it is damaged, or was written in another format by another version of bench.
    """
    file = out / RUN_FILE
    if not file.is_file():
        return RunFile()
    with readable(file, "Remove it"):
        content = json.loads(file.read_bytes())
        if isinstance(content, dict) and content.get("format") != RunFile().format:
            raise BenchError(
                f"{file} was written by another version of bench (format {content.get('format', 1)}, and this one "
                f"reads {RunFile().format}). Open it with that version, or run again into another folder: --out FOLDER"
            )
        return RunFile.model_validate(content)


def write_run(
    variants: Variants, cells: Sequence[Cell], out: Path, plugins: Sequence[Path], say: Callable[[str], object]
) -> None:
    """Write what the folder's tables show.

    Cells of earlier runs into the folder stay if they are of another model, data set or target: they fill other cells
    of the tables. At the same place they stay if only attacks, defenses, tasks, seeds and the variants run differ.
    Otherwise they would be mixed with numbers of other settings, so they leave the tables; what was made for them
    stays.
    """
    old, base = read_run_file(out), variants[BASE]
    now = Run(
        settings=base.model_dump(mode="json"),
        variants={name: run.model_dump(mode="json") for name, run in variants.items()},
        cells=tuple(cells),
    )
    elsewhere: list[Run] = []
    left = 0
    for before in old.runs:
        before = _without(before, cells)
        settings = parse_settings(before.settings)
        if settings is not None and before.cells and _home(settings) != _home(base):
            elsewhere.append(before)
            _tell_differences(settings, base, len(before.cells), say)
            continue
        now, lost = _joined(before, now)
        left += lost
    if left:
        say(
            f"{left} cells of earlier runs into {out} had other settings and leave its tables; "
            "what was made for them stays. Give runs that are to be kept an --out of their own."
        )
    files = dict.fromkeys([*old.plugins, *(file.resolve() for file in plugins)])
    written = RunFile(plugins=tuple(files), runs=(now, *elsewhere))
    aside = (out / RUN_FILE).with_suffix(".tmp")
    aside.write_text(written.model_dump_json(indent=2) + "\n")
    aside.replace(out / RUN_FILE)


def label(name: str, variants: Variants) -> str:
    """The name of a variant in tables: none where the place of its cells tells all that differs from the base."""
    run, base = variants[name], variants[BASE]
    if run.place == base.place and run.dataset == base.dataset:
        return name
    evaluate = run.evaluate.model_copy(update={"dataset": base.evaluate.dataset})
    moved = {"model": base.model, "dataset": base.dataset, "target": base.target, "evaluate": evaluate}
    return BASE if run.model_copy(update=moved).experiment == base.experiment else name


def parse_settings(settings: dict[str, Any]) -> RunSettings | None:
    """The settings of a run.json; None if they are no settings of this version."""
    try:
        return RunSettings.model_validate(settings)
    except ValidationError:
        return None


def _without(run: Run, cells: Sequence[Cell]) -> Run:
    """A run without the cells that others replace."""
    places = {tuple(cell.place.values()) for cell in cells}
    return run.model_copy(update={"cells": tuple(c for c in run.cells if tuple(c.place.values()) not in places)})


def _joined(before: Run, now: Run) -> tuple[Run, int]:
    """A run with those cells of an earlier one at its place that can stand beside its own; how many cannot."""
    base = {BASE: before.settings} | before.variants
    same = [cell for cell in before.cells if _comparable(cell.settings, base, now.variants)]
    named = {cell.settings for cell in same}
    kept = {name: base[name] for name in base if name in named}
    joined = Run(settings=now.settings, variants=kept | now.variants, cells=(*same, *now.cells))
    return joined, len(before.cells) - len(same)


def _comparable(name: str, before: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> bool:
    """Whether the base, and a variant that both runs have, have the same settings in both."""
    pairs = [(parse_settings(before[key]), parse_settings(now[key])) for key in {BASE, name} if key in now]
    return all(a is not None and b is not None and a.experiment == b.experiment for a, b in pairs)


def _home(run: RunSettings) -> tuple[str, ...]:
    """Where a run's own cells are."""
    return run.dataset, *run.place.values()


def _tell_differences(before: RunSettings, now: RunSettings, cells: int, say: Callable[[str], object]) -> None:
    """Say which settings differ between two places of one table, apart from the place itself."""
    first, second = (_beside_place(run) for run in (before, now))
    differing = [name for name in first | second if first.get(name) != second.get(name)]
    if differing:
        where = f"{cells} cells on {before.tested_on}, target {before.target}, {before.model.label} stay in the tables."
        say(f"{where} Beside their place, these settings differ: {', '.join(differing)}.")


def _beside_place(run: RunSettings) -> dict[str, Any]:
    """The settings that tables of several places should share, by group or method."""
    groups = run.model_dump(include=set(Experiment.model_fields) - {*PLACE, "methods"})
    evaluate = run.evaluate.model_dump(exclude={"dataset"})
    return groups | {"evaluate": evaluate} | {n: values for n, values in run.methods.items() if n not in datasets}
