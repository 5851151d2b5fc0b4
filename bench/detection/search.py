"""The search for triggers: Adam on the numbers of a family, several triggers at once, the model frozen."""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core.clip import untrained
from bench.core.progress import track
from bench.core.settings import Field, Settings
from bench.core.victim import Victim
from bench.detection.triggers import Family, Recovered, Tensors

# Images that are encoded at a time where no gradient is needed.
AT_ONCE = 128
# Of unit-norm embeddings (triggers, n, d) of triggered images, a loss per trigger (triggers,).
Objective = Callable[[Tensor], Tensor]
# Where a family has more starts than are followed to the end, each takes so many steps on so many images.
TRIED_STEPS, TRIED_IMAGES, TRIED_AT_ONCE = 5, 4, 32
# The factor between cosines and logits of an aimed search: lower than CLIP's 100, so that gradients do not vanish.
AIMED_SCALE = 20.0


class Search(Settings):
    """How long to look for a trigger."""

    steps: int = Field(40, ge=1, description="steps of Adam")
    batch_size: int = Field(16, ge=2, description="images a step")
    restarts: int = Field(2, ge=1, description="triggers looked for at once; of squares and warps, the best of many")


def search(
    victim: Victim, images: Tensor, family: Family, objective: Objective, effort: Search, rng: torch.Generator
) -> list[Recovered]:
    """Look for triggers that minimise the objective on images, uint8 (n, 3, side, side).

    Adam with betas (0.5, 0.9) as in DECREE; the rate falls along a cosine to a tenth. Where a family has more starts
    than `effort.restarts`, all take a few steps on a few images first, and those with the lowest loss go on.
    """
    side = images.shape[-1]
    starts = family.start(effort.restarts, side, rng)
    count = len(next(iter(starts.values())))
    if count > effort.restarts:
        batches = list(_batches(len(images), TRIED_IMAGES, TRIED_STEPS, rng))
        tried = [
            _descend(victim, images, family, {k: v[part] for k, v in starts.items()}, objective, batches, lambda _: 1.0)
            for part in track(torch.arange(count).split(TRIED_AT_ONCE), f"trying starts of a {family.label}")
        ]
        best = torch.cat([losses for _, losses in tried]).argsort(stable=True)[: effort.restarts]
        starts = {name: torch.cat([numbers[name] for numbers, _ in tried])[best] for name in starts}
    rest = track(
        _batches(len(images), effort.batch_size, effort.steps, rng), f"looking for a {family.label}", effort.steps
    )
    found, _ = _descend(victim, images, family, starts, objective, rest, lambda step: _falling(step / effort.steps))
    return [family.settle(found, which, side) for which in range(min(effort.restarts, count))]


def _descend(
    victim: Victim,
    images: Tensor,
    family: Family,
    starts: Tensors,
    objective: Objective,
    batches: Iterable[Tensor],
    factor: Callable[[int], float],
) -> tuple[Tensors, Tensor]:
    """Numbers of triggers after a step on each batch, and the loss of each trigger before the last step."""
    clip = victim.clip
    numbers = {name: start.to(clip.device) for name, start in starts.items()}
    learned = [numbers[name].requires_grad_() for name in numbers if numbers[name].is_floating_point()]
    optimiser = torch.optim.Adam(learned, lr=family.rate, betas=(0.5, 0.9))
    losses = torch.zeros(0)
    with untrained(clip.model):
        for step, index in enumerate(batches):
            optimiser.param_groups[0]["lr"] = family.rate * factor(step)
            clean = images[index].to(clip.device).float() / 255
            triggered = family.apply(clean, numbers).clamp(0, 1)
            losses = objective(unit(victim, triggered.flatten(0, 1)).unflatten(0, triggered.shape[:2]))
            optimiser.zero_grad()
            losses.sum().backward()
            optimiser.step()
    # Waits for the GPU: once a search.
    return {name: tensor.detach().cpu() for name, tensor in numbers.items()}, losses.detach().cpu()


def aimed_at(target: int, texts: Tensor) -> Objective:
    """Cross-entropy towards one class of `texts` (classes, embed_dim)."""
    return lambda embedded: -(AIMED_SCALE * embedded @ texts.T).log_softmax(-1)[..., target].mean(-1)


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
def answer(victim: Victim, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Of uint8 images, a part at a time: probabilities of the classes (n, classes), and predicted classes (n,)."""
    probabilities, predicted = [], []
    for part in images.split(AT_ONCE):
        encoded = victim.encode(part)
        # Waits for the GPU: the answers to every batch are kept on the CPU.
        predicted.append(victim.predict(encoded, texts).cpu())
        # Waits for the GPU: likewise.
        probabilities.append(victim.logits(encoded, texts).float().softmax(1).cpu())
    return torch.cat(probabilities), torch.cat(predicted)


def classify(victim: Victim, images: Tensor, texts: Tensor) -> Tensor:
    """Predicted classes (n,) of uint8 images, a part at a time."""
    return answer(victim, images, texts)[1]


def _falling(done: float) -> float:
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))


def _batches(n: int, size: int, count: int, rng: torch.Generator) -> Iterator[Tensor]:
    size, left = min(size, n), torch.empty(0, dtype=torch.long)
    for _ in range(count):
        if len(left) < size:
            left = torch.randperm(n, generator=rng)
        yield left[:size]
        left = left[size:]
