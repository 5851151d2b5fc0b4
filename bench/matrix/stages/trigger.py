"""The first stage: an attack prepares its trigger on the clean model."""

from collections.abc import Iterator

from safetensors.torch import save_file

from bench.core.attack import Trigger
from bench.core.cost import Scale, Work
from bench.core.randomness import derive
from bench.experiment.resources import Resources
from bench.experiment.settings import RunSettings
from bench.matrix.cards import Meter, describe, tensor_hash
from bench.matrix.plan import PERTURBATION, Node, Plan
from bench.matrix.stages.stage import Stage
from bench.results.records import TriggerCard
from bench.results.store import TRIGGER_FILE, Store


class TriggerStage(Stage):
    def make_one(self, node: Node, resources: Resources, store: Store) -> None:
        make_trigger(node, resources, store)

    def work(self, node: Node, run: RunSettings, scale: Scale) -> Work:
        return run.attack(node.attack).work(scale)


def make_trigger(node: Node, resources: Resources, store: Store) -> None:
    """Prepare the trigger of an attack; for a perturbation, one that no model is trained on."""
    cost = Meter(resources.device)
    method = resources.attack(node.attack)
    seed = fresh_seed(node.attack, node.seed) if node.inputs["purpose"] == PERTURBATION else node.seed
    preparation = resources.preparation(method, seed)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in method.prepare(preparation).items()}
    common = describe(node, resources.device, cost)
    card = TriggerCard(**common, log=preparation.log, trigger_hash=tensor_hash(tensors))
    with store.writing(node.kind, card) as folder:
        save_file(tensors, folder / TRIGGER_FILE)


def training_trigger(id: str, seed: int, store: Store) -> Trigger:
    """The trigger as it is put on training images."""
    return Trigger(derive(seed, "training"), store.prepared(id))


def fresh_trigger(id: str, attack: str, seed: int, store: Store) -> Trigger:
    """A trigger that no model was trained on, used as a perturbation."""
    return Trigger(fresh_seed(attack, seed), store.prepared(id))


def fresh_seed(attack: str, seed: int) -> int:
    """The seed of a trigger that is used as a perturbation."""
    return derive(seed, attack, PERTURBATION)


def training_triggers(plan: Plan, seed: int, resources: Resources, store: Store) -> Iterator[tuple[str, Trigger]]:
    """The attacks of a plan and their training triggers of one seed, from the store or made now."""
    for node in plan.nodes.values():
        if node.kind == "trigger" and node.seed == seed and node.inputs["purpose"] != PERTURBATION:
            if not store.has(node.kind, node.id):
                with store.locked():
                    make_trigger(node, resources, store)
            yield node.attack, training_trigger(node.id, seed, store)
