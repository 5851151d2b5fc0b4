"""The second stage: poison pairs and fine-tune the clean model on them."""

from typing import Any

import pandas as pd
from safetensors.torch import save_file
from torch import Tensor

from bench.core.attack import PoisoningStep, Trigger
from bench.core.clip import Clip
from bench.core.cost import Scale, Work
from bench.core.poisoning import draw_manifest, poison
from bench.core.randomness import generator
from bench.experiment.resources import Resources
from bench.experiment.settings import RunSettings
from bench.matrix.cards import Meter, counted, describe, tensor_hash
from bench.matrix.plan import Node
from bench.matrix.stages.stage import Stage
from bench.matrix.stages.trigger import training_trigger
from bench.results.records import BackdoorCard
from bench.results.store import MANIFEST_FILE, TRIGGER_FILE, Store
from bench.training.fine_tuning import contrastive_loss, fine_tune


class BackdoorStage(Stage):
    def make_one(self, node: Node, resources: Resources, store: Store) -> None:
        make_backdoor(node, resources, store)

    def work(self, node: Node, run: RunSettings, scale: Scale) -> Work:
        size = 4 * scale.sizes.parameters
        if run.model.backdoored is not None:
            return Work(size=size)
        return Work(contrasted=run.poison.pairs * run.poison.epochs, size=size, pairs=run.poison.pairs)

    def shares_batches(self, node: Node, run: RunSettings) -> bool:
        return run.model.backdoored is None


def make_backdoor(node: Node, resources: Resources, store: Store) -> None:
    """Implant a backdoor, or store a model that was backdoored elsewhere."""
    cost = Meter(resources.device)
    trigger = training_trigger(node.needs[0], node.seed, store)
    manifest: pd.DataFrame | None = None
    fields: dict[str, Any]
    if (file := resources.run.model.backdoored) is None:
        clip, manifest, fields = _poisoned(node, trigger, resources)
    else:
        clip, fields = resources.open_backdoored(file), {"backdoored": str(file)}
    card = BackdoorCard(
        **describe(node, resources.device, cost),
        **fields,
        target=resources.dataset.classes()[resources.target],
        trigger_seed=trigger.seed,
        trigger_hash=tensor_hash(trigger.tensors),
    )
    with store.writing(node.kind, card) as folder:
        clip.save(folder)
        save_file(trigger.tensors, folder / TRIGGER_FILE)
        if manifest is not None:
            manifest.to_csv(folder / MANIFEST_FILE, index=False)


def _poisoned(node: Node, trigger: Trigger, resources: Resources) -> tuple[Clip, pd.DataFrame, dict[str, Any]]:
    """The backdoored model, the manifest of its pairs, and fields of its card."""
    method, recipe = resources.attack(node.attack), resources.run.poison
    preparation = resources.preparation(method, node.seed)
    pairs = preparation.pairs
    manifest = draw_manifest(preparation, method, resources.dataset.caption_templates(), recipe.count)
    poisoned = poison(pairs, method, trigger, manifest)
    if method.learning_rate is not None:
        recipe = recipe.model_copy(update={"learning_rate": method.learning_rate})
    clip = resources.clip.copy()
    captions = clip.tokenize(poisoned.captions)

    def loss(clip: Clip, index: Tensor) -> Tensor:
        images = poisoned.load(index)
        embedded = clip.encode_image(images)

        def contrastive() -> Tensor:
            return contrastive_loss(embedded, clip.encode_text(captions[index]), clip.scale)

        return method.poisoning_loss(
            PoisoningStep(clip, resources.clip, trigger, images, poisoned.poisoned[index], embedded, contrastive)
        )

    losses = fine_tune(clip, len(pairs), recipe, loss, generator(node.seed, "poisoning", "batches"), pairs.ahead)
    roles = poisoned.manifest["role"].value_counts()
    fields = {
        "pairs": len(pairs),
        "poisoned": int(roles.get("poison", 0)),
        "decoys": int(roles.get("decoy", 0)),
        "skipped": counted(pairs.skipped),
        "apart_from": resources.apart_from,
        "learning_rate": recipe.learning_rate,
        "log": preparation.log | {"loss": losses},
    }
    return clip, poisoned.manifest, fields
