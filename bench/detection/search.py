"""The search for triggers: Adam on the numbers of a family, several triggers at once, the model frozen."""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core.clip import untrained
from bench.core.progress import track
from bench.core.settings import Field, Settings
from bench.core.victim import Victim
from bench.detection.triggers import Family, Recovered

# Images that are encoded at a time where no gradient is needed.
AT_ONCE = 128
# Of unit-norm embeddings (count, n, d) of triggered images, a loss per trigger (count,).
Objective = Callable[[Tensor], Tensor]


class Search(Settings):
    """How long to look for a trigger."""

    steps: int = Field(40, ge=1, description="steps of Adam")
    batch_size: int = Field(16, ge=2, description="images a step")
    restarts: int = Field(2, ge=1, description="triggers that are looked for at once, from different starts")


def search(
    victim: Victim, images: Tensor, family: Family, objective: Objective, effort: Search, rng: torch.Generator
) -> list[Recovered]:
    """Look for triggers that minimise the objective on images, uint8 (n, 3, side, side): one a restart.

    Adam with betas (0.5, 0.9) as in DECREE; the rate falls along a cosine to a tenth.
    """
    clip, side = victim.clip, images.shape[-1]
    count = effort.restarts
    numbers = {name: start.to(clip.device).requires_grad_() for name, start in family.start(count, side, rng).items()}
    optimiser = torch.optim.Adam(list(numbers.values()), lr=family.rate, betas=(0.5, 0.9))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step / effort.steps))
    batches = _batches(len(images), effort, rng)
    with untrained(clip.model):
        for index in track(batches, f"looking for a {family.label}", effort.steps):
            clean = images[index].to(clip.device).float() / 255
            stamped = family.apply(clean, numbers).clamp(0, 1)
            embedded = unit(victim, stamped.flatten(0, 1)).unflatten(0, (count, len(index)))
            optimiser.zero_grad()
            objective(embedded).sum().backward()
            optimiser.step()
            schedule.step()
    settled = {name: tensor.detach() for name, tensor in numbers.items()}
    return [family.settle({k: v.cpu() for k, v in settled.items()}, which, side) for which in range(count)]


def unit(victim: Victim, images: Tensor) -> Tensor:
    """Unit-norm embeddings (n, embed_dim) of images, with a graph where they have one."""
    return F.normalize(victim.encode(images).embedding.float(), dim=-1)


def stamped(trigger: Recovered, images: Tensor) -> Tensor:
    """A trigger on images, uint8 (n, 3, side, side), rounded to 8 bits as every trigger is."""
    return (trigger.stamp(images.float() / 255).clamp(0, 1) * 255).round().to(torch.uint8)


@torch.no_grad()
def embed(victim: Victim, images: Tensor) -> Tensor:
    """Unit-norm embeddings (n, embed_dim) of uint8 images, a part at a time."""
    return torch.cat([unit(victim, part) for part in images.split(AT_ONCE)])


@torch.no_grad()
def classify(victim: Victim, images: Tensor, texts: Tensor) -> Tensor:
    """Predicted classes (n,) of uint8 images, a part at a time."""
    return torch.cat([victim.predict(victim.encode(part), texts) for part in images.split(AT_ONCE)]).cpu()


def _rate(done: float) -> float:
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))


def _batches(n: int, effort: Search, rng: torch.Generator) -> Iterator[Tensor]:
    size, left = min(effort.batch_size, n), torch.empty(0, dtype=torch.long)
    for _ in range(effort.steps):
        if len(left) < size:
            left = torch.randperm(n, generator=rng)
        yield left[:size]
        left = left[size:]
