"""The order of work: nodes are grouped into work units, and each can start when the nodes it needs are made."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from bench.core.images import hash_of
from bench.matrix.plan import Node

# The most evaluations in a unit: all of them wait for the last defense, and their models are in memory together.
EVALUATIONS_PER_UNIT = 16
# The error of a node that needs a failed one.
NOT_TRIED = "not tried, since what it is made from failed"


@dataclass(frozen=True)
class Outcome:
    """A node that was tried; `error` is "" if it was made."""

    node: Node
    error: str = ""


@dataclass(frozen=True)
class WorkUnit:
    """Nodes that one worker makes together: one node, or evaluations of one backdoor.

    `alone`: no other unit may run at the same time.
    """

    nodes: tuple[Node, ...]
    alone: bool = False

    @property
    def label(self) -> str:
        """The label of its node; for several evaluations, the first label and the number of the others."""
        first, *others = self.nodes
        return f"{first.label} and {len(others)} more" if others else first.label


def work_units(nodes: Iterable[Node]) -> list[WorkUnit]:
    """The nodes as work units, in order.

    Evaluations that differ only in the victim are one unit, at the position of the last of them, so that images are
    triggered and perturbed once for all.
    """
    groups: defaultdict[str, list[Node]] = defaultdict(list)
    order = list(nodes)
    for node in order:
        groups[_group(node)].append(node)
    position = {node.id: i for i, node in enumerate(order)}
    parts = [
        group[i : i + EVALUATIONS_PER_UNIT]
        for group in groups.values()
        for i in range(0, len(group), EVALUATIONS_PER_UNIT)
    ]
    return [WorkUnit(tuple(part)) for part in sorted(parts, key=lambda part: position[part[-1].id])]


class Schedule:
    """The work units of a run that wait, run or are done.

    A node that needs a failed one is not tried; the other nodes of its unit are. If a worker dies, each node of its
    unit is tried again alone, after all other units, as these may have used up the memory. If the worker dies again,
    the node has failed.
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._waiting = work_units(nodes)
        self._unmade = {node.id for unit in self._waiting for node in unit.nodes}
        self._failed: set[str] = set()
        self.running: list[WorkUnit] = []

    def next(self) -> WorkUnit | None:
        """A unit to start now, if there is one; units that run alone come last."""
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
        """Remove the nodes that need a failed one, and return their outcomes."""
        outcomes: list[Outcome] = []
        while blocked := [n for unit in self._waiting for n in unit.nodes if self._failed & set(n.needs)]:
            outcomes += [self._end(node, NOT_TRIED) for node in blocked]
            ids = {node.id for node in blocked}
            rest = [replace(unit, nodes=tuple(n for n in unit.nodes if n.id not in ids)) for unit in self._waiting]
            self._waiting = [unit for unit in rest if unit.nodes]
        return outcomes

    def ended(self, unit: WorkUnit, errors: Mapping[str, str]) -> list[Outcome]:
        """The outcomes of a unit that ended; `errors` are the reasons of failed nodes, by id."""
        self.running.remove(unit)
        return [self._end(node, errors.get(node.id, "")) for node in unit.nodes]

    def died(self, unit: WorkUnit) -> list[Outcome]:
        """The outcomes of a unit whose worker died; none if its nodes are tried again."""
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
    """A key that is equal for evaluations that differ only in the victim."""
    if node.kind != "evaluation":
        return node.id
    return hash_of({name: value for name, value in node.inputs.items() if name not in ("subject", "clean")})
