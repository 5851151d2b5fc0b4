"""Evaluation of one attack's models together, against one by one: the same numbers in less time.

The models are the clean mini CLIP, a backdoored one, and what the four defenses and the paper's three chains make of
it, trained as shortly as possible: what evaluation costs does not depend on how good they are. The perturbations are
those of the preset `mini`. CPU seconds of one thread, so that other programs matter little.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch

from bench.core.registry import load_plugins
from bench.matrix.plan import Node, make_plan
from bench.matrix.schedule import tasks
from bench.matrix.settings import BASE, PAPER_CHAINS, RunSettings, resolve
from bench.matrix.stages import make, read_observations
from bench.matrix.store import Store
from bench.matrix.workshop import Workshop, workshops

ATTACK, IMAGES, PERTURBED = "wanet", 100, 30
DEFENSES = ("none", "linear_probe", "vpt", "rvpt", "cleanclip", *PAPER_CHAINS)
SHORT = (
    "world.train_per_class=2",
    f"world.test={IMAGES}",
    f"evaluate.perturbation_images={PERTURBED}",
    "poison={pairs: 64, count: 16, epochs: 1}",
    "cleanclip={pairs: 64, epochs: 1}",
    "linear_probe={shots: 2, epochs: 1}",
    "vpt={shots: 2, epochs: 1}",
    "rvpt={shots: 2, epochs: 1}",
)


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def workshop(run: RunSettings, out: Path) -> Workshop:
    return workshops({BASE: run}, Store(out), "cpu")[BASE]


def main(attack: str = ATTACK) -> None:
    load_plugins()
    torch.set_num_threads(1)
    run = resolve("mini", None, {"attacks": (attack,), "defenses": DEFENSES}, SHORT)
    with TemporaryDirectory() as folder:
        shop = workshop(run, Path(folder))
        nodes = make_plan({BASE: run}, {BASE: shop.fingerprints()}).nodes.values()
        evaluations = [node for node in nodes if node.kind == "evaluation"]
        for node in nodes:
            if node.kind != "evaluation":
                make((node,), shop)
        _ = shop.test
        (group,) = tasks(evaluations)
        together = seconds(lambda: make(group.nodes, shop))
        seen = {node: observations(node, shop) for node in evaluations}
        for node in evaluations:
            shop.store.path("evaluation", node.id).rename(shop.store.path("evaluation", f".{node.id}"))
        alone = seconds(lambda: [make((node,), shop) for node in evaluations])
        for node, tables in seen.items():
            for shared, own in zip(tables, observations(node, shop), strict=True):
                pd.testing.assert_frame_equal(shared, own, check_exact=True)
    print(
        f"{len(evaluations)} models, {IMAGES} images, {PERTURBED} of them under {len(run.evaluate.perturbations)} "
        f"perturbations: {together:.1f} s together, {alone:.1f} s one by one"
    )
    print(f"evaluation_sharing ratio {alone / together:.2f}")


def observations(node: Node, shop: Workshop) -> tuple[pd.DataFrame, pd.DataFrame]:
    return read_observations(shop.store.path("evaluation", node.id))


if __name__ == "__main__":
    main(*sys.argv[1:])
