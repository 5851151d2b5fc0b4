"""`bench pretrain`: a CLIP from scratch, on the embedded world or on a user's pairs."""

import json
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import bench
from bench.core import code_state
from bench.core.clip import CONFIG_FILE, Clip
from bench.core.dataset import Geometry
from bench.core.errors import BenchError
from bench.core.images import crops, hash_file, hash_of
from bench.core.randomness import generator, seeded
from bench.data import world_captions, world_drawing
from bench.data.pairs import read_pairs
from bench.data.silhouettes import NAMES
from bench.data.world import World, WorldFlowers, WorldObjects, web
from bench.models.load import read_config
from bench.models.probe import probe
from bench.training.pretraining import Pretraining, Saved, pretrain

# In the new model's folder, while it is trained.
UNFINISHED = "unfinished.pt"
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

    An interrupted training goes on where it last saved, and ends at the same weights.

    Returns the card. Raises `BenchError` if `out` is a file, or already holds a model, or one that was begun with other
    settings or code.
    """
    if out.is_file():
        raise BenchError(f"--out {out} is a file, not a folder. Give another --out")
    if (out / CONFIG_FILE).exists():
        raise BenchError(f"{out} already holds a model. Give another --out, or remove it.")
    # A folder of pairs counts by its name.
    of_pairs = hash_file(pairs) if pairs and pairs.is_file() else str(pairs)
    determined_by = hash_of([config, recipe.model_dump(), seed, of_pairs, device, code_state.sources()])
    unfinished = Unfinished(out / UNFINISHED, determined_by)
    before = unfinished.read() or {"training": None, "losses": [], "seconds": 0.0}
    saved, losses, start = before["training"], before["losses"], time.perf_counter() - before["seconds"]
    rng = generator(seed, "pretrain")

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
        batches = _pair_batches(clip, recipe, pairs, out, rng) if pairs else world_batches(clip, recipe, seed, rng)
        if saved:
            say(f"going on from step {saved['step']}, which {unfinished.file} holds")
            rng.set_state(before["rng"])

        def save(training: Saved) -> None:
            seconds = time.perf_counter() - start
            unfinished.write({"training": training, "rng": rng.get_state(), "losses": losses, "seconds": seconds})

        pretrain(clip, batches, classes, recipe, report, saved, save)
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
    unfinished.file.unlink(missing_ok=True)
    return card


@dataclass(frozen=True)
class Unfinished:
    """The file of a training that is under way. `determined_by` is a hash of all that determines the weights."""

    file: Path
    determined_by: str

    def read(self) -> dict[str, Any] | None:
        """What was last written; None if nothing was.

        Raises:
            BenchError: it is of other settings or code, or damaged.
        """
        if not self.file.is_file():
            return None
        try:
            content = torch.load(self.file, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
            content = {}
        if content.get("determined_by") != self.determined_by:
            raise BenchError(
                f"{self.file} is of a training with other settings, seed or code, or damaged, so it cannot go on. "
                "Remove it to begin anew, or give another --out"
            )
        return content["state"]

    def write(self, state: dict[str, Any]) -> None:
        """Write so that an interruption leaves the file as it was before."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        part = self.file.with_suffix(".part")
        torch.save({"determined_by": self.determined_by, "state": state}, part)
        part.replace(self.file)


def world_batches(clip: Clip, recipe: Pretraining, seed: int, rng: torch.Generator) -> Batches:
    """Batches of the embedded world for `pretrain`; labels, where there are any, are of all classes of the world."""
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
    # Imported late: it takes longer to import than torch.
    from torchvision.transforms.v2 import functional as TF

    size = [clip.image_size, clip.image_size]
    return images if images.shape[-1] == size[0] else TF.resize(images, size, antialias=True)


def _pair_batches(clip: Clip, recipe: Pretraining, file: Path, out: Path, rng: torch.Generator) -> Batches:
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
