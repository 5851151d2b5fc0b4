"""Contrastive fine-tuning, by which attacks implant a backdoor and CleanCLIP removes one."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core.clip import Clip
from bench.core.distributed import average, average_gradients, gathered, rank, share
from bench.core.errors import BenchError
from bench.core.precision import autocast, product
from bench.core.progress import track
from bench.core.randomness import seeded
from bench.core.settings import Field, Settings

MAX_LOG_SCALE = math.log(100)


def contrastive_loss(first: Tensor, second: Tensor, scale: Tensor | float) -> Tensor:
    """Symmetric InfoNCE of two batches of unit-norm embeddings (n, d); equal rows are pairs.

    L = 1/2 [CE(s A B^T, I) + CE(s B A^T, I)] (Radford et al., 2021).

    >>> contrastive_loss(torch.eye(4), torch.eye(4), 100.0).item() < 1e-6
    True
    """
    return (matching_loss(first, second, scale) + matching_loss(second, first, scale)) / 2


def matching_loss(queries: Tensor, keys: Tensor, scale: Tensor | float) -> Tensor:
    """One direction of InfoNCE: CE(s Q K^T, I), of unit-norm queries (n, d) and keys (m, d), m >= n.

    With several processes, K holds the keys of all of them, and the mean of their losses is the loss of the whole
    batch, as in open_clip's `ClipLoss(local_loss=True, gather_with_grad=True)`.
    """
    labels = torch.arange(len(queries), device=queries.device) + rank() * len(queries)
    return F.cross_entropy(scale * product(queries, gathered(keys)), labels)


def cosine_with_warmup(step: int, warmup: int, total: int, first_step: int = 0) -> float:
    """Factor on the learning rate: rises linearly to 1 at step `warmup`, then falls as a cosine to 0 at step `total`.

    With `first_step` = 1 the warm-up counts its steps from 1: it has no step at rate 0, and ends a step earlier. After
    `total` the cosine rises again.

    >>> [round(cosine_with_warmup(s, 2, 6), 2) for s in range(7)]
    [0.0, 0.5, 1.0, 0.85, 0.5, 0.15, 0.0]
    >>> [cosine_with_warmup(s, 4, 6, first_step=1) for s in range(4)]
    [0.25, 0.5, 0.75, 1.0]
    """
    if step < warmup:
        return (step + first_step) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


class FineTuning(Settings):
    """How a CLIP's weights are fine-tuned on pairs; the defaults are paper v1's for poisoning."""

    learning_rate: float = Field(1e-5, gt=0, description="peak learning rate of AdamW")
    epochs: int = Field(5, ge=0, description="passes over the pairs")
    batch_size: int = Field(128, ge=2, description="pairs a step; the contrast is within the batch")
    weight_decay: float = Field(0.1, ge=0, description="of all but norms, biases and logit_scale")
    warmup_steps: int = Field(50, ge=0, description="steps of linear warm-up; at most `warmup_share` of all")
    warmup_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="of all steps, the most that are warm-up; 1, with a long warm-up: CleanCLIP's",
    )
    first_epoch: Literal[0, 1] = Field(
        0,
        description="number of the first epoch in the schedule; 1: CleanCLIP's code, which starts an epoch late in its "
        "schedule and ends an epoch behind it",
    )
    first_step: Literal[0, 1] = Field(
        0, description="number of the warm-up's first step; 0: it has rate 0; 1: CleanCLIP's code"
    )
    towers: Literal["both", "image"] = Field("both", description="which weights train")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="autocast of forward and loss")
    gradient_checkpointing: bool = Field(
        False,
        description="recompute the blocks of transformers in the backward pass: less memory, the same gradients",
    )

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """Share of the learning rate at a step, counted from 0 over all epochs.

        >>> cleanclip = FineTuning(epochs=2, warmup_steps=0, first_epoch=1)
        >>> [round(cleanclip.rate(step, 2), 2) for step in range(4)]
        [0.5, 0.15, 0.0, 0.15]
        """
        total = self.epochs * steps_per_epoch
        # A run shorter than the warm-up would never reach its learning rate.
        warmup = min(self.warmup_steps, int(total * self.warmup_share))
        return cosine_with_warmup(step + self.first_epoch * steps_per_epoch, warmup, total, self.first_step)


def fine_tune(
    clip: Clip,
    n: int,
    recipe: FineTuning,
    loss: Callable[[Clip, Tensor], Tensor],
    rng: torch.Generator,
    ahead: Callable[[Tensor], object] = lambda _: None,
) -> list[float]:
    """Fine-tune `clip` in place; returns the loss of each step.

    `loss(clip, index)` returns the loss of the pairs with these indices, in 0..n-1. The last, incomplete batch of an
    epoch is dropped. After every step, logit_scale is clamped to [0, ln 100]. `ahead`, such as `Images.ahead`, is
    called with the indices of the next step before each step, so that images can be decoded meanwhile.

    In a process group, every process must call this with the same model and generator; `loss` then gets the process's
    share of each batch. Batches, steps and weights are those of a single process.

    Raises:
        BenchError: out of memory. A contrastive batch is not split, as that would change the loss.
    """
    groups = parameter_groups(clip, recipe)
    trained = [parameter for group in groups for parameter in group["params"]]
    optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.999), eps=1e-8)
    batch_size = min(recipe.batch_size, n)
    steps_per_epoch = n // batch_size
    total = recipe.epochs * steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: recipe.rate(step, steps_per_epoch))
    scaler = torch.amp.GradScaler(clip.device.type, enabled=recipe.precision == "fp16")
    losses, overflows = [], 0
    clip.model.train()
    if recipe.gradient_checkpointing:
        clip.model.set_grad_checkpointing()
    # Some towers drop tokens or activations in training, using torch's global generator.
    with seeded(rng.initial_seed(), clip.device):
        batches = map(share, shuffled_batches(n, batch_size, recipe.epochs, rng, drop_last=True))
        for index in track(announced(batches, ahead), "fine-tuning", total):
            optimiser.zero_grad()
            try:
                with autocast(clip.device, recipe.precision):
                    value = loss(clip, index)
                scaler.scale(value).backward()
            except torch.OutOfMemoryError:
                raise BenchError(
                    f"out of memory with batch_size = {batch_size}. Set gradient_checkpointing=true, which changes no "
                    "number, precision=bf16, or a smaller batch_size: the loss is of a whole batch, and cannot be split"
                ) from None
            average_gradients(trained)
            before = scaler.get_scale()
            scaler.step(optimiser)
            scaler.update()
            overflows += scaler.get_scale() < before
            schedule.step()
            with torch.no_grad():
                clip.model.logit_scale.clamp_(0, MAX_LOG_SCALE)
            losses.append(average(value))
    if recipe.gradient_checkpointing:
        clip.model.set_grad_checkpointing(False)
    clip.model.eval().requires_grad_(True)
    if overflows:
        message = f"{overflows} of {total} steps overflowed in fp16 and changed nothing"
        warnings.warn(f"{message}; precision=bf16 does not overflow", stacklevel=2)
    return losses


def parameter_groups(clip: Clip, recipe: FineTuning) -> list[dict[str, Any]]:
    """The trained weights for AdamW: those that decay, then norms, biases and logit_scale."""
    trained = _trained_parameters(clip, recipe.towers)
    # All vectors are of norms and biases, but for the class embedding.
    decayed = [p for name, p in trained if p.ndim >= 2 or "embedding" in name]
    others = [p for name, p in trained if not (p.ndim >= 2 or "embedding" in name)]
    return [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]


def shuffled_batches(
    n: int, batch_size: int, epochs: int, rng: torch.Generator, drop_last: bool = False
) -> Iterator[Tensor]:
    """Indices (batch_size,) of all batches of some epochs, in an order that is shuffled for each epoch."""
    for _ in range(epochs):
        for index in torch.randperm(n, generator=rng).split(batch_size):
            if len(index) == batch_size or not drop_last:
                yield index


def announced(batches: Iterable[Tensor], ahead: Callable[[Tensor], object]) -> Iterator[Tensor]:
    """Yield batches one step late, so that `ahead` can prefetch the next one.

    >>> for batch in announced([1, 2], lambda batch: print("ahead:", batch)):
    ...     print(batch)
    ahead: 1
    ahead: 2
    1
    2
    """
    held: list[Tensor] = []
    for batch in batches:
        ahead(batch)
        yield from held
        held = [batch]
    yield from held


def _trained_parameters(clip: Clip, towers: str) -> list[tuple[str, torch.nn.Parameter]]:
    for name, parameter in clip.model.named_parameters():
        parameter.requires_grad_(towers == "both" or name.startswith("visual."))
    return [(name, p) for name, p in clip.model.named_parameters() if p.requires_grad]
