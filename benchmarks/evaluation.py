"""Evaluation of one attack's models together, against one by one: the same numbers in less time.

The models are the clean mini CLIP, a backdoored one, and what the four defenses and the paper's three chains make of
it, trained as shortly as possible: what evaluation costs does not depend on how good they are. The perturbations are
those of the preset `mini`. Six of the nine models have an image tower of their own, and at D = 0 no block is shared
with prompted ones: so 1.5 is what the towers alone allow, and the rest is images, triggers and class texts. CPU seconds
of one thread, so that other programs matter little.
"""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch

from bench.builtin_tasks.zero_shot import ZeroShot
from bench.core.registry import load_plugins
from bench.experiment.resources import open_resources
from bench.experiment.settings import BASE, resolve
from bench.matrix.job import make
from bench.matrix.plan import make_plan, read_fingerprints
from bench.matrix.schedule import work_units
from bench.papers import chains
from bench.results.store import CACHE, Store

IMAGES, PERTURBED = 100, 30
DEFENSES = ("none", "linear_probe", "vpt", "rvpt", "cleanclip", *chains())
SHORT = (
    "world.train_per_class=2",
    f"world.test={IMAGES}",
    f"zero_shot.perturbation_images={PERTURBED}",
    "poison={pairs: 64, count: 16, epochs: 1}",
    "cleanclip={pairs: 64, epochs: 1}",
    "linear_probe={shots: 2, epochs: 1}",
    "vpt={shots: 2, epochs: 1}",
    "rvpt={shots: 2, epochs: 1}",
    "issba={max_steps: 5, min_bit_accuracy: 0, min_psnr: 0}",
)


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    load_plugins()
    torch.set_num_threads(1)
    # A trigger that costs next to nothing, and one that costs more than the model.
    for attack in ("wanet", "issba"):
        measure(attack)


def measure(attack: str) -> None:
    run = resolve("mini", None, {"attacks": (attack,), "defenses": DEFENSES}, SHORT)
    task = run.task("zero_shot")
    assert isinstance(task, ZeroShot)
    with TemporaryDirectory() as folder:
        store, resources = Store(Path(folder)), open_resources({BASE: run}, Path(folder) / CACHE, "cpu")[BASE]
        nodes = make_plan({BASE: run}, {BASE: read_fingerprints(resources)}).nodes.values()
        evaluations = [node for node in nodes if node.kind == "evaluation"]
        for node in nodes:
            if node.kind != "evaluation":
                make((node,), resources, store)
        _ = resources.test
        (group,) = work_units(evaluations)
        together = seconds(lambda: make(group.nodes, resources, store))
        seen = {node: store.observations(node.id) for node in evaluations}
        for node in evaluations:
            store.path("evaluation", node.id).rename(store.path("evaluation", f".{node.id}"))
        alone = seconds(lambda: [make((node,), resources, store) for node in evaluations])
        for node, shared in seen.items():
            own = store.observations(node.id)
            for name, table in shared.tables.items():
                pd.testing.assert_frame_equal(table, own[name], check_exact=True)
    perturbed = f"{PERTURBED} of them under {len(task.perturbations)} perturbations"
    took = f"{together:.1f} s together, {alone:.1f} s one by one"
    print(f"{attack}: {len(evaluations)} models, {IMAGES} images, {perturbed}: {took}")
    print(f"evaluation_sharing_{attack} ratio {alone / together:.2f}")


if __name__ == "__main__":
    main()
