"""From settings to a plan: the cells of the matrix, and the artefacts they share, each with a versioned id.

A node's id is a hash of what determines its contents: the method's settings and version, the ids of what it is made
from, the data, the seed. The same node is made once, whoever needs it; a changed meaning gets another id.
"""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

from bench.core.attack import Attack, attacks
from bench.core.defense import Defense, defenses
from bench.core.images import hash_file, hash_of
from bench.core.registry import PLUGIN_MODULE, Registry
from bench.experiment.settings import BASE, RunSettings, Variants

# Raise it when a change of the stages changes what they make: old artefacts are then not reused.
VERSION = 2
# The row of a table that shows the clean model under the same trigger.
CLEAN_MODEL = "clean_model"
# The row of backdoored models as they are.
UNDEFENDED = "none"
# The purpose of a trigger that no model was trained on.
PERTURBATION = "perturbation"

Kind = Literal["trigger", "backdoor", "defense", "evaluation"]


@dataclass(frozen=True)
class Node:
    """An artefact to make.

    `chain` are the defenses applied so far; `needs` the ids of the nodes it is made from; `variant` one of those that
    give it this id, under whose settings it is made.
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

    @property
    def label(self) -> str:
        what = CLEAN_MODEL if self.clean else "+".join(self.chain) or UNDEFENDED
        subject = f"{self.attack} / {what}" if self.kind in ("defense", "evaluation") else self.attack
        if self.inputs.get("purpose") == PERTURBATION:
            subject += f" as a {PERTURBATION}"
        return ", ".join(part for part in (f"{self.kind} {subject}", self.variant, f"seed {self.seed}") if part)

    @property
    def victim_needs(self) -> tuple[str, ...]:
        """Of a defense or an evaluation: the backdoor, and the defense that its victim has already, if any."""
        defended = len(self.chain) > (self.kind == "defense")
        return self.needs[: 1 + defended]


@dataclass(frozen=True)
class Cell:
    """One number of the matrix to be: which evaluation answers it; None where the defense cannot face the attack."""

    variant: str
    attack: str
    defense: str
    seed: int
    node: str | None


@dataclass(frozen=True)
class Plan:
    """Nodes in an order in which each comes after what it needs, and the cells they fill."""

    nodes: dict[str, Node]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Fingerprints:
    """What every node of a run depends on, as fingerprints: `tuned` and `tested` are of data sets.

    `backdoored` is of a file of weights that were backdoored elsewhere; empty where the run poisons pairs itself.
    """

    model: str
    pairs: str
    words: str
    tuned: str
    tested: str
    backdoored: str = ""


def make_plan(variants: Variants, prints: Mapping[str, Fingerprints]) -> Plan:
    """The nodes and cells of all variants of a run; what they share is one node.

    What a defense does not touch is told once: a variant has a cell of the clean model, of no defense, or of a defense
    that cannot face the attack only where no earlier variant has the same.
    """
    nodes: dict[str, Node] = {}
    cells: list[Cell] = []
    for name, run in variants.items():
        plan = _plan_of(name, run, prints[name])
        nodes |= {id: node for id, node in plan.nodes.items() if id not in nodes}
        untouched = [c for c in cells if c.defense in (CLEAN_MODEL, UNDEFENDED) or c.node is None]
        told = {(c.attack, c.defense, c.seed, c.node) for c in untouched}
        cells += [c for c in plan.cells if (c.attack, c.defense, c.seed, c.node) not in told]
    return Plan(nodes, tuple(cells))


def _plan_of(variant: str, run: RunSettings, prints: Fingerprints) -> Plan:
    """The nodes and cells of one variant, attack by attack."""
    nodes: dict[str, Node] = {}
    cells = []

    def add(kind: Kind, determines: dict[str, Any], **fields: Any) -> Node:
        inputs = {"kind": kind, "version": VERSION, **determines}
        node = Node(id=hash_of(inputs), kind=kind, inputs=inputs, variant=variant, **fields)
        nodes.setdefault(node.id, node)
        return node

    def trigger(attack: str, seed: int, purpose: str) -> Node:
        """What an attack prepares: the same for every recipe of poisoning with the same pairs."""
        poison = _recipe(run, attack)
        determines = {
            "model": prints.model,
            "pairs": prints.pairs,
            "words": prints.words,
            "attack": _identity(attacks, attack, run),
            "poison": {k: poison[k] for k in (("pairs", "pool", "count") if "pool" in poison else ("pairs",))},
            "target": run.target.lower(),
            "seed": seed,
            "purpose": purpose,
        }
        return add("trigger", determines, attack=attack, seed=seed)

    def backdoor(attack: str, seed: int) -> Node:
        stamped = trigger(attack, seed, "backdoor").id
        implanted: dict[str, Any] = {"backdoored": prints.backdoored, "trigger": stamped}
        if not prints.backdoored:
            implanted = {"pairs": prints.pairs, "words": prints.words, "poison": _recipe(run, attack)}
        determines = {
            "model": prints.model,
            "attack": _identity(attacks, attack, run),
            "target": run.target.lower(),
            "seed": seed,
            **implanted,
        }
        return add("backdoor", determines, attack=attack, seed=seed, needs=(stamped,))

    def defended(subject: str, backdoor: Node, chain: tuple[str, ...]) -> Node:
        determines = {
            "subject": subject,
            "defense": _identity(defenses, chain[-1], run, backdoor.attack),
            "dataset": prints.tuned,
            "pairs": prints.pairs,
            "target": run.target.lower(),
            "seed": backdoor.seed,
        }
        needs = (backdoor.id,) if subject == backdoor.id else (backdoor.id, subject)
        return add("defense", determines, attack=backdoor.attack, seed=backdoor.seed, chain=chain, needs=needs)

    def evaluation(subject: str, backdoor: Node, chain: tuple[str, ...], clean: bool = False) -> Node:
        determines: dict[str, Any] = {
            "subject": subject,
            "backdoor": backdoor.id,
            "clean": clean,
            "dataset": prints.tested,
            "evaluate": _evaluation(run),
            "perturbing": {p: _identity(attacks, p, run) for p in run.evaluate.perturbations if p in attacks},
            "seed": backdoor.seed,
        }
        needs: tuple[str, ...] = (backdoor.id,)
        needs += () if subject in (backdoor.id, prints.model) else (subject,)
        needs += tuple(trigger(p, backdoor.seed, PERTURBATION).id for p in determines["perturbing"])
        place = {"attack": backdoor.attack, "seed": backdoor.seed, "chain": chain, "clean": clean}
        return add("evaluation", determines, needs=needs, **place)

    for attack, seed in product(run.attacks, run.seeds):
        victim = backdoor(attack, seed)
        clean = evaluation(prints.model, victim, (), clean=True)
        cells.append(Cell(variant, attack, CLEAN_MODEL, seed, clean.id))
        for defense in run.defenses:
            chain = () if defense == UNDEFENDED else tuple(defense.split("+"))
            if not applicable(chain, attack):
                cells.append(Cell(variant, attack, defense, seed, None))
                continue
            subject = victim.id
            for length in range(1, len(chain) + 1):
                subject = defended(subject, victim, chain[:length]).id
            cells.append(Cell(variant, attack, defense, seed, evaluation(subject, victim, chain).id))
    return Plan(nodes, tuple(cells))


def applicable(chain: Iterable[str], attack: str) -> bool:
    """Whether a chain of defenses can face an attack: a key in the text needs a text side."""
    return not attacks[attack].text_key or all(defenses[part].zero_shot for part in chain)


def _recipe(run: RunSettings, attack: str) -> dict[str, Any]:
    """The settings of the recipe that matter to the attack."""
    free = () if run.poison.pool and attacks[attack].selective() else ("pool",)
    return {name: value for name, value in run.poison.for_ids().items() if name not in free}


def _evaluation(run: RunSettings) -> dict[str, Any]:
    """The settings of the evaluation that matter to its numbers; the data set has a fingerprint of its own."""
    return {name: value for name, value in run.evaluate.for_ids().items() if name not in ("batch_size", "dataset")}


def _identity(
    registry: Registry[type[Attack]] | Registry[type[Defense]], name: str, run: RunSettings, against: str = ""
) -> dict[str, Any]:
    """What determines what a method does: its name, version and settings, defaults included."""
    method = registry[name]
    settings = method.parse(run.method(name, against), name)
    identity = {"name": name, "version": method.version, "settings": settings.for_ids()}
    files = {k: hash_file(v) for k, v in settings if isinstance(v, Path) and v.is_file()}
    source = inspect.getsourcefile(method)
    if method.__module__.startswith(PLUGIN_MODULE) and source:
        # The author of a file at hand edits it without raising a version.
        files["source"] = hash_file(Path(source))
    return identity | ({"files": files} if files else {})
