"""Which work comes next: nodes as tasks, each as soon as what it needs is there."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from bench.core.images import hash_of
from bench.matrix.plan import Node

# Evaluations in one task, at most: they wait for each other's defenses, and their models are in memory together.
EVALUATIONS_PER_TASK = 16
# The error of a node that needs a failed one.
NOT_TRIED = "not tried, since what it is made from failed"


@dataclass(frozen=True)
class Outcome:
    """How the making of a node ended: `error` is empty if it is there."""

    node: Node
    error: str = ""


@dataclass(frozen=True)
class Task:
    """What one worker makes in one go: a node, or evaluations of one backdoor. `alone`: nothing else runs with it."""

    nodes: tuple[Node, ...]
    alone: bool = False


def tasks(nodes: Iterable[Node]) -> list[Task]:
    """The nodes as tasks, in their order; evaluations that differ in the victim alone are one, where the last stands.

    All images are then triggered and perturbed once for them.
    """
    groups: defaultdict[str, list[Node]] = defaultdict(list)
    order = list(nodes)
    for node in order:
        groups[_group(node)].append(node)
    at = {node.id: place for place, node in enumerate(order)}
    parts = [
        group[i : i + EVALUATIONS_PER_TASK]
        for group in groups.values()
        for i in range(0, len(group), EVALUATIONS_PER_TASK)
    ]
    return [Task(tuple(part)) for part in sorted(parts, key=lambda part: at[part[-1].id])]


class Schedule:
    """The tasks of a run: waiting, running, done.

    A node that needs a failed one is not tried; the others of its task are. A task whose worker died is cut into its
    nodes, and each is tried again when nothing else runs or can run: what else was at work may have taken the memory.
    A node that dies alone has failed.
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._waiting = tasks(nodes)
        self._unmade = {node.id for task in self._waiting for node in task.nodes}
        self._failed: set[str] = set()
        self.running: list[Task] = []

    def next(self) -> Task | None:
        """A task to start now, if there is one; what runs alone comes last."""
        if any(task.alone for task in self.running):
            return None
        ready = [task for task in self._waiting if not any(self._unmade & set(node.needs) for node in task.nodes)]
        for task in sorted(ready, key=lambda task: task.alone):
            if not (task.alone and self.running):
                self._waiting.remove(task)
                self.running.append(task)
                return task
        return None

    def blocked(self) -> list[Outcome]:
        """Nodes that will not be tried, since what they are made from failed."""
        outcomes: list[Outcome] = []
        while found := [n for task in self._waiting for n in task.nodes if self._failed & set(n.needs)]:
            outcomes += [self._end(node, NOT_TRIED) for node in found]
            lost = {node.id for node in found}
            left = [replace(t, nodes=tuple(n for n in t.nodes if n.id not in lost)) for t in self._waiting]
            self._waiting = [task for task in left if task.nodes]
        return outcomes

    def ended(self, task: Task, errors: Mapping[str, str]) -> list[Outcome]:
        """The outcomes of a task, given why some of its nodes failed."""
        self.running.remove(task)
        return [self._end(node, errors.get(node.id, "")) for node in task.nodes]

    def died(self, task: Task) -> list[Outcome]:
        """The outcomes of a task whose worker died: none yet, if it is tried again."""
        if task.alone:
            reason = (
                "its worker process died again, with nothing else at work: perhaps it wants more memory than there is"
            )
            return self.ended(task, {node.id: reason for node in task.nodes})
        self.running.remove(task)
        self._waiting += [Task((node,), alone=True) for node in task.nodes]
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
