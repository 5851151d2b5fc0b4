"""A quick check of a loaded CLIP: its zero-shot accuracy on a few clean images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bench.core.clip import Clip
from bench.core.images import Labelled
from bench.core.randomness import generator
from bench.core.victim import Victim

IMAGES = 200
BATCH = 50
# An accuracy below this multiple of chance, or below this share, is suspicious.
TIMES_CHANCE = 3
SHARE = 0.2


@dataclass(frozen=True)
class Probe:
    """`correct` of `n` clean images were classified correctly among `classes`; `quick_gelu` tells the activation."""

    correct: int
    n: int
    classes: int
    quick_gelu: bool

    @property
    def accuracy(self) -> float:
        return self.correct / self.n

    @property
    def suspicious(self) -> bool:
        """Whether accuracy is below 20 %, or below 3 x chance, at most half-way between chance and 100 %."""
        times = min(TIMES_CHANCE, (self.classes + 1) / 2)
        return self.accuracy < SHARE or self.correct * self.classes < times * self.n

    def __str__(self) -> str:
        summary = f"clean accuracy on {self.n} test images: {self.accuracy:.1%} of {self.classes} classes"
        if not self.suspicious:
            return summary
        activation = (
            "QuickGELU, where the weights were trained with GELU"
            if self.quick_gelu
            else "GELU, where OpenAI's weights and their descendants need QuickGELU (--model ...-quickgelu, or "
            "--pretrained openai beside --checkpoint)"
        )
        return (
            f"{summary}\nwarning: that is suspiciously low (chance is {1 / self.classes:.1%}). Likely causes: the "
            f"wrong activation (it is {activation}); the wrong preprocessing (--set model.mean=..., model.std=...); "
            "weights of another model; or a data set unlike all that the model was trained on."
        )


@torch.no_grad()
def probe(clip: Clip, images: Labelled, templates: Sequence[str], limit: int = IMAGES) -> Probe:
    """Classify up to `limit` images, always the same ones, zero-shot with the first template."""
    chosen = torch.randperm(len(images), generator=generator(0, "probe"))[:limit].sort().values
    victim, correct = Victim(clip), 0
    names = victim.class_embeddings(images.classes, templates[:1])
    for part in chosen.split(BATCH):
        predicted = victim.logits(victim.encode(images.load(part)), names).argmax(1).cpu()
        correct += int((predicted == images.labels[part]).sum())
    return Probe(correct, len(chosen), len(images.classes), bool(clip.config["model_cfg"].get("quick_gelu")))
