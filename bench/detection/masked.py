"""The smallest mask and pattern that do something: the search that Neural Cleanse and DECREE share."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.core.clip import untrained
from bench.core.progress import track
from bench.core.victim import Victim
from bench.detection.search import unit

# Of unit-norm embeddings (n, d) of stamped images: the loss, and how well the trigger does what it should.
Aim = Callable[[Tensor], tuple[Tensor, float]]


@dataclass(frozen=True)
class Weighing:
    """How the weight of the mask's size follows success: times `up` after `patience` checks in a row at `wanted` or
    above, over `down` after as many below. The search ends when the smallest mask has not shrunk for `stop` checks."""

    start: float
    up: float
    down: float
    patience: int
    wanted: float
    stop: int | None = None


def smallest_mask(
    victim: Victim,
    images: Tensor,
    aim: Aim,
    weighing: Weighing,
    rates: Callable[[int], float],
    checks: int,
    steps: int,
    batch_size: int,
    rng: torch.Generator,
) -> float:
    """The L1 norm of the smallest mask that was seen to succeed; that of the last one if none did.

    x' = (1 - m) x + m p, with m (side, side) and p (3, side, side) in [0, 1] through tanh. `images` is uint8
    (n, 3, side, side). A check is of `steps` steps of Adam, betas (0.5, 0.9), at the rate `rates(check)`.
    """
    side, device = images.shape[-1], victim.clip.device
    numbers = [torch.rand(shape, generator=rng).to(device) for shape in ((1, side, side), (3, side, side))]
    numbers = [torch.atanh((n * 2 - 1) * 0.999).requires_grad_() for n in numbers]
    optimiser = torch.optim.Adam(numbers, lr=rates(0), betas=(0.5, 0.9))
    cost, streak, best, since, size = weighing.start, 0, float("inf"), 0, float("inf")
    with untrained(victim.clip.model):
        for check in track(range(checks), "looking for the smallest mask"):
            for group in optimiser.param_groups:
                group["lr"] = rates(check)
            succeeded = []
            for index in _batches(len(images), batch_size, steps, rng):
                mask, pattern = ((n.tanh() + 1) / 2 for n in numbers)
                clean = images[index].to(device).float() / 255
                loss, success = aim(unit(victim, (1 - mask) * clean + mask * pattern))
                area = mask.sum()
                optimiser.zero_grad()
                (loss + cost * area).backward()
                optimiser.step()
                succeeded.append(success)
            # Waits for the GPU: once a check, not in every step.
            size = area.item()
            good = sum(succeeded) / len(succeeded) >= weighing.wanted
            since = 0 if good and size < best else since + 1
            best = min(best, size) if good else best
            streak = max(streak, 0) + 1 if good else min(streak, 0) - 1
            if abs(streak) >= weighing.patience:
                cost, streak = cost * weighing.up if good else cost / weighing.down, 0
            if weighing.stop is not None and best < float("inf") and since >= weighing.stop:
                break
    return best if best < float("inf") else size


def _batches(n: int, size: int, count: int, rng: torch.Generator) -> Iterator[Tensor]:
    for _ in range(count):
        yield torch.randperm(n, generator=rng)[:size]
