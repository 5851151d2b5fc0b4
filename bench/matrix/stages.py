"""The stages as functions: backdoor a model, defend it, evaluate it. Each makes one artefact from others."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.core.attack import Trigger
from bench.core.clip import Clip
from bench.core.defense import CleanData, defenses
from bench.core.distributed import processes
from bench.core.errors import BenchError
from bench.core.images import Captioned
from bench.core.poisoning import draw_manifest, poison
from bench.core.randomness import derive, generator
from bench.core.shared_encoding import unified
from bench.core.victim import Victim
from bench.experiment.resources import Resources
from bench.matrix.cards import card_of, counted, tensor_hash
from bench.matrix.cost import Meter
from bench.matrix.leakage_check import check_apart
from bench.matrix.multi_gpu import make_on_gpus
from bench.matrix.plan import PERTURBATION, Node, Plan
from bench.results.store import DELTA_FILE, readable
from bench.tasks.zero_shot import observe
from bench.training.fine_tuning import FineTuning, contrastive_loss, fine_tune

TRIGGER_FILE = "trigger.safetensors"
MANIFEST_FILE = "manifest.csv"
PREDICTIONS_FILE = "predictions.parquet"
SIMILARITIES_FILE = "similarities.parquet"


def make(nodes: Sequence[Node], resources: Resources) -> dict[str, str]:
    """Make the artefacts of one node, or of evaluations of one backdoor together, from artefacts that are there.

    Returns why some of them could not be made, by id. What stops all of them is raised.
    """
    if nodes[0].kind == "evaluation":
        return make_evaluations(nodes, resources)
    stages: dict[str, Callable[[Node, Resources], None]] = {
        "trigger": make_trigger,
        "backdoor": make_backdoor,
        "defense": make_defense,
    }
    for node in nodes:
        if resources.run.gpus > 1 and processes() == 1 and _fine_tunes(node):
            make_on_gpus(make, node, resources.run, resources.store.out, resources.device)
        else:
            stages[node.kind](node, resources)
    return {}


def _fine_tunes(node: Node) -> bool:
    if node.kind == "defense":
        return issubclass(defenses[node.chain[-1]], FineTuning)
    return node.kind == "backdoor" and not node.inputs.get("backdoored")


def make_trigger(node: Node, resources: Resources) -> None:
    """Let an attack prepare what is the same for all images; a perturbation gets one that no model was trained on."""
    cost = Meter(resources.device)
    method = resources.attack(node.attack)
    perturbing = node.inputs["purpose"] == PERTURBATION
    given = resources.preparation(method, _fresh_seed(node.attack, node.seed) if perturbing else node.seed)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in method.prepare(given).items()}
    card = card_of(node, resources.device, cost) | {"trigger_hash": tensor_hash(tensors), "log": given.log}
    with resources.store.writing(node.kind, node.id, card) as folder:
        save_file(tensors, folder / TRIGGER_FILE)


def make_backdoor(node: Node, resources: Resources) -> None:
    """Poison pairs and fine-tune the clean model on them; or take a model that was backdoored elsewhere."""
    cost = Meter(resources.device)
    trigger = _trigger_of_training(node.needs[0], node.seed, resources)
    if resources.run.model.backdoored is None:
        clip, manifest, told = _poisoned(node, trigger, resources)
    else:
        clip, manifest, told = resources.open_backdoored(), None, {"backdoored": str(resources.run.model.backdoored)}
    of_trigger = {"trigger_seed": trigger.seed, "trigger_hash": tensor_hash(trigger.tensors)}
    with resources.store.writing(
        node.kind, node.id, card_of(node, resources.device, cost) | told | of_trigger
    ) as folder:
        clip.save(folder)
        save_file(trigger.tensors, folder / TRIGGER_FILE)
        if manifest is not None:
            manifest.to_csv(folder / MANIFEST_FILE, index=False)


def _poisoned(node: Node, trigger: Trigger, resources: Resources) -> tuple[Clip, pd.DataFrame, dict[str, Any]]:
    """The backdoored model, the manifest of its pairs, and what its card tells of them."""
    method, recipe = resources.attack(node.attack), resources.run.poison
    given = resources.preparation(method, node.seed)
    pairs = given.pairs
    manifest = draw_manifest(given, method, resources.dataset.caption_templates(), recipe.count)
    poisoned = poison(pairs, method, trigger, manifest)
    if method.learning_rate is not None:
        recipe = recipe.model_copy(update={"learning_rate": method.learning_rate})
    clip = resources.clip.copy()
    captions = clip.tokenize(poisoned.captions)

    def loss(clip: Clip, index: Tensor) -> Tensor:
        return contrastive_loss(clip.encode_image(poisoned.load(index)), clip.encode_text(captions[index]), clip.scale)

    losses = fine_tune(clip, len(pairs), recipe, loss, generator(node.seed, "poisoning", "batches"), pairs.ahead)
    roles = poisoned.manifest["role"].value_counts()
    told = {
        "pairs": len(pairs),
        "poisoned": int(roles.get("poison", 0)),
        "decoys": int(roles.get("decoy", 0)),
        "skipped": counted(pairs.skipped),
        "apart_from": resources.apart_from,
        "target": given.target,
        "learning_rate": recipe.learning_rate,
        "log": given.log | {"loss": losses},
    }
    return clip, poisoned.manifest, told


def make_defense(node: Node, resources: Resources) -> None:
    """Put the last defense of the chain on what the others made."""
    cost = Meter(resources.device)
    name = node.chain[-1]
    base = load_backdoor(node.needs[0], resources)
    victim = open_victim(node.victim_needs, resources, base)
    method = defenses[name].parse(resources.run.method(name, node.attack), name)
    asked: list[int] = []
    pairs: list[int] = []

    def open_pairs(n: int) -> Captioned:
        found = resources.clean_pairs(n)
        asked.append(n)
        pairs.append(len(found))
        return found

    data = CleanData(
        resources.train,
        resources.tuned.templates,
        node.seed,
        resources.tuned_target,
        open_pairs,
        check=lambda images: resources.apart(images, "few-shot images"),
    )
    defended = method.fit(victim, data)
    card = card_of(node, resources.device, cost)
    # Read anew: a defense that changed the model it was given must not go unseen.
    delta = defended.delta(load_backdoor(node.needs[0], resources))
    card |= {
        "log": data.log,
        "changed": sorted(delta),
        "tunable": tunable(victim.delta(base), defended.delta(base)),
        "samples": len(data.used) + sum(pairs),
        "shots": data.used if len(data.used) < len(data.train) else "all training images",
        "clean_pairs": asked,
        "skipped": counted(data.skipped),
        "apart_from": resources.apart_from,
    }
    with resources.store.writing(node.kind, node.id, card) as folder:
        save_file(delta, folder / DELTA_FILE)


def tunable(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> int:
    """How many numbers a defense trained: those of the tensors of weights, prompts and head that it changed."""
    return sum(
        tensor.numel()
        for name, tensor in after.items()
        if (name == "prompts" or name.startswith(("clip.", "head.")))
        and (name not in before or not torch.equal(before[name], tensor))
    )


def make_evaluations(nodes: Sequence[Node], resources: Resources) -> dict[str, str]:
    """Predict the test images, clean and triggered, and compare images with their perturbed versions.

    The nodes differ in the victim alone. Gives the reasons of those whose victim has diverged.

    Raises:
        BenchError: a victim was trained on images that are evaluated.
    """
    cost, first = Meter(resources.device), nodes[0]
    unchecked = {node.id: check_apart(node, resources) for node in nodes}
    base = load_backdoor(first.needs[0], resources)
    victims = unified(
        Victim(resources.clip) if node.clean else open_victim(node.victim_needs, resources, base) for node in nodes
    )
    fresh = first.needs[len(first.victim_needs) :]
    perturbing = {
        name: (resources.attack(name), Trigger(_fresh_seed(name, first.seed), _prepared(id, resources)))
        for name, id in zip(first.inputs["perturbing"], fresh, strict=True)
    }
    seen = observe(
        victims,
        resources.test,
        resources.tested.templates,
        resources.attack(first.attack),
        trigger_at_test(load_trigger(first.needs[0], resources)),
        perturbing,
        resources.run.evaluate,
        first.seed,
    )
    spent = cost.so_far()
    same = spent | {
        "seconds": round(spent["seconds"] / len(nodes), 2),
        "seconds_shared_by": len(nodes),
        "classes": list(resources.test.classes),
        "target": resources.target_in(resources.tested),
        "images": len(resources.test),
        "skipped": counted(resources.test.skipped),
    }
    failed = {}
    for node, observed in zip(nodes, seen, strict=True):
        if isinstance(observed, BenchError):
            failed[node.id] = str(observed)
            continue
        predictions, similarities = observed
        card = card_of(node, resources.device, cost) | same | {"unchecked": unchecked[node.id]}
        with resources.store.writing(node.kind, node.id, card) as folder:
            predictions.to_parquet(folder / PREDICTIONS_FILE, index=False)
            similarities.to_parquet(folder / SIMILARITIES_FILE, index=False)
    return failed


def load_backdoor(id: str, resources: Resources) -> Clip:
    return Clip.load(resources.store.path("backdoor", id)).to(resources.device)


def load_trigger(id: str, resources: Resources) -> Trigger:
    """The trigger as it was in training."""
    folder = resources.store.path("backdoor", id)
    return Trigger(resources.store.card("backdoor", id)["trigger_seed"], load_file(folder / TRIGGER_FILE))


def training_triggers(plan: Plan, seed: int, resources: Resources) -> Iterator[tuple[str, Trigger]]:
    """The triggers to poison with, by attack, of one seed: from the store, or made."""
    for node in plan.nodes.values():
        if node.kind == "trigger" and node.seed == seed and node.inputs["purpose"] != PERTURBATION:
            if not resources.store.has(node.kind, node.id):
                with resources.store.locked():
                    make_trigger(node, resources)
            yield node.attack, _trigger_of_training(node.id, seed, resources)


def trigger_at_test(trained: Trigger) -> Trigger:
    """The same trigger with draws of its own, so that test image i does not repeat the noise of pair i."""
    return replace(trained, seed=derive(trained.seed, "test"))


def open_victim(needs: tuple[str, ...], resources: Resources, base: Clip | None = None) -> Victim:
    """The backdoored model `needs[0]`, with the defense `needs[1]` if there is one; `base` is the former, if open."""
    base = base or load_backdoor(needs[0], resources)
    if len(needs) == 1:
        return Victim(base)
    return Victim.restore(base, load_file(resources.store.path("defense", needs[1]) / DELTA_FILE))


def _fresh_seed(attack: str, seed: int) -> int:
    """The seed of an attack's trigger as a mere perturbation."""
    return derive(seed, attack, "perturbation")


def _trigger_of_training(id: str, seed: int, resources: Resources) -> Trigger:
    return Trigger(derive(seed, "training"), _prepared(id, resources))


def _prepared(id: str, resources: Resources) -> dict[str, Tensor]:
    return load_file(resources.store.path("trigger", id) / TRIGGER_FILE)


def read_observations(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What an evaluation saw: predictions and similarities."""
    with readable(folder, "Remove the folder"):
        return pd.read_parquet(folder / PREDICTIONS_FILE), pd.read_parquet(folder / SIMILARITIES_FILE)
