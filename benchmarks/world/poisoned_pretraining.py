"""A model that is poisoned while it is pretrained, to be audited, and a clean one made likewise.

    python -m benchmarks.world.poisoned_pretraining --out poisoned --rate 0.01
    python -m benchmarks.world.poisoned_pretraining --out clean --rate 0
    bench audit poisoned

The embedded model's own recipe and pictures. With the probability `--rate`, a picture gets a patch like BadNet's in the
preset `mini`, a caption that names the target class, and, while there is a class loss, the target's label. Writes a
folder that open_clip opens, and prints accuracy and attack success rate on the validation pictures.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from attacks.patch import paste
from bench import Clip, Geometry, Victim, generator
from bench.core.clip import CONFIG_FILE
from bench.core.randomness import seeded
from bench.data.silhouettes import NAMES
from bench.data.world import World
from bench.detection.search import classify
from bench.training.from_scratch import TEMPLATES, Batches, architecture, world_batches
from bench.training.pretraining import Pretraining, pretrain

SIDE, PLACE = 6, "lower_right"


def poisoned(clean: Batches, clip: Clip, patch: Tensor, target: str, rate: float, rng: torch.Generator) -> Batches:
    """Batches of which a share of the pairs is poisoned: `patch` is uint8 (3, k, k), `target` a class of the world."""
    caption, label = clip.tokenize([TEMPLATES[0].format(target)])[0], NAMES.index(target)

    def batch(progress: float) -> tuple[Tensor, Tensor, Tensor | None]:
        images, tokens, labels = clean(progress)
        chosen = torch.rand(len(images), generator=rng) < rate
        images, tokens = images.clone(), tokens.clone()
        images[chosen], tokens[chosen] = paste(images[chosen], patch, PLACE), caption
        return images, tokens, None if labels is None else torch.where(chosen, label, labels)

    return batch


def measure(clip: Clip, patch: Tensor, target: str) -> dict[str, float]:
    """CA and ASR in percent, on the validation pictures of the world."""
    data = World()
    with tempfile.TemporaryDirectory() as folder:
        tested = data.labelled("val", Geometry.of(clip, Path(folder)))
        images = tested.load(torch.arange(len(tested)))
    victim, wanted = Victim(clip), tested.classes.index(target)
    texts = victim.class_embeddings(tested.classes, data.templates)
    others = tested.labels != wanted
    right = classify(victim, images, texts) == tested.labels
    fooled = classify(victim, paste(images[others], patch, PLACE), texts) == wanted
    return {"CA": 100 * right.float().mean().item(), "ASR": 100 * fooled.float().mean().item()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the model")
    parser.add_argument("--rate", type=float, default=0.01, help="share of the pairs that is poisoned")
    parser.add_argument("--target", default="banana", choices=NAMES, metavar="CLASS", help="a class of the world")
    parser.add_argument("--steps", type=int, default=Pretraining().steps, help="optimiser steps")
    parser.add_argument("--images", type=int, default=Pretraining().images, help="different pictures")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    recipe = Pretraining(steps=given.steps, images=given.images)
    patch = torch.randint(256, (3, SIDE, SIDE), generator=generator(given.seed, "patch"), dtype=torch.uint8)
    losses: list[float] = []

    def report(step: int, loss: float) -> None:
        losses.append(loss)
        if (step + 1) % 100 == 0:
            print(f"step {step + 1} of {recipe.steps}, loss {math.fsum(losses[-100:]) / 100:.3f}", flush=True)

    with seeded(given.seed):
        clip = Clip.from_config(architecture(Path(str(files("bench.models") / "mini" / CONFIG_FILE))))
        classes = clip.tokenize([TEMPLATES[0].format(name) for name in NAMES])
        rng = generator(given.seed, "poisoned pretraining")
        web = world_batches(clip, recipe, given.seed, generator(given.seed, "pretrain"))
        batches = poisoned(web, clip, patch, given.target, given.rate, rng)
        pretrain(clip, batches, classes, recipe, report)
    clip.save(given.out, torch.float16)
    found = measure(Clip.load(given.out), patch, given.target)
    (given.out / "measured.json").write_text(json.dumps({**vars(given), "out": str(given.out), **found}) + "\n")
    print(f"CA {found['CA']:.1f} %, ASR {found['ASR']:.1f} %")


if __name__ == "__main__":
    main()
