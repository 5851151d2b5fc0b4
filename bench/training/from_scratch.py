"""`bench pretrain`: a CLIP from scratch, on the embedded world or on a user's pairs."""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

import bench
from bench.core import code_state
from bench.core.clip import CONFIG_FILE, Clip
from bench.core.dataset import Geometry
from bench.core.errors import BenchError
from bench.core.images import crops
from bench.core.randomness import generator, seeded
from bench.data import world_captions, world_drawing
from bench.data.pairs import read_pairs
from bench.data.silhouettes import NAMES
from bench.data.world import World, WorldFlowers, WorldObjects, web
from bench.models.load import read_config
from bench.models.probe import probe
from bench.training.pretraining import Pretraining, pretrain

TEMPLATES = ("a photo of a {}.",)
Batches = Callable[[float], tuple[Tensor, Tensor, Tensor | None]]


def architecture(file: Path) -> dict:
    """An `open_clip_config.json`'s contents."""
    if not file.is_file():
        raise BenchError(f"--architecture {file}: no such file. Give an open_clip_config.json")
    return read_config(file)


def train_from_scratch(
    out: Path, config: dict, recipe: Pretraining, seed: int, pairs: Path | None, device: str, say: Callable[[str], None]
) -> dict:
    """Train a CLIP and write it, in half precision, with its card, as open_clip's `local-dir:` reads it.

    Returns the card. Raises `BenchError` if `out` is a file, or already holds a model.
    """
    if out.is_file():
        raise BenchError(f"--out {out} is a file, not a folder. Give another --out")
    if (out / CONFIG_FILE).exists():
        raise BenchError(f"{out} already holds a model. Give another --out, or remove it.")
    start, losses = time.perf_counter(), []

    def report(step: int, loss: float) -> None:
        losses.append(loss)
        if (step + 1) % 100 == 0 or step + 1 == recipe.steps:
            recent = sum(losses[-100:]) / len(losses[-100:])
            say(f"step {step + 1} of {recipe.steps}, {time.perf_counter() - start:.0f} s, loss {recent:.3f}")

    # Initial weights, the helper head's too, come from torch's global generator.
    with seeded(seed):
        clip = Clip.from_config(config).to(device)
        classes = None if pairs else clip.tokenize([TEMPLATES[0].format(c) for c in NAMES]).to(device)
        say("drawing the world" if pairs is None else f"reading {pairs}")
        batches = world_batches(clip, recipe, seed) if pairs is None else _pair_batches(clip, recipe, seed, pairs, out)
        pretrain(clip, batches, classes, recipe, report)
    clip.save(out, torch.float16)
    card = {
        "command": " ".join(["bench", *sys.argv[1:]]),
        "commit": code_state.commit(),
        "bench": bench.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "seed": seed,
        "recipe": recipe.model_dump(),
        "samples": recipe.steps * recipe.batch_size,
        "data": f"embedded world, version {world_drawing.VERSION}" if pairs is None else str(pairs),
        "seconds": round(time.perf_counter() - start),
        "loss": sum(losses[-100:]) / len(losses[-100:]),
    }
    if pairs is None:
        card["zero_shot_accuracy"] = _zero_shot_accuracy(Clip.load(out).to(device))
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


def world_batches(clip: Clip, recipe: Pretraining, seed: int) -> Batches:
    """Batches of the embedded world for `pretrain`; labels, where there are any, are of all classes of the world."""
    rng = generator(seed, "pretrain")
    images, factors = web(recipe.images, "pretrain", seed)

    def batch(progress: float) -> tuple[Tensor, Tensor, Tensor | None]:
        index = torch.randint(len(images), (recipe.batch_size,), generator=rng)
        chosen = world_drawing.Factors(**{name: values[index] for name, values in vars(factors).items()})
        learning = progress < recipe.true_captions
        wrong, vague = (0.0, 0.0) if learning else (recipe.wrong, recipe.vague)
        names = world_captions.named(chosen.label, rng, wrong, vague)
        tokens = clip.tokenize(world_captions.captions(chosen, names, rng))
        return _fit(images[index], clip), tokens, chosen.label if learning else None

    return batch


def _fit(images: Tensor, clip: Clip) -> Tensor:
    """The world's pictures at the model's input size."""
    size = [clip.image_size, clip.image_size]
    return images if images.shape[-1] == size[0] else TF.resize(images, size, antialias=True)


def _pair_batches(clip: Clip, recipe: Pretraining, seed: int, file: Path, out: Path) -> Batches:
    rng = generator(seed, "pretrain")
    pairs = read_pairs(file, Geometry.of(clip, out / "data"))
    tokens = clip.tokenize(pairs.captions)

    def batch(_progress: float) -> tuple[Tensor, Tensor, None]:
        index = torch.randint(len(pairs), (recipe.batch_size,), generator=rng)
        view = int(torch.randint(2**62, (), generator=rng))
        return crops(pairs, index, view, recipe.min_crop, 4 / 3, recipe.flip), tokens[index], None

    return batch


def _zero_shot_accuracy(clip: Clip) -> dict[str, dict[str, float]]:
    """Accuracy of the saved, half-precision weights on the validation pictures of the world's data sets, in percent."""
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        for data in (World(), WorldObjects(), WorldFlowers()):
            images = data.labelled("val", Geometry.of(clip, Path(cache)))
            right = probe(clip, images, data.templates, len(images)).correct
            found[data.name] = {"percent": 100 * right / len(images), "count": right, "n": len(images)}
    return found
