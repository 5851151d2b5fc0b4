"""The stages as functions: backdoor a model, defend it, evaluate it. Each makes one artefact from others."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import bench
from bench.core.attack import Attack, Preparation, Trigger, attacks
from bench.core.clip import Clip
from bench.core.contrastive import contrastive_loss, fine_tune
from bench.core.dataset import Dataset, Geometry, datasets, target_index
from bench.core.defense import CleanData, defenses
from bench.core.images import Captioned, Labelled, hash_of
from bench.core.poisoning import draw_manifest, poison
from bench.core.randomness import derive, generator
from bench.core.victim import Victim
from bench.data.pairs import pairs_identity, read_pairs
from bench.matrix.evaluation import observe
from bench.matrix.plan import Fingerprints, Node
from bench.matrix.settings import RunSettings
from bench.matrix.store import Store
from bench.models import load_model

TRIGGER_FILE = "trigger.safetensors"
MANIFEST_FILE = "manifest.csv"
DELTA_FILE = "delta.safetensors"
PREDICTIONS_FILE = "predictions.parquet"
SIMILARITIES_FILE = "similarities.parquet"


@dataclass(frozen=True)
class Workshop:
    """The settings of a run with what they name, opened when first needed: model, data, store."""

    run: RunSettings
    store: Store
    device: str

    @cached_property
    def clip(self) -> Clip:
        """The clean model."""
        return load_model(self.run.model, self.device)

    @cached_property
    def geometry(self) -> Geometry:
        return Geometry(self.clip.image_size, self.store.out / "data")

    @cached_property
    def dataset(self) -> Dataset:
        return datasets[self.run.dataset].parse(self.run.method(self.run.dataset), self.run.dataset)

    @cached_property
    def train(self) -> Labelled:
        return self.dataset.labelled("train", self.geometry)

    @cached_property
    def test(self) -> Labelled:
        images = self.dataset.labelled(self.run.evaluate.split, self.geometry)
        limit = self.run.evaluate.limit
        if limit is None or limit >= len(images):
            return images
        # Not the first ones: a folder's images are sorted by class.
        return images.subset(torch.randperm(len(images), generator=generator(0, "limit"))[:limit].sort().values)

    @cached_property
    def poison_pairs(self) -> Captioned:
        n = self.run.poison.pairs
        if self.run.pairs:
            return read_pairs(self.run.pairs, self.geometry, n=n, part="poison")
        return self.dataset.pairs("poison", n, self.geometry)

    def clean_pairs(self, n: int) -> Captioned:
        if self.run.pairs:
            return read_pairs(self.run.pairs, self.geometry, n=n, part="clean")
        return self.dataset.pairs("clean", n, self.geometry)

    @cached_property
    def target(self) -> int:
        return target_index(self.run.target, self.dataset.classes())

    def attack(self, name: str) -> Attack:
        return attacks[name].parse(self.run.method(name), name)

    def preparation(self, seed: int) -> Preparation:
        """What an attacker starts from."""
        classes = self.dataset.classes()
        return Preparation(self.clip, self.poison_pairs, classes[self.target], classes, self.dataset.templates, seed)

    def fingerprints(self) -> Fingerprints:
        data = self.dataset
        pairs = pairs_identity(self.run.pairs) if self.run.pairs else data.identity()
        words = hash_of([data.classes(), data.templates, data.caption_templates()])
        return Fingerprints(self.clip.fingerprint(), pairs, data.identity(), words)


def make(node: Node, shop: Workshop) -> None:
    """Make the artefact of a node, from artefacts that are there."""
    stages: dict[str, Callable[[Node, Workshop], None]] = {
        "backdoor": make_backdoor,
        "defense": make_defense,
        "evaluation": make_evaluation,
    }
    stages[node.kind](node, shop)


def make_backdoor(node: Node, shop: Workshop) -> None:
    """Poison pairs and fine-tune the clean model on them."""
    start = time.perf_counter()
    method, recipe = shop.attack(node.attack), shop.run.poison
    pairs = shop.poison_pairs
    given = shop.preparation(node.seed)
    trigger = Trigger(derive(node.seed, "training"), method.prepare(given))
    manifest = draw_manifest(given, method, shop.dataset.caption_templates(), recipe.count)
    poisoned = poison(pairs, method, trigger, manifest)
    if method.learning_rate is not None:
        recipe = recipe.model_copy(update={"learning_rate": method.learning_rate})
    clip = shop.clip.copy()
    captions = clip.tokenize(poisoned.captions)

    def loss(clip: Clip, index: Tensor) -> Tensor:
        return contrastive_loss(clip.encode_image(poisoned.load(index)), clip.encode_text(captions[index]), clip.scale)

    losses = fine_tune(clip, len(pairs), recipe, loss, generator(node.seed, "poisoning", "batches"))
    roles = poisoned.manifest["role"].value_counts()
    card = _card(node, shop, start) | {
        "pairs": len(pairs),
        "poisoned": int(roles.get("poison", 0)),
        "decoys": int(roles.get("decoy", 0)),
        "skipped": list(pairs.skipped),
        "target": given.target,
        "trigger_seed": trigger.seed,
        "trigger_hash": _tensor_hash(trigger.tensors),
        "learning_rate": recipe.learning_rate,
        "log": given.log | {"loss": losses},
    }
    with shop.store.writing(node.kind, node.id, card) as folder:
        clip.save(folder)
        save_file({k: v.contiguous() for k, v in trigger.tensors.items()}, folder / TRIGGER_FILE)
        poisoned.manifest.to_csv(folder / MANIFEST_FILE, index=False)


def make_defense(node: Node, shop: Workshop) -> None:
    """Put the last defense of the chain on what the others made."""
    start = time.perf_counter()
    name = node.chain[-1]
    victim = open_victim(node.needs, shop)
    method = defenses[name].parse(shop.run.method(name), name)
    data = CleanData(shop.train, shop.dataset.templates, node.seed, shop.target, shop.clean_pairs)
    defended = method.fit(victim, data)
    delta = defended.delta(load_backdoor(node.needs[0], shop))
    card = _card(node, shop, start) | {"log": data.log, "changed": sorted(delta)}
    with shop.store.writing(node.kind, node.id, card) as folder:
        save_file(delta, folder / DELTA_FILE)


def make_evaluation(node: Node, shop: Workshop) -> None:
    """Predict the test images, clean and triggered, and compare images with their perturbed versions."""
    start = time.perf_counter()
    victim = Victim(shop.clip) if node.clean else open_victim(node.needs, shop)
    trigger = test_trigger(load_trigger(node.needs[0], shop))
    perturbing = {
        name: (shop.attack(name), _fresh_trigger(shop, name, node.seed))
        for name in shop.run.evaluate.perturbations
        if name in attacks
    }
    predictions, similarities = observe(
        victim,
        shop.test,
        shop.dataset.templates,
        shop.attack(node.attack),
        trigger,
        perturbing,
        shop.run.evaluate,
        node.seed,
    )
    card = _card(node, shop, start) | {
        "classes": list(shop.test.classes),
        "target": shop.target,
        "images": len(shop.test),
        "skipped": list(shop.test.skipped),
    }
    with shop.store.writing(node.kind, node.id, card) as folder:
        predictions.to_parquet(folder / PREDICTIONS_FILE, index=False)
        similarities.to_parquet(folder / SIMILARITIES_FILE, index=False)


def load_backdoor(id: str, shop: Workshop) -> Clip:
    return Clip.load(shop.store.path("backdoor", id)).to(shop.device)


def load_trigger(id: str, shop: Workshop) -> Trigger:
    """The trigger as it was in training."""
    folder = shop.store.path("backdoor", id)
    return Trigger(shop.store.card("backdoor", id)["trigger_seed"], load_file(folder / TRIGGER_FILE))


def test_trigger(trained: Trigger) -> Trigger:
    """The same trigger with draws of its own, so that test image i does not repeat the noise of pair i."""
    return replace(trained, seed=derive(trained.seed, "test"))


def open_victim(needs: tuple[str, ...], shop: Workshop) -> Victim:
    """The backdoored model `needs[0]`, with the defense `needs[1]` if there is one."""
    clip = load_backdoor(needs[0], shop)
    if len(needs) == 1:
        return Victim(clip)
    return Victim.restore(clip, load_file(shop.store.path("defense", needs[1]) / DELTA_FILE))


def _fresh_trigger(shop: Workshop, name: str, seed: int) -> Trigger:
    """A trigger that no model was trained on: an attack's pattern as a mere perturbation."""
    seed = derive(seed, name, "perturbation")
    return Trigger(seed, shop.attack(name).prepare(shop.preparation(seed)))


def _card(node: Node, shop: Workshop, start: float) -> dict[str, Any]:
    return {
        "id": node.id,
        "label": node.label,
        "determined_by": node.inputs,
        "seconds": round(time.perf_counter() - start, 2),
        "device": shop.device,
        "bench": bench.__version__,
        "torch": torch.__version__,
    }


def _tensor_hash(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def read_observations(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What an evaluation saw: predictions and similarities."""
    return pd.read_parquet(folder / PREDICTIONS_FILE), pd.read_parquet(folder / SIMILARITIES_FILE)
