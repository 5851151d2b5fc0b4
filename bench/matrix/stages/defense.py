"""The third stage: put a defense on a model, with clean data."""

from collections.abc import Sequence

import torch

from bench.core.cost import Scale, Work
from bench.core.defense import CleanData
from bench.core.images import Captioned
from bench.core.victim import check_fitted
from bench.experiment.resources import Resources
from bench.experiment.settings import RunSettings
from bench.matrix.cards import Meter, counted, describe
from bench.matrix.plan import Node
from bench.matrix.stages.stage import Errors, Stage
from bench.results.records import DefenseCard
from bench.results.store import DELTA_FILE, Store

# Training images on which a stored model must say what the fitted one says.
CHECKED_IMAGES = 4


class DefenseStage(Stage):
    def make(self, nodes: Sequence[Node], resources: Resources, store: Store) -> Errors:
        for node in nodes:
            make_defense(node, resources, store)
        return {}

    def work(self, node: Node, run: RunSettings, scale: Scale) -> Work:
        return run.defense(node.chain[-1], node.attack).work(scale)

    def shares_batches(self, node: Node, run: RunSettings) -> bool:
        return run.defense(node.chain[-1], node.attack).shares_batches


def make_defense(node: Node, resources: Resources, store: Store) -> None:
    """Put the last defense of the chain on what the others made.

    Raises:
        BenchError: the defended model cannot be stored as what it is (`bench.core.victim.check_fitted`).
    """
    cost = Meter(resources.device)
    base = store.clip(node.needs[0], resources.device)
    victim = store.victim(base, *node.victim_needs[1:])
    method = resources.run.defense(node.chain[-1], node.attack)
    asked: list[int] = []
    pairs: list[int] = []

    def open_pairs(n: int) -> Captioned:
        found = resources.clean_pairs(n)
        asked.append(n)
        pairs.append(len(found))
        return found

    train, templates = resources.train, resources.tuned.templates
    data = CleanData(
        train,
        templates,
        node.seed,
        resources.tuned_target,
        open_pairs,
        lambda: resources.clip,
        needs=method.needs,
        check=lambda images: resources.apart(images, "few-shot images"),
    )
    defended = method.fit(victim, data)
    cost.stop()
    # Read anew: a defense that changed the model it was given must not go unseen.
    clean = store.clip(node.needs[0], resources.device)
    images = train.load(torch.arange(min(CHECKED_IMAGES, len(train))))
    delta = check_fitted(defended, clean, images, train.classes, templates[:1])
    before = victim.delta(base)
    card = DefenseCard(
        **describe(node, resources.device, cost),
        log=data.log,
        needs=tuple(sorted(method.needs)),
        changed=tuple(sorted(delta.tensors)),
        tunable=delta.tunable(before),
        token_embedding=delta.tunable(before, "token_embedding"),
        samples=len(data.used) + sum(pairs),
        shots=tuple(data.used) if len(data.used) < len(train) else "all training images",
        clean_pairs=tuple(asked),
        skipped=counted(data.skipped),
        apart_from=resources.apart_from,
    )
    with store.writing(node.kind, card) as folder:
        delta.save(folder / DELTA_FILE)
