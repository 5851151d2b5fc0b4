"""The stages as functions: backdoor a model, defend it, evaluate it. Each makes one artefact from others."""

import hashlib
import platform
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import bench
from bench.core.attack import Attack, Preparation, Trigger, attacks
from bench.core.clip import Clip
from bench.core.contrastive import FineTuning, contrastive_loss, fine_tune
from bench.core.dataset import Dataset, Geometry, Split, datasets, target_index
from bench.core.defense import CleanData, defenses
from bench.core.distributed import processes
from bench.core.errors import BenchError
from bench.core.images import Captioned, Images, Labelled, hash_of
from bench.core.poisoning import candidates_first, draw_manifest, poison
from bench.core.randomness import derive, generator
from bench.core.victim import Victim
from bench.data.overlap import refuse_overlap
from bench.data.pairs import pairs_identity, read_pairs
from bench.matrix.cost import Cost
from bench.matrix.evaluation import observe
from bench.matrix.plan import PERTURBATION, Fingerprints, Node
from bench.matrix.settings import RunSettings
from bench.matrix.sharing import unified
from bench.matrix.store import DELTA_FILE, Store
from bench.matrix.together import make_together
from bench.models import load_model

TRIGGER_FILE = "trigger.safetensors"
MANIFEST_FILE = "manifest.csv"
PREDICTIONS_FILE = "predictions.parquet"
SIMILARITIES_FILE = "similarities.parquet"

Some = TypeVar("Some", bound=Images)


@dataclass(frozen=True)
class Workshop:
    """The settings of a run with what they name, opened when first needed: model, data, store."""

    run: RunSettings
    store: Store
    device: str
    shared: dict[Hashable, Any] = field(default_factory=dict)

    @cached_property
    def clip(self) -> Clip:
        """The clean model."""
        return self._share(self.run.model, lambda: load_model(self.run.model, self.device))

    @cached_property
    def geometry(self) -> Geometry:
        return Geometry.of(self.clip, self.store.out / "data")

    @cached_property
    def dataset(self) -> Dataset:
        """The data set that the attacker has in mind."""
        return self._dataset(self.run.dataset)

    @cached_property
    def tuned(self) -> Dataset:
        """The data set that defenses are tuned on."""
        return self._dataset(self.run.tuned_on or self.run.dataset)

    @cached_property
    def tested(self) -> Dataset:
        """The data set that is evaluated on."""
        return self._dataset(self.run.tested_on)

    @cached_property
    def train(self) -> Labelled:
        return self.apart(self._images(self.tuned, "train"), "training images")

    @cached_property
    def test(self) -> Labelled:
        images = self._images(self.tested, self.run.evaluate.split)
        limit = self.run.evaluate.limit
        if limit is None or limit >= len(images):
            return images
        # Not the first ones: a folder's images are sorted by class.
        return images.subset(torch.randperm(len(images), generator=generator(0, "limit"))[:limit].sort().values)

    @cached_property
    def poison_pairs(self) -> Captioned:
        n = self.run.poison.pairs
        return self.apart(self._pairs("poison", n), "pairs")

    def pairs_for(self, method: Attack) -> Captioned:
        """The attacker's pairs; for an attack that only some pairs suit, as many of those as `poison.pool` has."""
        n, pool, count = self.run.poison.pairs, self.run.poison.pool, self.run.poison.count
        if pool is None or pool <= n or not method.selective():
            return self.poison_pairs
        target = self.dataset.classes()[self.target]

        def order(captions: Sequence[str]) -> list[int]:
            return candidates_first(captions, method, target, count)

        if self.run.pairs:
            pairs = read_pairs(
                self.run.pairs, self.geometry, n, part="poison", pool=pool, order=order, cache=self.run.pairs_cache
            )
        else:
            searched = self.dataset.pairs("poison", pool, self.geometry)
            pairs = searched.subset(torch.tensor(sorted(order(searched.captions)[:n])))
        return self.apart(pairs, "pairs")

    def clean_pairs(self, n: int) -> Captioned:
        return self.apart(self._pairs("clean", n), "pairs")

    @cached_property
    def target(self) -> int:
        return self.target_in(self.dataset)

    def attack(self, name: str) -> Attack:
        return attacks[name].parse(self.run.method(name), name)

    def preparation(self, method: Attack, seed: int) -> Preparation:
        """What an attacker starts from."""
        classes, pairs = self.dataset.classes(), self.pairs_for(method)
        return Preparation(self.clip, pairs, classes[self.target], classes, self.dataset.templates, seed)

    def prints(self) -> dict[str, Callable[[], str]]:
        """How each of the `Fingerprints` is read."""
        data = self.dataset
        return {
            "model": lambda: self._share(("print", self.run.model), self.clip.fingerprint),
            "pairs": self._pairs_identity,
            "words": lambda: hash_of([data.classes(), data.templates, data.caption_templates()]),
            "tuned": lambda: self._identity(self.tuned),
            "tested": lambda: self._identity(self.tested),
        }

    def fingerprints(self) -> Fingerprints:
        return Fingerprints(**{name: read() for name, read in self.prints().items()})

    def apart(self, images: Some, what: str) -> Some:
        """The images, if none of them is evaluated on; ids count where both are of one data set.

        Raises:
            BenchError: some are, and the data set's `allow_overlap` does not allow it.
        """
        if not self.tested.allow_overlap:
            whole = self._images(self.tested, self.run.evaluate.split)
            by_id = isinstance(images, Labelled) and self.tuned == self.tested
            self._share(
                ("apart", what, images.fingerprint, whole.fingerprint, by_id),
                lambda: refuse_overlap(whole, images, what, self.run.tested_on, by_id),
            )
        return images

    def target_in(self, data: Dataset) -> int:
        """The index of the target class in a data set that need not be the run's own."""
        return target_index(self.run.target, data.classes())

    def _dataset(self, name: str) -> Dataset:
        return datasets[name].parse(self.run.method(name), name)

    def _pairs(self, part: Literal["poison", "clean"], n: int) -> Captioned:
        if self.run.pairs:
            return read_pairs(self.run.pairs, self.geometry, n=n, part=part, cache=self.run.pairs_cache)
        return self.dataset.pairs(part, n, self.geometry)

    def _images(self, data: Dataset, split: Split) -> Labelled:
        key = (type(data), data.model_dump_json(), split, self.geometry)
        return self._share(key, lambda: data.labelled(split, self.geometry))

    def _pairs_identity(self) -> str:
        pairs = self.run.pairs
        return self._share(("print", pairs), lambda: pairs_identity(pairs)) if pairs else self._identity(self.dataset)

    def _identity(self, data: Dataset) -> str:
        return self._share(("print", type(data), data.model_dump_json()), data.identity)

    def _share(self, key: Hashable, open_it: Callable[[], Any]) -> Any:
        """What several variants of a run name is opened once."""
        if key not in self.shared:
            self.shared[key] = open_it()
        return self.shared[key]


def workshops(variants: Mapping[str, RunSettings], store: Store, device: str) -> dict[str, Workshop]:
    """A workshop per variant of a run; models and images that are the same are opened once."""
    shared: dict[Hashable, Any] = {}
    return {name: Workshop(run, store, device, shared) for name, run in variants.items()}


def make(nodes: Sequence[Node], shop: Workshop) -> dict[str, str]:
    """Make the artefacts of one node, or of evaluations of one backdoor together, from artefacts that are there.

    Returns why some of them could not be made, by id. What stops all of them is raised.
    """
    if nodes[0].kind == "evaluation":
        return make_evaluations(nodes, shop)
    stages: dict[str, Callable[[Node, Workshop], None]] = {
        "trigger": make_trigger,
        "backdoor": make_backdoor,
        "defense": make_defense,
    }
    for node in nodes:
        if shop.run.gpus > 1 and processes() == 1 and _fine_tunes(node):
            make_together(node, shop.run, shop.store.out, shop.device)
        else:
            stages[node.kind](node, shop)
    return {}


def _fine_tunes(node: Node) -> bool:
    return node.kind == "backdoor" or (node.kind == "defense" and issubclass(defenses[node.chain[-1]], FineTuning))


def make_trigger(node: Node, shop: Workshop) -> None:
    """Let an attack prepare what is the same for all images; a perturbation gets one that no model was trained on."""
    cost = Cost(shop.device)
    method = shop.attack(node.attack)
    perturbing = node.inputs["purpose"] == PERTURBATION
    given = shop.preparation(method, _fresh_seed(node.attack, node.seed) if perturbing else node.seed)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in method.prepare(given).items()}
    card = _card(node, shop, cost) | {"trigger_hash": _tensor_hash(tensors), "log": given.log}
    with shop.store.writing(node.kind, node.id, card) as folder:
        save_file(tensors, folder / TRIGGER_FILE)


def make_backdoor(node: Node, shop: Workshop) -> None:
    """Poison pairs and fine-tune the clean model on them."""
    cost = Cost(shop.device)
    method, recipe = shop.attack(node.attack), shop.run.poison
    given = shop.preparation(method, node.seed)
    pairs = given.pairs
    trigger = Trigger(derive(node.seed, "training"), _prepared(node.needs[0], shop))
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
    card = _card(node, shop, cost) | {
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
        save_file(trigger.tensors, folder / TRIGGER_FILE)
        poisoned.manifest.to_csv(folder / MANIFEST_FILE, index=False)


def make_defense(node: Node, shop: Workshop) -> None:
    """Put the last defense of the chain on what the others made."""
    cost = Cost(shop.device)
    name = node.chain[-1]
    base = load_backdoor(node.needs[0], shop)
    victim = open_victim(node.victim_needs, shop, base)
    method = defenses[name].parse(shop.run.method(name, node.attack), name)
    pairs: list[int] = []

    def open_pairs(n: int) -> Captioned:
        found = shop.clean_pairs(n)
        pairs.append(len(found))
        return found

    data = CleanData(
        shop.train,
        shop.tuned.templates,
        node.seed,
        shop.target_in(shop.tuned),
        open_pairs,
        check=lambda images: shop.apart(images, "few-shot images"),
    )
    defended = method.fit(victim, data)
    card = _card(node, shop, cost)
    # Read anew: a defense that changed the model it was given must not go unseen.
    delta = defended.delta(load_backdoor(node.needs[0], shop))
    card |= {
        "log": data.log,
        "changed": sorted(delta),
        "tunable": tunable(victim.delta(base), defended.delta(base)),
        "samples": len(data.used) + sum(pairs),
        "shots": data.used if len(data.used) < len(data.train) else "all training images",
        "skipped": data.skipped,
    }
    with shop.store.writing(node.kind, node.id, card) as folder:
        save_file(delta, folder / DELTA_FILE)


def tunable(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> int:
    """How many numbers a defense trained: those of the tensors of weights, prompts and head that it changed."""
    return sum(
        tensor.numel()
        for name, tensor in after.items()
        if (name == "prompts" or name.startswith(("clip.", "head.")))
        and (name not in before or not torch.equal(before[name], tensor))
    )


def make_evaluations(nodes: Sequence[Node], shop: Workshop) -> dict[str, str]:
    """Predict the test images, clean and triggered, and compare images with their perturbed versions.

    The nodes differ in the victim alone. Gives the reasons of those whose victim has diverged.
    """
    cost, first = Cost(shop.device), nodes[0]
    base = load_backdoor(first.needs[0], shop)
    victims = unified(Victim(shop.clip) if node.clean else open_victim(node.victim_needs, shop, base) for node in nodes)
    fresh = first.needs[len(first.victim_needs) :]
    perturbing = {
        name: (shop.attack(name), Trigger(_fresh_seed(name, first.seed), _prepared(id, shop)))
        for name, id in zip(first.inputs["perturbing"], fresh, strict=True)
    }
    seen = observe(
        victims,
        shop.test,
        shop.tested.templates,
        shop.attack(first.attack),
        test_trigger(load_trigger(first.needs[0], shop)),
        perturbing,
        shop.run.evaluate,
        first.seed,
    )
    spent = cost.so_far()
    same = spent | {
        "seconds": round(spent["seconds"] / len(nodes), 2),
        "seconds_shared_by": len(nodes),
        "classes": list(shop.test.classes),
        "target": shop.target_in(shop.tested),
        "images": len(shop.test),
        "skipped": list(shop.test.skipped),
    }
    failed = {}
    for node, observed in zip(nodes, seen, strict=True):
        if isinstance(observed, BenchError):
            failed[node.id] = str(observed)
            continue
        predictions, similarities = observed
        card = _card(node, shop, cost) | same
        with shop.store.writing(node.kind, node.id, card) as folder:
            predictions.to_parquet(folder / PREDICTIONS_FILE, index=False)
            similarities.to_parquet(folder / SIMILARITIES_FILE, index=False)
    return failed


def load_backdoor(id: str, shop: Workshop) -> Clip:
    return Clip.load(shop.store.path("backdoor", id)).to(shop.device)


def load_trigger(id: str, shop: Workshop) -> Trigger:
    """The trigger as it was in training."""
    folder = shop.store.path("backdoor", id)
    return Trigger(shop.store.card("backdoor", id)["trigger_seed"], load_file(folder / TRIGGER_FILE))


def test_trigger(trained: Trigger) -> Trigger:
    """The same trigger with draws of its own, so that test image i does not repeat the noise of pair i."""
    return replace(trained, seed=derive(trained.seed, "test"))


def open_victim(needs: tuple[str, ...], shop: Workshop, base: Clip | None = None) -> Victim:
    """The backdoored model `needs[0]`, with the defense `needs[1]` if there is one; `base` is the former, if open."""
    base = base or load_backdoor(needs[0], shop)
    if len(needs) == 1:
        return Victim(base)
    return Victim.restore(base, load_file(shop.store.path("defense", needs[1]) / DELTA_FILE))


def _fresh_seed(attack: str, seed: int) -> int:
    """The seed of an attack's trigger as a mere perturbation."""
    return derive(seed, attack, "perturbation")


def _prepared(id: str, shop: Workshop) -> dict[str, Tensor]:
    return load_file(shop.store.path("trigger", id) / TRIGGER_FILE)


def _card(node: Node, shop: Workshop, cost: Cost) -> dict[str, Any]:
    return {
        "id": node.id,
        "label": node.label,
        "determined_by": node.inputs,
        **cost.so_far(),
        "device": shop.device,
        "hardware": _hardware(shop.device),
        "processes": processes(),
        "bench": bench.__version__,
        "torch": torch.__version__,
    }


def _hardware(device: str) -> str:
    """The name of the GPU, or of the processor as far as the system tells it."""
    gpu = device.startswith("cuda")
    return torch.cuda.get_device_name(device) if gpu else platform.processor() or platform.machine()


def _tensor_hash(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def read_observations(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What an evaluation saw: predictions and similarities."""
    return pd.read_parquet(folder / PREDICTIONS_FILE), pd.read_parquet(folder / SIMILARITIES_FILE)
