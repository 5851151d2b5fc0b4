"""The third stage: apply a defense to a model, with clean data."""

import torch

from bench.core.cost import Scale, Work
from bench.core.defense import CleanData
from bench.core.images import Captioned
from bench.core.victim import check_fitted
from bench.experiment.resources import Resources
from bench.experiment.settings import RunSettings
from bench.matrix.cards import Meter, counted, describe
from bench.matrix.plan import Node
from bench.matrix.stages.stage import Stage
from bench.results.records import DefenseCard
from bench.results.store import DELTA_FILE, Store

# How many training images are used to check that a stored model equals the fitted one.
CHECKED_IMAGES = 4


class DefenseStage(Stage):
    def make_one(self, node: Node, resources: Resources, store: Store) -> None:
        make_defense(node, resources, store)

    def work(self, node: Node, run: RunSettings, scale: Scale) -> Work:
        return run.defense(node.chain[-1], node.attack).work(scale)

    def shares_batches(self, node: Node, run: RunSettings) -> bool:
        return run.defense(node.chain[-1], node.attack).shares_batches


def make_defense(node: Node, resources: Resources, store: Store) -> None:
    """Apply the last defense of the chain to the result of the others.

    Raises:
        BenchError: the defense failed, or the defended model cannot be stored (`bench.core.victim.check_fitted`).
    """
    cost = Meter(resources.device)
    base = store.clip(node.needs[0], resources.device, resources.run.execution.rounding)
    victim = store.victim(base, *node.victim_needs[1:])
    method = resources.run.defense(node.chain[-1], node.attack)
    requested: list[int] = []
    received: list[int] = []

    def open_pairs(n: int) -> Captioned:
        pairs = resources.clean_pairs(n)
        requested.append(n)
        received.append(len(pairs))
        return pairs

    train, templates = resources.train, resources.tuned.templates
    data = CleanData(
        train,
        templates,
        node.seed,
        resources.tuned_target,
        open_pairs,
        lambda: resources.clip,
        needs=method.needs,
        check=lambda images: resources.check_leakage(images, "training images"),
    )
    defended = method.fit(victim, data)
    cost.stop()
    # Read from the store again, in case the defense changed the model it was given.
    clean = store.clip(node.needs[0], resources.device, resources.run.execution.rounding)
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
        samples=len(data.used) + sum(received),
        shots=tuple(data.used) if len(data.used) < len(train) else "all training images",
        clean_pairs=tuple(requested),
        skipped=counted(data.skipped),
        apart_from=resources.apart_from,
    )
    with store.writing(node.kind, card) as folder:
        delta.save(folder / DELTA_FILE)
