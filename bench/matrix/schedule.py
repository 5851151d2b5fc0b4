"""Which work comes next: nodes as units of work, each as soon as what it needs is there."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from bench.core.images import hash_of
from bench.matrix.plan import Node

# Evaluations in one unit, at most: they wait for each other's defenses, and their models are in memory together.
EVALUATIONS_PER_UNIT = 16
# The error of a node that needs a failed one.
NOT_TRIED = "not tried, since what it is made from failed"


@dataclass(frozen=True)
class Outcome:
    """How the making of a node ended: `error` is empty if it is there."""

    node: Node
    error: str = ""


@dataclass(frozen=True)
class WorkUnit:
    """What one worker makes in one go: a node, or evaluations of one backdoor. `alone`: nothing else runs with it."""

    nodes: tuple[Node, ...]
    alone: bool = False


def work_units(nodes: Iterable[Node]) -> list[WorkUnit]:
    """The nodes as units of work, in their order.

    Evaluations that differ in the victim alone are one unit, which comes where the last of them stands: all images are
    then triggered and perturbed once for them.
    """
    groups: defaultdict[str, list[Node]] = defaultdict(list)
    order = list(nodes)
    for node in order:
        groups[_group(node)].append(node)
    at = {node.id: place for place, node in enumerate(order)}
    parts = [
        group[i : i + EVALUATIONS_PER_UNIT]
        for group in groups.values()
        for i in range(0, len(group), EVALUATIONS_PER_UNIT)
    ]
    return [WorkUnit(tuple(part)) for part in sorted(parts, key=lambda part: at[part[-1].id])]


class Schedule:
    """The units of a run: waiting, running, done.

    A node that needs a failed one is not tried; the others of its unit are. A unit whose worker died is cut into its
    nodes, and each is tried again when nothing else runs or can run: what else was at work may have taken the memory.
    A node that dies alone has failed.
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._waiting = work_units(nodes)
        self._unmade = {node.id for unit in self._waiting for node in unit.nodes}
        self._failed: set[str] = set()
        self.running: list[WorkUnit] = []

    def next(self) -> WorkUnit | None:
        """A unit to start now, if there is one; what runs alone comes last."""
        if any(unit.alone for unit in self.running):
            return None
        ready = [unit for unit in self._waiting if not any(self._unmade & set(node.needs) for node in unit.nodes)]
        for unit in sorted(ready, key=lambda unit: unit.alone):
            if not (unit.alone and self.running):
                self._waiting.remove(unit)
                self.running.append(unit)
                return unit
        return None

    def blocked(self) -> list[Outcome]:
        """Nodes that will not be tried, since what they are made from failed."""
        outcomes: list[Outcome] = []
        while found := [n for unit in self._waiting for n in unit.nodes if self._failed & set(n.needs)]:
            outcomes += [self._end(node, NOT_TRIED) for node in found]
            lost = {node.id for node in found}
            left = [replace(t, nodes=tuple(n for n in t.nodes if n.id not in lost)) for t in self._waiting]
            self._waiting = [unit for unit in left if unit.nodes]
        return outcomes

    def ended(self, unit: WorkUnit, errors: Mapping[str, str]) -> list[Outcome]:
        """The outcomes of a unit, given why some of its nodes failed."""
        self.running.remove(unit)
        return [self._end(node, errors.get(node.id, "")) for node in unit.nodes]

    def died(self, unit: WorkUnit) -> list[Outcome]:
        """The outcomes of a unit whose worker died: none yet, if it is tried again."""
        if unit.alone:
            reason = (
                "its worker process died again, with nothing else at work: perhaps it wants more memory than there is"
            )
            return self.ended(unit, {node.id: reason for node in unit.nodes})
        self.running.remove(unit)
        self._waiting += [WorkUnit((node,), alone=True) for node in unit.nodes]
        return []

    def _end(self, node: Node, error: str) -> Outcome:
        self._unmade.discard(node.id)
        if error:
            self._failed.add(node.id)
        return Outcome(node, error)


def _group(node: Node) -> str:
    """Equal for evaluations of one backdoor on the same images in the same way."""
    if node.kind != "evaluation":
        return node.id
    return hash_of({name: value for name, value in node.inputs.items() if name not in ("subject", "clean")})
