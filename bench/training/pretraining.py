"""Pretraining of a small CLIP from scratch: the recipe behind the embedded model.

Contrastive loss on pairs, helped by cross-entropy against class prompts where labels are known. Muon trains the
matrices of the blocks, AdamW the rest. The logit scale is set, not learned: it ends at 100, as OpenAI's does.
"""

import math
from collections.abc import Callable
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core.clip import Clip
from bench.core.precision import product
from bench.core.progress import track
from bench.core.settings import Field, Settings
from bench.training.fine_tuning import contrastive_loss
from bench.training.muon import Muon

# Steps.
SAVE_EVERY = 100


class Saved(TypedDict):
    """Where an interrupted pretraining goes on: steps that are done, and the states of model and optimisers."""

    step: int
    parts: list[dict[str, Any]]


class Pretraining(Settings):
    """How a CLIP is trained from scratch."""

    steps: int = Field(4000, ge=1, description="optimiser steps; a number, not a time, so that it can be repeated")
    batch_size: int = Field(64, ge=2, description="pairs a step")
    images: int = Field(50_000, ge=2, description="different pictures of the world; captions are new at each use")
    learning_rate: float = Field(1e-3, gt=0, description="AdamW: embeddings, norms, projections")
    matrix_learning_rate: float = Field(0.01, gt=0, description="Muon: the matrices of the blocks")
    # A decay of .7 makes class tokens small and prompts weak: repelling alone then stops at a cosine of .55.
    matrix_weight_decay: float = Field(0.05, ge=0, description="Muon's weight decay")
    warmup_steps: int = Field(50, ge=0, description="steps of linear warm-up")
    first_scale: float = Field(14.3, gt=0, description="logit scale up to 30 % of the steps")
    last_scale: float = Field(100.0, gt=0, description="logit scale from 80 % of the steps on")
    class_loss: float = Field(1.0, ge=0, description="weight of the cross-entropy against class prompts")
    true_captions: float = Field(
        0.75,
        ge=0,
        le=1,
        description="share of the steps, from the first, with true captions and class loss",
    )
    wrong: float = Field(0.5, ge=0, le=1, description="after them: share of captions that name another picture's class")
    vague: float = Field(0.1, ge=0, le=1, description="after them: share of captions that name no class")
    min_crop: float = Field(1.0, gt=0, le=1, description="smallest area of random crops of a user's pairs; 1: no crop")
    flip: bool = Field(False, description="mirror half of a user's images")


def scale_at(progress: float, first: float, last: float) -> float:
    """Logit scale at a share of the run: `first` to 30 %, then geometric to `last` at 80 %.

    >>> [round(scale_at(p, 10, 100)) for p in (0, 0.3, 0.55, 0.8, 1)]
    [10, 10, 32, 100, 100]
    """
    return first * (last / first) ** min(1.0, max(0.0, (progress - 0.3) / 0.5))


def pretrain(
    clip: Clip,
    batch: Callable[[float], tuple[Tensor, Tensor, Tensor | None]],
    class_tokens: Tensor | None,
    recipe: Pretraining,
    report: Callable[[int, float], None] = lambda _step, _loss: None,
    saved: Saved | None = None,
    save: Callable[[Saved], None] = lambda _saved: None,
) -> None:
    """Train `clip` in place.

    `batch(progress)`, progress from 0 to 1, gives the next images (uint8), tokens and, where known, labels into
    `class_tokens`. With labels, a linear helper head on the image embedding speeds up the first half of the run; it is
    thrown away.

    Every `SAVE_EVERY` steps, `save` gets what a later call needs as `saved` to go on to the same weights; the later
    call's `batch` must go on, too.
    """
    clip.model.train()
    clip.model.logit_scale.requires_grad_(False)
    width = clip.model.encode_text(clip.tokenize(["a"]).to(clip.device)).shape[-1]
    helper = torch.nn.Linear(width, len(class_tokens)).to(clip.device) if class_tokens is not None else None
    optimisers = _optimisers(clip, helper, recipe)
    rates = [group["lr"] for optimiser in optimisers for group in optimiser.param_groups]
    parts = [clip.model, *optimisers, *([] if helper is None else [helper])]
    first = 0
    if saved is not None:
        first = saved["step"]
        for part, state in zip(parts, saved["parts"], strict=True):
            part.load_state_dict(state)
    for step in track(range(first, recipe.steps), "pretraining"):
        progress = step / recipe.steps
        share = min(1.0, (step + 1) / max(1, recipe.warmup_steps)) * min(1.0, (1 - progress) / 0.6)
        for group, rate in zip((g for o in optimisers for g in o.param_groups), rates, strict=True):
            group["lr"] = rate * share
        clip.model.logit_scale.fill_(math.log(scale_at(progress, recipe.first_scale, recipe.last_scale)))
        images, tokens, labels = batch(progress)
        raw = clip.model.encode_image(clip.normalise(images))
        vision = F.normalize(raw, dim=-1)
        if labels is None or class_tokens is None or helper is None:
            loss = contrastive_loss(vision, clip.encode_text(tokens), clip.scale)
        else:
            labels = labels.to(clip.device)
            text = clip.encode_text(torch.cat([tokens.to(clip.device), class_tokens]))
            loss = contrastive_loss(vision, text[: len(tokens)], clip.scale)
            loss = loss + recipe.class_loss * F.cross_entropy(clip.scale * product(vision, text[len(tokens) :]), labels)
            if progress < 0.5:
                loss = loss + F.cross_entropy(helper(raw), labels)
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
        # Waits for the GPU: a reader sees each step's loss, and these models are small.
        report(step, loss.item())
        if (step + 1) % SAVE_EVERY == 0:
            save({"step": step + 1, "parts": [part.state_dict() for part in parts]})
    clip.model.eval().requires_grad_(True)


def _optimisers(clip: Clip, helper: torch.nn.Module | None, recipe: Pretraining) -> list[torch.optim.Optimizer]:
    matrices: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in clip.model.named_parameters():
        if parameter.requires_grad:
            (matrices if parameter.ndim == 2 and "resblocks" in name else rest).append(parameter)
    rest += list(helper.parameters()) if helper is not None else []
    muon = Muon(matrices, lr=recipe.matrix_learning_rate, weight_decay=recipe.matrix_weight_decay)
    adam = torch.optim.AdamW(rest, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    return [muon, adam]
