"""run.json: what the tables of a results folder show: settings, variants, cells and their nodes."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from bench.matrix.plan import Cell, Plan
from bench.matrix.settings import BASE, RunSettings, Variants

RUN_FILE = "run.json"
# Where a cell is measured; a variant that differs in nothing else needs no name beside it.
PLACE = ("model", "dataset", "target", "tested_on")
# What cells are named by, and how they are executed.
FREE = {"attacks", "defenses", "seeds", "took", "device", "workers", "pretrain"}
FREE |= {"executor", "gpu_share", "memory_gb", "pairs_cache", "gpus"}


def write_run(variants: Variants, plan: Plan, out: Path, plugins: tuple[Path, ...], console: Console) -> None:
    """Write what the folder's tables show.

    Cells of earlier runs into the folder stay if only attacks, defenses, seeds and the variants run differ. Otherwise
    they would be mixed with numbers of other settings, so they leave the tables; what was made for them stays.
    """
    file = out / RUN_FILE
    settings = {name: run.model_dump(mode="json") for name, run in variants.items()}
    nothing: dict[str, Any] = {"settings": settings[BASE], "variants": {}, "plugins": [], "cells": []}
    old = nothing | (json.loads(file.read_text()) if file.is_file() else {})
    cells = [_row(cell, variants, plan) for cell in plan.cells]
    places = {_place(cell) for cell in cells}
    before = {BASE: old["settings"]} | old["variants"]
    kept = [cell for cell in old["cells"] if _place(cell) not in places]
    left = [cell for cell in kept if not _comparable(cell.get("settings", BASE), before, settings)]
    if left:
        console.print(
            f"{len(left)} cells of earlier runs into {out} had other settings and leave its tables; "
            "what was made for them stays. Give runs that are to be kept an --out of their own."
        )
    kept = [cell for cell in kept if cell not in left]
    named = {cell.get("settings", BASE) for cell in kept}
    contents = {
        "settings": settings[BASE],
        "variants": {name: before[name] for name in before if name in named} | settings,
        "plugins": list(dict.fromkeys([*old["plugins"], *(str(p.resolve()) for p in plugins)])),
        "cells": kept + cells,
    }
    aside = file.with_suffix(".tmp")
    aside.write_text(json.dumps(contents, indent=2) + "\n")
    aside.replace(file)


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
    pairs = [(before[key], now[key]) for key in {BASE, name} if key in now]
    try:
        # Read, so that a setting that is new since then has its default.
        return all(_same(RunSettings.model_validate(a), RunSettings.model_validate(b)) for a, b in pairs)
    except ValidationError:
        return False


def _same(first: RunSettings, second: RunSettings) -> bool:
    return first.model_dump(exclude=FREE) == second.model_dump(exclude=FREE)


def _place(cell: dict) -> tuple:
    keys = ("model", "target", "dataset", "attack", "defense", "seed")
    return (*(cell[key] for key in keys), cell.get("variant", BASE))
