"""Random images to tune prompts and probes on, and the settings that make a fit of moments."""

from typing import Any

import torch
from torch import Tensor

from bench import CleanData, Clip, Defense, Labelled, Victim, generator

CLASSES, PER_CLASS, SIDE = ("cat", "banana", "house"), 4, 32
# Small, without augmentation, and quick to move.
SMALL: dict[str, Any] = {
    "depth": 1,
    "prompts": 3,
    "shots": 4,
    "batch_size": 6,
    "epochs": 3,
    "learning_rate": 0.05,
    "warmup_epochs": 0,
}
PLAIN: dict[str, Any] = {**SMALL, "min_crop": 1.0, "flip": False}


def make_images(
    native: tuple[int, int] | None = (40, 56), per_class: int = PER_CLASS, mapped: bool = False
) -> Labelled:
    n, rng = per_class * len(CLASSES), generator(0, "images")
    natives = torch.randint(256, (n, 3, *(native or (SIDE, SIDE))), generator=rng, dtype=torch.uint8)
    pixels = torch.randint(256, (n, 3, SIDE, SIDE), generator=rng, dtype=torch.uint8)
    return Labelled(
        ids=[f"{i:03}" for i in range(n)],
        pixels=pixels.numpy() if mapped else pixels,
        fingerprint="images",
        labels=torch.arange(n) % len(CLASSES),
        classes=CLASSES,
        native=(lambda i: natives[i]) if native else None,
    )


def make_data(train: Labelled | None = None, seed: int = 0) -> CleanData:
    return CleanData(train or make_images(), ("a photo of a {}.",), seed, target=1)


def fit(method: Defense, clip: Clip, data: CleanData | None = None) -> tuple[Victim, CleanData]:
    data = data or make_data()
    return method.fit(Victim(clip), data), data


def prompts_of(method: Defense, clip: Clip, data: CleanData | None = None) -> Tensor:
    prompts = fit(method, clip, data)[0].prompts
    assert prompts is not None
    return prompts


def first_tokens(clip: Clip, images: Tensor) -> Tensor:
    """What enters the first block of a vision transformer of open_clip's, (n, 1 + patches, width)."""
    tower = clip.visual
    patches = tower.conv1(clip.normalise(images)).flatten(2).transpose(1, 2)
    class_tokens = tower.class_embedding.expand(len(images), 1, -1)
    return tower.ln_pre(torch.cat([class_tokens, patches], 1) + tower.positional_embedding)
