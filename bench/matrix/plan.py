"""The plan of a run: the cells of the matrix, and the artefacts they share, each with a versioned id.

The id of a node is a hash of all that determines its contents: the method's settings and version, the ids of the
nodes it is made from, the data, the seed. Cells that need the same node share it.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from bench.core.attack import Attack, Facing, attacks
from bench.core.defense import Defense, defenses
from bench.core.images import hash_file, hash_of
from bench.core.names import CLEAN_MODEL, UNDEFENDED
from bench.core.registry import PLUGIN_MODULE, Registry
from bench.core.task import Task, tasks
from bench.experiment.resources import Resources
from bench.experiment.settings import BASE, Experiment, RunSettings, Variants
from bench.results.records import Kind

# Raise it when the stages make something else, so that old artefacts are not reused.
VERSION = 3
# The purpose of a trigger that no model was trained on.
PERTURBATION = "perturbation"


@dataclass(frozen=True)
class Node:
    """An artefact to make.

    `chain`: the defenses applied so far. `needs`: the ids of the nodes it is made from. `variant`: the variant under
    whose settings it is made, one of those that share it. `task`: what an evaluation measures.
    """

    id: str
    kind: Kind
    attack: str
    seed: int
    chain: tuple[str, ...] = ()
    clean: bool = False
    needs: tuple[str, ...] = ()
    inputs: dict[str, Any] = field(default_factory=dict, compare=False)
    variant: str = BASE
    task: str = ""

    @property
    def label(self) -> str:
        what = CLEAN_MODEL if self.clean else "+".join(self.chain) or UNDEFENDED
        subject = f"{self.attack} / {what}" if self.kind in ("defense", "evaluation") else self.attack
        if self.inputs.get("purpose") == PERTURBATION:
            subject += f" as a {PERTURBATION}"
        kind = f"{self.task} {self.kind}" if self.task not in ("", "zero_shot") else self.kind
        return ", ".join(part for part in (f"{kind} {subject}", self.variant, f"seed {self.seed}") if part)

    @property
    def victim_needs(self) -> tuple[str, ...]:
        """The ids that a defense's or evaluation's victim is made from: the backdoor, and the last defense, if any."""
        defended = len(self.chain) > (self.kind == "defense")
        return self.needs[: 1 + defended]


@dataclass(frozen=True)
class PlannedCell:
    """A cell of the matrix; `node` is the id of its evaluation, or None with the reason why there can be none."""

    variant: str
    task: str
    attack: str
    defense: str
    seed: int
    node: str | None
    reason: str = ""


@dataclass(frozen=True)
class Plan:
    """Nodes by id, each after those it needs, and the cells."""

    nodes: dict[str, Node]
    cells: tuple[PlannedCell, ...]


@dataclass(frozen=True)
class Fingerprints:
    """Hashes of a run's inputs: clean model, pairs, class names and prompts (`words`), and data sets.

    `tuned` is the data set that defenses are tuned on, `tested` the evaluated one. `backdoored` is the file of weights
    that were backdoored elsewhere; "" if the run poisons pairs itself.
    """

    model: str
    pairs: str
    words: str
    tuned: str
    tested: str
    backdoored: str = ""


def read_fingerprints(resources: Resources) -> Fingerprints:
    return Fingerprints(**{name: read() for name, read in resources.fingerprints().items()})


def make_plan(variants: Variants, prints: Mapping[str, Fingerprints]) -> Plan:
    """The nodes and cells of all variants of a run; equal nodes of several variants are one.

    Rows that no defense can change (clean model, undefended, not applicable) are listed once, under the first variant
    that has them.
    """
    nodes: dict[str, Node] = {}
    cells: list[PlannedCell] = []
    for name, run in variants.items():
        plan = _VariantPlan(name, run, prints[name])
        plan.fill()
        nodes |= {id: node for id, node in plan.nodes.items() if id not in nodes}
        listed = {_row(c) for c in cells if c.defense in (CLEAN_MODEL, UNDEFENDED) or c.node is None}
        cells += [c for c in plan.cells if _row(c) not in listed]
    return Plan(nodes, tuple(cells))


class _VariantPlan:
    """The nodes and cells of one variant, attack by attack."""

    def __init__(self, variant: str, run: RunSettings, prints: Fingerprints) -> None:
        self.variant, self.run, self.prints = variant, run, prints
        self.nodes: dict[str, Node] = {}
        self.cells: list[PlannedCell] = []

    def fill(self) -> None:
        for attack, seed in product(self.run.attacks, self.run.seeds):
            backdoor = self._backdoor(attack, seed)
            for task in self.run.tasks:
                if tasks[task].clean_model_row:
                    self._cell(task, CLEAN_MODEL, backdoor, ())
            for defense in self.run.defenses:
                chain = () if defense == UNDEFENDED else tuple(defense.split("+"))
                for task in self.run.tasks:
                    self._cell(task, defense, backdoor, chain)

    def _cell(self, task: str, defense: str, backdoor: Node, chain: tuple[str, ...]) -> None:
        reason = unsuited(self.run, task, backdoor.attack, chain)
        node = None if reason else self._evaluation(task, defense, backdoor, chain).id
        self.cells.append(PlannedCell(self.variant, task, backdoor.attack, defense, backdoor.seed, node, reason))

    def _trigger(self, attack: str, seed: int, purpose: str) -> Node:
        """The trigger of an attack; the same for all poisoning recipes with the same pairs."""
        poison = _recipe(self.run, attack)
        determines = {
            "model": self.prints.model,
            "pairs": self.prints.pairs,
            "words": self.prints.words,
            "attack": _identity(attacks, attack, self.run),
            "poison": {k: poison[k] for k in (("pairs", "pool", "count") if "pool" in poison else ("pairs",))},
            "target": self.run.target.lower(),
            "seed": seed,
            "purpose": purpose,
        }
        return self._add("trigger", determines, attack=attack, seed=seed)

    def _backdoor(self, attack: str, seed: int) -> Node:
        trigger = self._trigger(attack, seed, "backdoor").id
        source: dict[str, Any] = {"backdoored": self.prints.backdoored, "trigger": trigger}
        if not self.prints.backdoored:
            poison = _recipe(self.run, attack)
            source = {"pairs": self.prints.pairs, "words": self.prints.words, "poison": poison}
        determines = {
            "model": self.prints.model,
            "attack": _identity(attacks, attack, self.run),
            "target": self.run.target.lower(),
            "seed": seed,
            **source,
        }
        return self._add("backdoor", determines, attack=attack, seed=seed, needs=(trigger,))

    def _defended(self, subject: str, backdoor: Node, chain: tuple[str, ...]) -> Node:
        """The last defense of a chain, applied to `subject`, the result of the others."""
        determines = {
            "subject": subject,
            "defense": _identity(defenses, chain[-1], self.run, backdoor.attack),
            "dataset": self.prints.tuned,
            "pairs": self.prints.pairs,
            "target": self.run.target.lower(),
            "seed": backdoor.seed,
        }
        if "base" in defenses[chain[-1]].needs:
            determines["model"] = self.prints.model
        needs = (backdoor.id,) if subject == backdoor.id else (backdoor.id, subject)
        return self._add("defense", determines, attack=backdoor.attack, seed=backdoor.seed, chain=chain, needs=needs)

    def _evaluation(self, task: str, defense: str, backdoor: Node, chain: tuple[str, ...]) -> Node:
        clean, subject = defense == CLEAN_MODEL, backdoor.id
        for length in range(1, len(chain) + 1):
            subject = self._defended(subject, backdoor, chain[:length]).id
        fresh = self.run.task(task).fresh_triggers()
        determines = {
            "subject": self.prints.model if clean else subject,
            "backdoor": backdoor.id,
            "clean": clean,
            "dataset": self.prints.tested,
            "task": _identity(tasks, task, self.run),
            "evaluate": self.run.evaluate.model_dump(mode="json", exclude={"batch_size", "dataset"}),
            "fresh_triggers": {name: _identity(attacks, name, self.run) for name in fresh},
            "seed": backdoor.seed,
        }
        needs: tuple[str, ...] = (backdoor.id,) if subject == backdoor.id else (backdoor.id, subject)
        needs += tuple(self._trigger(name, backdoor.seed, PERTURBATION).id for name in fresh)
        place = {"attack": backdoor.attack, "seed": backdoor.seed, "chain": chain, "clean": clean, "task": task}
        return self._add("evaluation", determines, needs=needs, **place)

    def _add(self, kind: Kind, determines: dict[str, Any], **fields: Any) -> Node:
        inputs = {"kind": kind, "version": VERSION, **determines}
        node = Node(id=hash_of(inputs), kind=kind, inputs=inputs, variant=self.variant, **fields)
        return self.nodes.setdefault(node.id, node)


def unsuited(run: RunSettings, task: str, attack: str, chain: tuple[str, ...]) -> str:
    """Why a chain of defenses cannot be used against an attack, or a task cannot measure it; "" if both can."""
    method = run.attack(attack)
    if chain and not defenses[chain[0]].alone:
        return f"{chain[0]}: it needs a defended model. Put it behind another, such as rvpt+{chain[0]}"
    for name in chain:
        if reason := run.defense(name, attack).unsuited(Facing(attack=method)):
            return f"{name}: {reason}"
    return run.task(task).unsuited(method, chain)


def _row(cell: PlannedCell) -> tuple:
    return cell.task, cell.attack, cell.defense, cell.seed, cell.node


def _recipe(run: RunSettings, attack: str) -> dict[str, Any]:
    """The settings of the poisoning recipe that the attack uses."""
    recipe = run.poison.model_dump(mode="json")
    if not run.poison.pool or not run.attack(attack).searches:
        del recipe["pool"]
    return recipe


def _identity(
    registry: Registry[type[Attack]] | Registry[type[Defense]] | Registry[type[Task]],
    name: str,
    run: Experiment,
    against: str = "",
) -> dict[str, Any]:
    """What determines a method's behaviour: its name, version and settings, defaults included."""
    method = registry[name]
    settings = method.parse(run.method(name, against), name)
    identity: dict[str, Any] = {
        "name": name,
        "version": method.version,
        "settings": settings.model_dump(mode="json"),
    }
    if present := settings.installed():
        identity["installed"] = present
    files = {k: hash_file(v) for k, v in settings if isinstance(v, Path) and v.is_file()}
    source = inspect.getsourcefile(method)
    if method.__module__.startswith(PLUGIN_MODULE) and source:
        # The author of a plug-in file edits it without raising its version.
        files["source"] = hash_file(Path(source))
    return identity | ({"files": files} if files else {})
