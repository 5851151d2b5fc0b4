"""run.json: the runs whose cells are in the tables of a results folder."""

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
# The settings that have columns of their own in tables; a variant that differs only in them needs no name there.
PLACE_SETTINGS = ("model", "dataset", "target", "evaluate")


def read_run_file(out: Path) -> RunFile:
    """The contents of a folder's run.json; if there is none, a record without runs.

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
    """Record a run in the folder's run.json.

    Cells of earlier runs stay in the tables if their model, data set or target differs, or if only the lists of
    attacks, defenses, tasks, seeds and variants differ. Others leave the tables, as numbers under different settings
    must not be mixed; their artefacts stay. `say` gets messages about both.
    """
    old, base = read_run_file(out), variants[BASE]
    now = Run(
        settings=base.model_dump(mode="json"),
        variants={name: run.model_dump(mode="json") for name, run in variants.items()},
        cells=tuple(cells),
    )
    kept_runs: list[Run] = []
    removed = 0
    for before in old.runs:
        before = _without(before, cells)
        settings = parse_settings(before.settings)
        if settings is not None and before.cells and _place(settings) != _place(base):
            kept_runs.append(before)
            _report_differences(settings, base, len(before.cells), say)
            continue
        now, count = _joined(before, now)
        removed += count
    if removed:
        say(
            f"{removed} cells of earlier runs into {out} had other settings and leave its tables; their artefacts "
            "stay. Use another --out for a run to keep both."
        )
    files = dict.fromkeys([*old.plugins, *(file.resolve() for file in plugins)])
    record = RunFile(plugins=tuple(files), runs=(now, *kept_runs))
    temporary = (out / RUN_FILE).with_suffix(".tmp")
    temporary.write_text(record.model_dump_json(indent=2) + "\n")
    temporary.replace(out / RUN_FILE)


def label(name: str, variants: Variants) -> str:
    """The name of a variant in tables; "" if it differs from the base only in columns of the tables."""
    run, base = variants[name], variants[BASE]
    if run.place == base.place and run.dataset == base.dataset:
        return name
    evaluate = run.evaluate.model_copy(update={"dataset": base.evaluate.dataset})
    moved = {"model": base.model, "dataset": base.dataset, "target": base.target, "evaluate": evaluate}
    return BASE if run.model_copy(update=moved).experiment == base.experiment else name


def parse_settings(settings: dict[str, Any]) -> RunSettings | None:
    """The settings in a run.json; None if this version of bench cannot read them."""
    try:
        return RunSettings.model_validate(settings)
    except ValidationError:
        return None


def _without(run: Run, cells: Sequence[Cell]) -> Run:
    """A run without those of its cells that `cells` replaces."""
    places = {tuple(cell.place.values()) for cell in cells}
    return run.model_copy(update={"cells": tuple(c for c in run.cells if tuple(c.place.values()) not in places)})


def _joined(before: Run, now: Run) -> tuple[Run, int]:
    """A run with the comparable cells of an earlier one of the same place; and how many cells are not comparable."""
    base = {BASE: before.settings} | before.variants
    same = [cell for cell in before.cells if _comparable(cell.settings, base, now.variants)]
    named = {cell.settings for cell in same}
    kept = {name: base[name] for name in base if name in named}
    joined = Run(settings=now.settings, variants=kept | now.variants, cells=(*same, *now.cells))
    return joined, len(before.cells) - len(same)


def _comparable(name: str, before: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> bool:
    """Whether the base, and the variant `name` if both runs have it, have the same settings in both runs."""
    pairs = [(parse_settings(before[key]), parse_settings(now[key])) for key in {BASE, name} if key in now]
    return all(a is not None and b is not None and a.experiment == b.experiment for a, b in pairs)


def _place(run: RunSettings) -> tuple[str, ...]:
    """The data sets, model and target of a run's cells."""
    return run.dataset, *run.place.values()


def _report_differences(before: RunSettings, now: RunSettings, cells: int, say: Callable[[str], object]) -> None:
    """Report which other settings differ between two runs of different models, data sets or targets."""
    first, second = (_other_settings(run) for run in (before, now))
    differing = [name for name in first | second if first.get(name) != second.get(name)]
    if differing:
        where = f"{cells} cells on {before.tested_on}, target {before.target}, {before.model.label} stay in the tables."
        say(f"{where} These other settings differ, too: {', '.join(differing)}.")


def _other_settings(run: RunSettings) -> dict[str, Any]:
    """The settings without model, data set and target, by group or method."""
    groups = run.model_dump(include=set(Experiment.model_fields) - {*PLACE_SETTINGS, "methods"})
    evaluate = run.evaluate.model_dump(exclude={"dataset"})
    return groups | {"evaluate": evaluate} | {n: values for n, values in run.methods.items() if n not in datasets}
