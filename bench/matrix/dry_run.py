"""`bench run --dry-run`: print cells, shared and existing artefacts, and the estimated cost of the rest."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.core.errors import BenchError
from bench.experiment.resources import Resources, open_device, open_resources
from bench.experiment.settings import BASE, Variants
from bench.matrix.estimate import ASSUMPTION, Cost, estimate, unknown_sizes
from bench.matrix.plan import Fingerprints, Node, Plan, make_plan
from bench.matrix.runner import check_installed, lacks_pairs, unmade, unsuited_method
from bench.matrix.stages import STAGES
from bench.models import weights_at_hand
from bench.results.store import CACHE, Store

# With more cells than this, a table of counts by variant and defense is printed.
EVERY_CELL = 60
KINDS = tuple(STAGES)


def dry_run(variants: Variants, out: Path, console: Console, speed: float = 1.0) -> None:
    """Print the plan. Nothing is made or downloaded; missing data and weights are named."""
    open_device(variants[BASE].execution.device)
    plan, missing = plan_at_hand(variants, out)
    show_plan(plan, unmade(plan, Store(out)), variants, console, speed)
    show_missing(missing, console)


def plan_at_hand(variants: Variants, out: Path) -> tuple[Plan, list[str]]:
    """The plan, with placeholders for what is not on this machine; and what that is."""
    missing: dict[str, None] = {}
    resources_of = open_resources(variants, out / CACHE, "cpu")
    plan = make_plan(variants, {name: _fingerprints(resources, missing) for name, resources in resources_of.items()})
    return plan, list(missing)


def show_missing(missing: Iterable[str], console: Console) -> None:
    """Print what is not on this machine, once each."""
    unique = list(dict.fromkeys(missing))
    for reason in unique:
        console.print(f"missing: {reason}")
    if unique:
        console.print("Artefacts that depend on what is missing are counted as still to make.")


def _fingerprints(resources: Resources, missing: dict[str, None]) -> Fingerprints:
    try:
        if problem := lacks_pairs(resources) or unsuited_method(resources):
            missing[problem] = None
    except BenchError as error:
        missing[str(error)] = None
    try:
        check_installed(resources.run)
    except BenchError as error:
        missing[str(error)] = None
    for data in (resources.dataset, resources.tuned, resources.tested):
        try:
            data.classes()
        except BenchError as error:
            missing[str(error)] = None
        else:
            if data in resources.targeted:
                resources.target_in(data)
    values = {}
    for name, read in resources.fingerprints().items():
        try:
            model = resources.run.model
            if name == "model" and not model.embedded and not weights_at_hand(model):
                raise BenchError(
                    f"weights of {model.label} are not on this machine: the run downloads them. Where it cannot, give "
                    "them with --checkpoint FILE"
                )
            values[name] = read()
        except BenchError as error:
            missing[str(error)] = None
            # The message names what is missing, so it can stand for its fingerprint.
            values[name] = str(error)
    return Fingerprints(**values)


def show_plan(plan: Plan, todo: list[Node], variants: Variants, console: Console, speed: float = 1.0) -> None:
    """Print the cells or their counts, what they share, and GPU hours and disk space of the nodes `todo`."""
    ids = {node.id for node in todo}
    console.print(_cells(plan, ids) if len(plan.cells) <= EVERY_CELL else _counts(plan, ids))
    for kind in KINDS:
        of_kind = [node for node in plan.nodes.values() if node.kind == kind]
        make = sum(node.id in ids for node in of_kind)
        console.print(f"{kind}s: {len(of_kind)}, of which {make} to make{_sharing(plan, of_kind)}")
    if todo:
        _show_costs(estimate(todo, variants, speed), variants, console)


def _cells(plan: Plan, ids: set[str]) -> Table:
    table = Table("variant", "task", "attack", "defense", "seed", "state", title=f"{len(plan.cells)} cells")
    for cell in plan.cells:
        state = cell.reason or ("to make" if cell.node in ids else "there")
        table.add_row(cell.variant, cell.task, cell.attack, cell.defense, str(cell.seed), state)
    return table


def _counts(plan: Plan, ids: set[str]) -> Table:
    defenses = list(dict.fromkeys(cell.defense for cell in plan.cells))
    title = f"{len(plan.cells)} cells: to make, of all, over attacks, tasks and seeds"
    table = Table("variant", *defenses, title=title)
    for variant in dict.fromkeys(cell.variant for cell in plan.cells):
        cells = [cell for cell in plan.cells if cell.variant == variant and cell.node]
        every = Counter(cell.defense for cell in cells)
        make = Counter(cell.defense for cell in cells if cell.node in ids)
        table.add_row(variant, *(f"{make[d]} of {every[d]}" if every[d] else "" for d in defenses))
    return table


def _sharing(plan: Plan, nodes: list[Node]) -> str:
    """How many of these nodes would be made if cells shared none; "" if they share none."""
    ancestors = {cell.node: _ancestors(plan, cell.node) for cell in plan.cells if cell.node}
    ids = {node.id for node in nodes}
    uses = sum(len(ancestors[cell.node] & ids) for cell in plan.cells if cell.node)
    return f"; {uses} without sharing" if uses > len(nodes) else ""


def _ancestors(plan: Plan, id: str) -> set[str]:
    """A node and all that it is made from."""
    return {id}.union(*(_ancestors(plan, need) for need in plan.nodes[id].needs))


def _show_costs(costs: Mapping[str, Cost], variants: Variants, console: Console) -> None:
    total = sum(costs.values(), Cost())
    parts = ", ".join(f"{kind}s {_hours(costs[kind])}" for kind in KINDS if kind in costs)
    disk = ", ".join(f"{kind.rstrip('s')}s {_gigabytes(costs[kind])}" for kind in costs)
    console.print(f"estimate: {_hours(total)} of one GPU ({parts})")
    console.print(f"estimate: {_gigabytes(total)} of disk ({disk})")
    console.print(ASSUMPTION)
    if unknown := unknown_sizes(variants):
        console.print(f"taken as ImageNet's or ViT-B-32's size: {', '.join(unknown)}")


def _hours(cost: Cost) -> str:
    return _rounded(cost.seconds / 3600, "h")


def _gigabytes(cost: Cost) -> str:
    return _rounded(cost.size / 1e9, "GB")


def _rounded(value: float, unit: str) -> str:
    return f"{value:.1f} {unit}" if value >= 0.1 or not value else f"< 0.1 {unit}"
