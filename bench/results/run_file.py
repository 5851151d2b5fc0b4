"""run.json: what the tables of a results folder show: settings, variants, cells and their nodes."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from bench.core.dataset import datasets
from bench.experiment.settings import BASE, RunSettings, Variants
from bench.matrix.plan import Cell, Plan
from bench.results.store import readable

RUN_FILE = "run.json"
# Where a cell is measured; a variant that differs in nothing else needs no name beside it.
PLACE = ("model", "dataset", "target", "tested_on")
# What cells are named by, and how they are executed.
FREE = {"attacks", "defenses", "seeds", "took", "device", "workers", "pretrain"}
FREE |= {"executor", "gpu_share", "memory_gb", "pairs_cache", "gpus"}


def write_run(variants: Variants, plan: Plan, out: Path, plugins: tuple[Path, ...], console: Console) -> None:
    """Write what the folder's tables show.

    Cells of earlier runs into the folder stay if they are of another model, data set or target: they fill other cells
    of the tables. At the same place they stay if only attacks, defenses, seeds and the variants run differ. Otherwise
    they would be mixed with numbers of other settings, so they leave the tables; what was made for them stays.
    """
    file = out / RUN_FILE
    old: dict[str, Any] = read_record(out) if file.is_file() else {"plugins": []}
    settings = {name: run.model_dump(mode="json") for name, run in variants.items()}
    cells = [_row(cell, variants, plan) for cell in plan.cells]
    places = {_place(cell) for cell in cells}
    now: dict[str, Any] = {"settings": settings[BASE], "variants": settings, "cells": cells}
    elsewhere = []
    left = 0
    for before in runs_of(old):
        kept = [cell for cell in before["cells"] if _place(cell) not in places]
        run = _read(before["settings"])
        if run and kept and _home(run) != _home(variants[BASE]):
            elsewhere.append({key: before[key] for key in ("settings", "variants")} | {"cells": kept})
            _tell_differences(run, variants[BASE], len(kept), console)
            continue
        base = {BASE: before["settings"]} | before["variants"]
        same = [cell for cell in kept if _comparable(cell.get("settings", BASE), base, settings)]
        named = {cell.get("settings", BASE) for cell in same}
        now["variants"] = {name: base[name] for name in base if name in named} | now["variants"]
        now["cells"] = same + now["cells"]
        left += len(kept) - len(same)
    if left:
        console.print(
            f"{left} cells of earlier runs into {out} had other settings and leave its tables; "
            "what was made for them stays. Give runs that are to be kept an --out of their own."
        )
    now["plugins"] = list(dict.fromkeys([*old["plugins"], *(str(p.resolve()) for p in plugins)]))
    aside = file.with_suffix(".tmp")
    aside.write_text(json.dumps(now | {"elsewhere": elsewhere}, indent=2) + "\n")
    aside.replace(file)


def read_record(out: Path) -> dict[str, Any]:
    """The contents of a folder's run.json; a `BenchError` if it is damaged."""
    with readable(out / RUN_FILE, "Remove it"):
        return json.loads((out / RUN_FILE).read_text())


def runs_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs of a run.json: the last one, and those with another model, data set or target before it."""
    runs = [record] if "settings" in record else []
    return [{"variants": {}} | run for run in (*runs, *record.get("elsewhere", []))]


def label(name: str, variants: Variants) -> str:
    """The name of a variant in tables: none where the place of its cells tells all that differs from the base."""
    run, base = variants[name], variants[BASE]
    elsewhere = any(getattr(run, key) != getattr(base, key) for key in PLACE)
    evaluate = run.evaluate.model_copy(update={"dataset": base.evaluate.dataset})
    moved = {"model": base.model, "dataset": base.dataset, "target": base.target, "evaluate": evaluate}
    return BASE if elsewhere and _same(run.model_copy(update=moved), base) else name


def _row(cell: Cell, variants: Variants, plan: Plan) -> dict[str, Any]:
    run = variants[cell.variant]
    return {
        "model": run.model.label,
        "target": run.target.lower(),
        "dataset": run.tested_on,
        "attack": cell.attack,
        "defense": cell.defense,
        "variant": label(cell.variant, variants),
        "settings": cell.variant,
        "seed": cell.seed,
        "evaluation": cell.node,
        "backdoor": plan.nodes[cell.node].needs[0] if cell.node else None,
    }


def _comparable(name: str, before: dict[str, dict], now: dict[str, dict]) -> bool:
    """Whether the base, and a variant that both runs have, have the same settings in both."""
    pairs = [(_read(before[key]), _read(now[key])) for key in {BASE, name} if key in now]
    return all(a is not None and b is not None and _same(a, b) for a, b in pairs)


def _read(settings: dict[str, Any]) -> RunSettings | None:
    """Settings of a run.json, where one that is new since then has its default; None if they are no settings now."""
    try:
        return RunSettings.model_validate(settings)
    except ValidationError:
        return None


def _home(run: RunSettings) -> tuple[str, str, str, str]:
    """Where a run's own cells are."""
    return run.model.label, run.dataset, run.tested_on, run.target.lower()


def _tell_differences(before: RunSettings, now: RunSettings, cells: int, console: Console) -> None:
    """Say which settings differ between two places of one table, apart from the place itself."""
    first, second = (_beside_place(run) for run in (before, now))
    differing = [name for name in first | second if first.get(name) != second.get(name)]
    if differing:
        told = f"{cells} cells on {before.tested_on}, target {before.target}, {before.model.label} stay in the tables."
        console.print(f"{told} Beside their place, these settings differ: {', '.join(differing)}.")


def _beside_place(run: RunSettings) -> dict[str, Any]:
    """The settings that tables of several places should share, by group or method."""
    groups = run.model_dump(exclude={*FREE, *PLACE, "methods"})
    groups["evaluate"].pop("dataset")
    return groups | {name: values for name, values in run.methods.items() if name not in datasets}


def _same(first: RunSettings, second: RunSettings) -> bool:
    return first.model_dump(exclude=FREE) == second.model_dump(exclude=FREE)


def _place(cell: dict) -> tuple:
    keys = ("model", "target", "dataset", "attack", "defense", "seed")
    return (*(cell[key] for key in keys), cell.get("variant", BASE))
