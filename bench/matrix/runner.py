"""Run a matrix: make the missing artefacts, and report progress and failures."""

from dataclasses import dataclass
from itertools import product
from operator import itemgetter
from pathlib import Path

from rich.console import Console

from bench.core.defense import defenses, with_head
from bench.core.errors import BenchError
from bench.experiment.resources import Resources, open_device, open_resources
from bench.experiment.settings import BASE, RunSettings, Variants
from bench.matrix.forecast import Forecast, Pace, measured_pace
from bench.matrix.plan import Node, Plan, make_plan, read_fingerprints
from bench.matrix.schedule import NOT_TRIED, Outcome
from bench.matrix.watch import duration, watching
from bench.matrix.workers import execute
from bench.models import probe
from bench.results.records import BackdoorCard, Card, Cell, EvaluationCard, Skipped
from bench.results.run_file import label, write_run
from bench.results.store import CACHE, Store


@dataclass(frozen=True)
class Report:
    """The result of a run.

    `made` and `reused`: nodes made now, and found in the store. `failures`: reasons by label. `shown`: whether the
    folder's tables show cells of this run.
    """

    made: int
    reused: int
    failures: dict[str, str]
    shown: bool


def prepare(variants: Variants, out: Path) -> tuple[dict[str, Resources], Plan, list[Node]]:
    """Check settings, data and models before work starts; returns resources by variant, the plan, and missing nodes.

    Raises:
        BenchError: something needed is missing or does not fit.
    """
    resources_of = open_resources(variants, out / CACHE, open_device(variants[BASE].execution.device))
    for resources in resources_of.values():
        check_heads(resources)
        check_installed(resources.run)
        for data in resources.targeted:
            resources.target_in(data)
        if problem := lacks_pairs(resources) or unsuited_method(resources):
            raise BenchError(problem)
    plan = make_plan(variants, {name: read_fingerprints(resources) for name, resources in resources_of.items()})
    if (file := variants[BASE].model.backdoored) is not None:
        # A file that does not fit is an error now, not one in every cell.
        resources_of[BASE].open_backdoored(file)
    return resources_of, plan, unmade(plan, Store(out))


def lacks_pairs(resources: Resources) -> str:
    """Why there are no pairs, if attacks or defenses need them; "" otherwise."""
    tuned = any("pairs" in defenses[name].needs for name in resources.run.single_defenses)
    if resources.has_pairs or (resources.run.model.backdoored is not None and not tuned):
        return ""
    return (
        f"the data set '{resources.run.dataset}' has no image-text pairs of its own. Give --pairs FILE, or a folder; "
        "`bench data get cc3m --data-root DIR` says how to get the paper's"
    )


def unsuited_method(resources: Resources) -> str:
    """The first of a run's attacks and defenses that cannot be used on its model and pairs, and why; "" if all can.

    A defense that only one attack rules out is no error: its cell is not applicable.

    Raises:
        BenchError: there are no such pairs.
    """
    run, facing = resources.run, resources.facing
    for name in run.attacks:
        if reason := run.attack(name).unsuited(facing):
            return f"{name}: {reason}, or leave it out of --attacks"
    for attack, name in product(run.attacks, run.single_defenses):
        if reason := run.defense(name, attack).unsuited(facing):
            return f"{name}: {reason}. `bench show {name}` lists its settings; or leave it out of --defenses"
    return ""


def check_heads(resources: Resources) -> None:
    """Check that a defense with a classifier, such as a linear probe, is evaluated on the classes it learned.

    Raises:
        BenchError: it would be evaluated on other classes.
    """
    bound = with_head(resources.run.single_defenses)
    if bound and resources.tuned.classes() != resources.tested.classes():
        tuned = resources.run.tuned_on or resources.run.dataset
        raise BenchError(
            f"{', '.join(bound)} learns the classes of {tuned}, and {resources.run.tested_on} has others. Leave it "
            "out of --defenses"
        )


def check_installed(run: RunSettings) -> None:
    """Look for what the methods of a run need of this machine: before hours of poisoning, not after.

    Raises:
        BenchError: something is not installed.
    """
    for attack in run.attacks:
        method = run.attack(attack)
        method.check_installed()
        for name, value in method:
            if isinstance(value, Path) and not value.is_file():
                raise BenchError(
                    f"{attack}.{name} = {value}: no such file. Give another with --set {attack}.{name}=FILE"
                )
        for name in run.single_defenses:
            run.defense(name, attack).check_installed()


def unmade(plan: Plan, store: Store) -> list[Node]:
    """The nodes of a plan that are not in the store and that a cell needs."""
    missing = {id for cell in plan.cells if cell.node for id in _missing(plan, cell.node, store)}
    return [node for node in plan.nodes.values() if node.id in missing]


def cells_of(plan: Plan, variants: Variants) -> list[Cell]:
    """The cells of a plan as the results folder records them."""
    cells = []
    for cell in plan.cells:
        backdoor = plan.nodes[cell.node].needs[0] if cell.node else None
        cells.append(
            Cell(
                task=cell.task,
                attack=cell.attack,
                defense=cell.defense,
                seed=cell.seed,
                variant=label(cell.variant, variants),
                settings=cell.variant,
                evaluation=cell.node,
                backdoor=backdoor,
                reason=cell.reason,
                **variants[cell.variant].place,
            )
        )
    return cells


def run_matrix(variants: Variants, out: Path, plugins: tuple[Path, ...], console: Console) -> Report:
    """Make the missing nodes of a plan. After an interruption or failure, the next call reuses finished ones.

    Raises:
        BenchError: see `prepare`; or another run uses the folder. Failures of nodes are in the report.
    """
    store = Store(out)
    with store.locked(), watching(console) as watch:
        resources_of, plan, todo = prepare(variants, out)
        resources = resources_of[BASE]
        store.sweep()
        _show_skipped(resources_of, console)
        if todo:
            clean_accuracy = probe(resources.clip, resources.test, resources.tested.templates)
            console.print(str(clean_accuracy), soft_wrap=True)
        execution = resources.run.execution
        workers = min(execution.processes_on(resources.device), max(1, len(todo)))
        where = f"on {resources.device} in {workers} process{'es' if workers > 1 else ''}"
        if execution.executor == "ray":
            where = "on a Ray cluster"
        console.print(
            f"{len(plan.cells)} cells; {len(plan.nodes) - len(todo)} artefacts there, {len(todo)} to make, {where}"
        )
        pace = measured_pace(resources.clip, execution.threads) if todo else Pace(0, 0)
        processes = 1 if execution.executor == "ray" else workers
        forecast = Forecast(todo, variants, pace, resources.device, (out,), processes)
        if todo:
            console.print(str(forecast), soft_wrap=True)
        cells = cells_of(plan, variants)

        def record() -> bool:
            write_run(variants, cells, out, plugins, console.print)
            return True

        # Recording may remove cells of earlier runs from the tables, so only once this run has a finished cell.
        shown = any(cell.node and store.has("evaluation", cell.node) for cell in plan.cells) and record()
        failures: dict[str, str] = {}
        spent: dict[str, float] = {}
        for done, outcome in enumerate(execute(todo, variants, out, resources.device, workers, plugins, watch), 1):
            count = f"[{done}/{len(todo)}]"
            if outcome.error:
                failures[outcome.node.label] = outcome.error
                forecast.failed(outcome.node)
                console.print(f"{count} {_failed(outcome)}")
                continue
            shown = shown or (outcome.node.kind == "evaluation" and record())
            card = store.card(outcome.node.kind, outcome.node.id)
            spent[_work(outcome.node)] = spent.get(_work(outcome.node), 0) + card.seconds
            forecast.made(outcome.node, card.seconds)
            left = f"; about {duration(forecast.seconds)} left" if done < len(todo) else ""
            console.print(f"{count} {outcome.node.label} ({card.seconds:.0f} s){_counts(card)}{left}", soft_wrap=True)
        if spent:
            parts = ", ".join(
                f"{work} {seconds:.0f}" for work, seconds in sorted(spent.items(), key=itemgetter(1), reverse=True)
            )
            console.print(f"process seconds: {parts}")
        return Report(len(todo) - len(failures), len(plan.nodes) - len(todo), failures, shown)


def _missing(plan: Plan, id: str, store: Store) -> set[str]:
    """The ids of a node and of all it needs that are missing; for a finished node, none."""
    node = plan.nodes[id]
    if store.has(node.kind, id):
        return set()
    return {id}.union(*(_missing(plan, need, store) for need in node.needs))


def _failed(outcome: Outcome) -> str:
    if outcome.error == NOT_TRIED:
        return f"not tried: {outcome.node.label}"
    return f"FAILED {outcome.node.label}: {outcome.error}"


def _work(node: Node) -> str:
    return node.chain[-1] if node.kind == "defense" else {"backdoor": "poisoning"}.get(node.kind, node.kind)


def _counts(card: Card) -> str:
    """Counts and warnings of an artefact, for its line on the console."""
    poisoned = ""
    if isinstance(card, BackdoorCard) and card.pairs:
        poisoned = f", {card.poisoned} of {card.pairs} pairs poisoned"
    skipped = getattr(card, "skipped", Skipped()).count
    unchecked = card.unchecked if isinstance(card, EvaluationCard) else ()
    files = f", {skipped} file(s) skipped" if skipped else ""
    return poisoned + files + "".join(f"; warning: {why}" for why in unchecked)


def _show_skipped(resources_of: dict[str, Resources], console: Console) -> None:
    images = {id(images): images for resources in resources_of.values() for images in (resources.train, resources.test)}
    skipped = list(dict.fromkeys(reason for some in images.values() for reason in some.skipped))
    for reason in skipped[:5]:
        console.print(f"skipped {reason}")
    if len(skipped) > 5:
        console.print(f"... and {len(skipped) - 5} more; {len(skipped)} files skipped in all")
