"""Run a matrix: find what is there, make what is missing, tell what happened."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from bench.core.attack import attacks
from bench.core.defense import defenses
from bench.core.errors import BenchError
from bench.experiment.resources import Resources, open_resources
from bench.experiment.settings import BASE, OWN_TRIGGER, RunSettings, Variants, worker_count
from bench.matrix.plan import Node, Plan, make_plan
from bench.matrix.schedule import NOT_TRIED
from bench.matrix.watch import watching
from bench.matrix.workers import execute
from bench.models import probe
from bench.results.run_file import write_run
from bench.results.store import Store
from bench.training.fine_tuning import FineTuning
from metrics.perturbations import perturbation


@dataclass(frozen=True)
class Report:
    """How a run ended: nodes made now, found made, and failed with their reasons; whether tables show cells of it."""

    made: int
    found: int
    failures: dict[str, str]
    shown: bool


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
        raise BenchError(f"--device {name} is not here. Use --device auto. ({str(error).splitlines()[0]})") from None
    return name


def prepare(variants: Variants, out: Path) -> tuple[dict[str, Resources], Plan, list[Node]]:
    """Check all that can be checked before work starts; open_resources by variant, the plan, what is to be made."""
    resources_of = open_resources(variants, Store(out), open_device(variants[BASE].device))
    for resources in resources_of.values():
        check_perturbations(resources.run)
        check_heads(resources)
        for data in resources.targeted:
            resources.target_in(data)
        if no_pairs := lacks_pairs(resources):
            raise BenchError(no_pairs)
    plan = make_plan(variants, {name: resources.fingerprints() for name, resources in resources_of.items()})
    if variants[BASE].model.backdoored is not None:
        # A file that does not fit is found out now, not by every cell.
        resources_of[BASE].open_backdoored()
    return resources_of, plan, unmade(plan, Store(out))


def lacks_pairs(resources: Resources) -> str:
    """Why there are no pairs to poison or to fine-tune on, if they are needed."""
    tuned = [name for name in resources.run.single_defenses if issubclass(defenses[name], FineTuning)]
    if resources.has_pairs or (resources.run.model.backdoored is not None and not tuned):
        return ""
    return f"the data set '{resources.run.dataset}' has no image-text pairs of its own. Give --pairs FILE"


def check_perturbations(run: RunSettings) -> None:
    for name in run.evaluate.perturbations:
        if name not in attacks and name != OWN_TRIGGER:
            perturbation(name)


def check_heads(resources: Resources) -> None:
    """Check that no classifier of its own classes is evaluated on others.

    Raises:
        BenchError: one would be, and its numbers would mean nothing.
    """
    bound = [name for name in resources.run.single_defenses if not defenses[name].zero_shot]
    if bound and resources.tuned.classes() != resources.tested.classes():
        tuned = resources.run.tuned_on or resources.run.dataset
        raise BenchError(
            f"{', '.join(bound)} learns the classes of {tuned}, and {resources.run.tested_on} has others. Leave it "
            "out of --defenses"
        )


def unmade(plan: Plan, store: Store) -> list[Node]:
    """The nodes of a plan that are still to be made."""
    missing = {id for cell in plan.cells if cell.node for id in _missing(plan, cell.node, store)}
    return [node for node in plan.nodes.values() if node.id in missing]


def run_matrix(variants: Variants, out: Path, plugins: tuple[Path, ...], console: Console) -> Report:
    """Make what the plan lacks. Interrupted or failed, it leaves finished work for the next call."""
    with Store(out).locked(), watching(console) as watch:
        resources_of, plan, todo = prepare(variants, out)
        resources = resources_of[BASE]
        resources.store.sweep()
        _show_skipped(resources_of, console)
        if todo:
            told = probe(resources.clip, resources.test, resources.tested.templates)
            console.print(str(told), soft_wrap=True)
        workers = min(worker_count(resources.run, resources.device), max(1, len(todo)))
        where = f"on {resources.device} in {workers} process{'es' if workers > 1 else ''}"
        if resources.run.executor == "ray":
            where = "on a Ray cluster"
        console.print(
            f"{len(plan.cells)} cells; {len(plan.nodes) - len(todo)} artefacts there, {len(todo)} to make, {where}"
        )

        def record() -> bool:
            write_run(variants, plan, out, plugins, console)
            return True

        # Earlier cells may leave the tables for this run's, so not before it has one to show.
        shown = any(cell.node and resources.store.has("evaluation", cell.node) for cell in plan.cells) and record()
        failures, done = {}, 0
        spent: Counter[str] = Counter()
        for outcome in execute(todo, variants, out, resources.device, workers, plugins, watch):
            done += 1
            if outcome.error:
                failures[outcome.node.label] = outcome.error
            if outcome.error == NOT_TRIED:
                console.print(f"[{done}/{len(todo)}] not tried: {outcome.node.label}")
            elif outcome.error:
                console.print(f"[{done}/{len(todo)}] FAILED {outcome.node.label}: {outcome.error}")
            else:
                shown = shown or (outcome.node.kind == "evaluation" and record())
                card = resources.store.card(outcome.node.kind, outcome.node.id)
                spent[_work(outcome.node)] += card["seconds"]
                line = f"[{done}/{len(todo)}] {outcome.node.label} ({card['seconds']:.0f} s){_counts(card)}"
                console.print(line)
        if spent:
            parts = ", ".join(f"{work} {seconds:.0f}" for work, seconds in spent.most_common())
            console.print(f"process seconds: {parts}")
        return Report(done - len(failures), len(plan.nodes) - len(todo), failures, shown)


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
    skipped = f", {card['skipped']['count']} file(s) skipped" if card.get("skipped", {}).get("count") else ""
    return poisoned + skipped + "".join(f"; warning: {why}" for why in card.get("unchecked", []))


def _show_skipped(resources_of: dict[str, Resources], console: Console) -> None:
    images = {id(images): images for resources in resources_of.values() for images in (resources.train, resources.test)}
    skipped = list(dict.fromkeys(reason for some in images.values() for reason in some.skipped))
    for reason in skipped[:5]:
        console.print(f"skipped {reason}")
    if len(skipped) > 5:
        console.print(f"... and {len(skipped) - 5} more; {len(skipped)} files skipped in all")
