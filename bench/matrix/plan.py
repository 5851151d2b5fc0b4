"""From settings to a plan: the cells of the matrix, and the artefacts they share, each with a versioned id.

A node's id is a hash of what determines its contents: the method's settings and version, the ids of what it is made
from, the data, the seed. The same node is made once, whoever needs it; a changed meaning gets another id.
"""

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.core.attack import Attack, attacks
from bench.core.dataset import Dataset, datasets
from bench.core.defense import Defense, defenses
from bench.core.images import hash_file, hash_of
from bench.core.registry import PLUGIN_MODULE
from bench.matrix.settings import RunSettings

# Raise it when a change of the stages changes what they make: old artefacts are then not reused.
VERSION = 2
# The row of a table that shows the clean model under the same trigger.
CLEAN_MODEL = "clean_model"

Kind = Literal["backdoor", "defense", "evaluation"]


@dataclass(frozen=True)
class Node:
    """An artefact to make. `chain` are the defenses applied so far; `needs` the ids of the nodes it is made from."""

    id: str
    kind: Kind
    attack: str
    seed: int
    chain: tuple[str, ...] = ()
    clean: bool = False
    needs: tuple[str, ...] = ()
    inputs: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def label(self) -> str:
        what = CLEAN_MODEL if self.clean else "+".join(self.chain) or "none"
        subject = self.attack if self.kind == "backdoor" else f"{self.attack} / {what}"
        return f"{self.kind} {subject}, seed {self.seed}"


@dataclass(frozen=True)
class Cell:
    """One number of the matrix to be: which evaluation answers it; None where the defense cannot face the attack."""

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
    """What every node of a run depends on, as fingerprints."""

    model: str
    pairs: str
    dataset: str
    words: str


def make_plan(run: RunSettings, prints: Fingerprints) -> Plan:
    """The nodes and cells of a run, attack by attack."""
    nodes: dict[str, Node] = {}
    cells = []

    def add(kind: Kind, determines: dict[str, Any], **fields: Any) -> Node:
        inputs = {"kind": kind, "version": VERSION, **determines}
        node = Node(id=hash_of(inputs), kind=kind, inputs=inputs, **fields)
        nodes.setdefault(node.id, node)
        return node

    def evaluation(subject: str, backdoor: Node, chain: tuple[str, ...], clean: bool = False) -> Node:
        determines = {
            "subject": subject,
            "backdoor": backdoor.id,
            "clean": clean,
            "dataset": prints.dataset,
            "evaluate": run.evaluate.model_dump(mode="json", exclude={"batch_size"}),
            "perturbing": {p: _identity(attacks[p], run) for p in run.evaluate.perturbations if p in attacks},
            "seed": backdoor.seed,
        }
        needs = (backdoor.id,) if subject in (backdoor.id, prints.model) else (backdoor.id, subject)
        place = {"attack": backdoor.attack, "seed": backdoor.seed, "chain": chain, "clean": clean}
        return add("evaluation", determines, needs=needs, **place)

    for attack in run.attacks:
        for seed in run.seeds:
            backdoor = add(
                "backdoor",
                {
                    "model": prints.model,
                    "pairs": prints.pairs,
                    "words": prints.words,
                    "attack": _identity(attacks[attack], run),
                    "poison": run.poison.model_dump(mode="json"),
                    "target": run.target.lower(),
                    "seed": seed,
                },
                attack=attack,
                seed=seed,
            )
            clean = evaluation(prints.model, backdoor, (), clean=True)
            cells.append(Cell(attack, CLEAN_MODEL, seed, clean.id))
            for defense in run.defenses:
                parts = () if defense == "none" else tuple(defense.split("+"))
                if attacks[attack].text_key and not all(defenses[part].zero_shot for part in parts):
                    cells.append(Cell(attack, defense, seed, None))
                    continue
                subject = backdoor.id
                chain: tuple[str, ...] = ()
                for part in parts:
                    chain = (*chain, part)
                    subject = add(
                        "defense",
                        {
                            "subject": subject,
                            "defense": _identity(defenses[part], run),
                            "dataset": prints.dataset,
                            "pairs": prints.pairs,
                            "target": run.target.lower(),
                            "seed": seed,
                        },
                        attack=attack,
                        seed=seed,
                        chain=chain,
                        needs=(backdoor.id,) if subject == backdoor.id else (backdoor.id, subject),
                    ).id
                cells.append(Cell(attack, defense, seed, evaluation(subject, backdoor, chain).id))
    return Plan(nodes, tuple(cells))


def _identity(method: type[Attack] | type[Defense] | type[Dataset], run: RunSettings) -> dict[str, Any]:
    """What determines what a method does: its name, version and settings, defaults included."""
    name = next(n for registry in (attacks, defenses, datasets) for n in registry if registry[n] is method)
    settings = method.parse(run.method(name), name)
    identity = {"name": name, "version": method.version, "settings": settings.model_dump(mode="json")}
    files = {k: hash_file(v) for k, v in settings if isinstance(v, Path) and v.is_file()}
    source = inspect.getsourcefile(method)
    if method.__module__.startswith(PLUGIN_MODULE) and source:
        # The author of a file at hand edits it without raising a version.
        files["source"] = hash_file(Path(source))
    return identity | ({"files": files} if files else {})
