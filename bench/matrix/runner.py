"""Run a matrix: find what is there, make what is missing, tell what happened."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench.core.attack import attacks
from bench.core.errors import BenchError
from bench.matrix.executors import execute
from bench.matrix.plan import Node, Plan, make_plan
from bench.matrix.settings import RunSettings, worker_count
from bench.matrix.stages import Workshop
from bench.matrix.store import Store
from metrics.perturbations import perturbation

RUN_FILE = "run.json"


@dataclass(frozen=True)
class Report:
    """How a run ended: nodes made now, found made, and failed with their reasons."""

    made: int
    found: int
    failures: dict[str, str]


def open_device(name: str) -> str:
    """The torch device of a `--device`.

    Raises:
        BenchError: there is no such device here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise BenchError(f"--device {name}: {str(error).splitlines()[0]} Use --device auto") from None
    return name


def prepare(run: RunSettings, out: Path) -> tuple[Workshop, Plan, list[Node]]:
    """Check all that can be checked before work starts; the plan, and its nodes that are still to be made."""
    shop = Workshop(run, Store(out), open_device(run.device))
    _ = shop.target
    for name in run.evaluate.perturbations:
        if name not in attacks and name != "trigger":
            perturbation(name)
    plan = make_plan(run, shop.fingerprints())
    missing = {id for cell in plan.cells if cell.node for id in _missing(plan, cell.node, shop.store)}
    return shop, plan, [node for node in plan.nodes.values() if node.id in missing]


def show_plan(plan: Plan, todo: list[Node], console: Console) -> None:
    """What a dry run prints: every cell, and what exists or will be made."""
    ids = {node.id for node in todo}
    table = Table("attack", "defense", "seed", "state", title=f"{len(plan.cells)} cells")
    for cell in plan.cells:
        state = "not applicable" if cell.node is None else "to make" if cell.node in ids else "there"
        table.add_row(cell.attack, cell.defense, str(cell.seed), state)
    console.print(table)
    for kind in ("backdoor", "defense", "evaluation"):
        of_kind = [node for node in plan.nodes.values() if node.kind == kind]
        make = sum(node.id in ids for node in of_kind)
        console.print(f"{kind}s: {len(of_kind)}, of which {make} to make")


def run_matrix(run: RunSettings, out: Path, plugins: tuple[Path, ...], console: Console) -> Report:
    """Make what the plan lacks. Interrupted or failed, it leaves finished work for the next call."""
    with Store(out).locked():
        shop, plan, todo = prepare(run, out)
        shop.store.sweep()
        _write_run(run, plan, out, plugins, console)
        for images in (shop.train, shop.test):
            _show_skipped(images.skipped, console)
        workers = min(worker_count(run, shop.device), max(1, len(todo)))
        console.print(
            f"{len(plan.cells)} cells; {len(plan.nodes) - len(todo)} artefacts there, {len(todo)} to make, "
            f"on {shop.device} in {workers} process{'es' if workers > 1 else ''}"
        )
        failures, done = {}, 0
        spent: Counter[str] = Counter()
        for outcome in execute(todo, run, out, shop.device, workers, plugins):
            done += 1
            if outcome.error:
                failures[outcome.node.label] = outcome.error
                console.print(f"[{done}/{len(todo)}] FAILED {outcome.node.label}: {outcome.error}", markup=False)
            else:
                card = shop.store.card(outcome.node.kind, outcome.node.id)
                spent[_work(outcome.node)] += card["seconds"]
                line = f"[{done}/{len(todo)}] {outcome.node.label} ({card['seconds']:.0f} s){_counts(card)}"
                console.print(line, markup=False, highlight=False)
        if spent:
            parts = ", ".join(f"{work} {seconds:.0f}" for work, seconds in spent.most_common())
            console.print(f"process seconds: {parts}", markup=False, highlight=False)
        return Report(done - len(failures), len(plan.nodes) - len(todo), failures)


def _missing(plan: Plan, id: str, store: Store) -> set[str]:
    """A node and what it needs, as far as it is not there; what only a finished node needs is not remade."""
    node = plan.nodes[id]
    if store.has(node.kind, id):
        return set()
    return {id}.union(*(_missing(plan, need, store) for need in node.needs))


def _work(node: Node) -> str:
    return node.chain[-1] if node.kind == "defense" else {"backdoor": "poisoning"}.get(node.kind, node.kind)


def _counts(card: dict) -> str:
    poisoned = f", {card['poisoned']} of {card['pairs']} pairs poisoned" if "poisoned" in card else ""
    skipped = f", {len(card['skipped'])} file(s) skipped" if card.get("skipped") else ""
    return poisoned + skipped


def _show_skipped(skipped: tuple[str, ...], console: Console) -> None:
    for reason in skipped[:5]:
        console.print(f"skipped {reason}", markup=False)
    if len(skipped) > 5:
        console.print(f"... and {len(skipped) - 5} more; {len(skipped)} files skipped in all")


def _write_run(run: RunSettings, plan: Plan, out: Path, plugins: tuple[Path, ...], console: Console) -> None:
    """What the folder's tables show: settings, cells and their nodes.

    Cells of earlier runs into the folder stay if only attacks, defenses and seeds differ. Otherwise they would be
    mixed with numbers of other settings, so they leave the tables; what was made for them stays.
    """
    cells = [
        {
            "model": run.model.label,
            "target": run.target.lower(),
            "dataset": run.dataset,
            "attack": cell.attack,
            "defense": cell.defense,
            "seed": cell.seed,
            "evaluation": cell.node,
            "backdoor": plan.nodes[cell.node].needs[0] if cell.node else None,
        }
        for cell in plan.cells
    ]
    file = out / RUN_FILE
    settings = run.model_dump(mode="json")
    nothing: dict[str, Any] = {"settings": settings, "plugins": [], "cells": []}
    old = json.loads(file.read_text()) if file.is_file() else nothing
    kept = [cell for cell in old["cells"] if _place(cell) not in {_place(cell) for cell in cells}]
    if kept and not _comparable(old["settings"], settings):
        console.print(
            f"{len(kept)} cells of earlier runs into {out} had other settings and leave its tables; "
            "what was made for them stays. Give runs that are to be kept an --out of their own."
        )
        kept = []
    contents = {
        "settings": settings,
        "plugins": list(dict.fromkeys([*old["plugins"], *(str(p.resolve()) for p in plugins)])),
        "cells": kept + cells,
    }
    aside = file.with_suffix(".tmp")
    aside.write_text(json.dumps(contents, indent=2) + "\n")
    aside.replace(file)


def _comparable(first: dict, second: dict) -> bool:
    """Whether two runs differ in nothing but what their cells are named by, and how they were executed."""
    free = {"attacks", "defenses", "seeds", "took", "device", "workers", "pretrain"}
    return {k: v for k, v in first.items() if k not in free} == {k: v for k, v in second.items() if k not in free}


def _place(cell: dict) -> tuple:
    return tuple(cell[key] for key in ("model", "target", "dataset", "attack", "defense", "seed"))
