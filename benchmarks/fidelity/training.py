"""Losses, schedule, weight decay and views of training: ours beside the original code."""

from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from checks import BADCLIP, CLEANCLIP, Inputs, Result, check
from torch import Tensor

from attacks.badclip import text_loss, triplet_loss
from bench import generator
from bench.core.randomness import seeded
from bench.training.fine_tuning import FineTuning, contrastive_loss
from defenses.cleanclip import within_loss

SCALE = 3.0
# A seed whose second shuffle of 32 leaves nothing at its place.
SHUFFLED = 3
# Steps an epoch and epochs: poisoning with 500,000 pairs in batches of 128, CleanCLIP with 100,000 in batches of 64.
POISONING, CLEANING = (500_000 // 128, 5), (100_000 // 64, 10)


def embeddings(name: str) -> Tensor:
    return F.normalize(torch.randn(32, 64, generator=generator(0, name)), dim=-1).requires_grad_()


def loss_of(original: Any, images: list[Tensor], texts: list[Tensor]) -> Tensor:
    """The original's loss of embeddings, and of their views if there are any."""
    outputs = SimpleNamespace(image_embeds=torch.cat(images), text_embeds=torch.cat(texts))
    options = SimpleNamespace(
        inmodal=len(images) > 1, distributed=False, unlearn=False, device="cpu", clip_weight=1, inmodal_weight=1
    )
    model = SimpleNamespace(logit_scale=torch.tensor(SCALE))
    return original.get_loss(model, outputs, torch.nn.CrossEntropyLoss(), options, None)[0]


def compared(first: Tensor, second: Tensor, leaves: list[Tensor]) -> Result:
    """Two losses and their gradients."""
    pairs = [
        torch.autograd.grad(loss, leaves, retain_graph=True) for loss in (first, second)
    ]  # fmt: skip
    apart = max(float((a - b).abs().max()) for a, b in zip(*pairs, strict=True))
    value = abs((first - second).item())
    return Result(value < 1e-5 and apart < 1e-5, f"loss differs by {value:.1g}, gradients by at most {apart:.1g}")


@check("The contrastive loss and its gradients", "src/train.py", "all")
def contrastive(inputs: Inputs) -> Result:
    images, texts = embeddings("images"), embeddings("texts")
    with inputs.code(CLEANCLIP, "src.train") as original:
        loss = loss_of(original, [images], [texts])
    return compared(loss, contrastive_loss(images, texts, torch.tensor(SCALE).exp()), [images, texts])


@check(
    "The loss of BadCLIP's patch and its gradients",
    "src/embeding_optimize_patch.py",
    "`badclip.image_negatives=triggered`; the presets have `clean`",
    BADCLIP,
)
def patch_loss(inputs: Inputs) -> Result:
    """The negatives are the triggered images in another order, none at its own place: there the slope is rounding."""
    images, texts, targets = embeddings("images"), embeddings("texts"), embeddings("targets").detach()
    # Neither is needed for the loss, and the original's imports of them fail.
    evaluation, data = ModuleType("src.evaluate"), ModuleType("src.data")
    vars(evaluation).update(evaluate=None, Finetune=None)
    vars(data).update(load=None, get_clean_train_dataloader=None, calculate_scores=None)
    stand_ins = {"cv2": ModuleType("cv2"), "src.evaluate": evaluation, "src.data": data}
    options = SimpleNamespace(inmodal=False, unlearn=False, device="cpu", name="nature_pos_neg_tri*001")
    outputs, model = (
        SimpleNamespace(image_embeds=images, text_embeds=texts),
        SimpleNamespace(logit_scale=torch.tensor(SCALE)),
    )
    with inputs.code(BADCLIP, "src.embeding_optimize_patch", **stand_ins) as original, seeded(SHUFFLED):
        given = {"pos_embeds": targets, "neg_embeds": images.detach()}
        loss = sum(original.get_loss(model, outputs, torch.nn.CrossEntropyLoss(), options, None, **given).values())
    with seeded(SHUFFLED):
        near, away = targets[torch.randperm(32)], images.detach()[torch.randperm(32)]
    own = text_loss(images, texts, texts[:0], torch.tensor(SCALE).exp().item()) + triplet_loss(images, near, away, 1.0)
    return compared(loss, own, [images, texts])


@check("CleanCLIP's loss with views, and its gradients", "src/train.py", "`cleanclip`: the presets'")
def cleanclip(inputs: Inputs) -> Result:
    leaves = [embeddings(name) for name in ("images", "image views", "texts", "text views")]
    with inputs.code(CLEANCLIP, "src.train") as original:
        loss = loss_of(original, leaves[:2], leaves[2:])
    scale = torch.tensor(SCALE).exp()
    own = contrastive_loss(leaves[0], leaves[2], scale) + within_loss(*leaves, scale)
    return compared(loss, own, leaves)


def their_rates(inputs: Inputs, warmup: int, steps: int, epochs: int) -> list[float]:
    """The learning rate of each step as the original's `train` asks its scheduler for it: epochs from 1."""
    optimiser = SimpleNamespace(param_groups=[{}])
    rates = []
    with inputs.code(CLEANCLIP, "src.scheduler") as original:
        scheduler = original.cosine_scheduler(optimiser, 1.0, warmup, steps * epochs)
        for epoch in range(1, epochs + 1):
            for index in range(steps):
                scheduler(steps * epoch + index)
                rates.append(float(optimiser.param_groups[0]["lr"]))
    return rates


def our_rates(steps: int, epochs: int, **settings: Any) -> list[float]:
    recipe = FineTuning(epochs=epochs, **settings)
    return [recipe.rate(step, steps) for step in range(steps * epochs)]


AUTHORS: dict[str, Any] = {"warmup_share": 1.0, "first_epoch": 1, "first_step": 1}


@check(
    "The learning rate of each step",
    "src/scheduler.py, src/train.py",
    "`poison` and `cleanclip`: `first_epoch=1`, `first_step=1`, `warmup_share=1`, `warmup_steps`",
)
def schedule(inputs: Inputs) -> Result:
    apart = []
    for warmup, shape in ((10_000, POISONING), (50, POISONING), (50, CLEANING)):
        own, original = our_rates(*shape, warmup_steps=warmup, **AUTHORS), their_rates(inputs, warmup, *shape)
        apart.append(max(abs(a - b) for a, b in zip(own, original, strict=True)))
    steps = sum(steps * epochs for steps, epochs in (POISONING, POISONING, CLEANING))
    return Result(max(apart) < 1e-9, f"{steps:,} steps of three schedules: at most {max(apart):.1g} apart")


@check("The summed learning rate as the presets have it", "src/scheduler.py, src/train.py", "as above")
def summed(inputs: Inputs) -> Result:
    def ratio(shape: tuple[int, int], own: int, original: int, **settings: float) -> float:
        return sum(our_rates(*shape, warmup_steps=own, **settings)) / sum(their_rates(inputs, original, *shape))

    return Result(
        None,
        f"ours over theirs: poisoning {ratio(POISONING, 50, 10_000):.2f} (theirs with its default warm-up of 10,000 "
        f"steps); {ratio(POISONING, 10_000, 10_000, warmup_share=1):.2f} with that warm-up in both; "
        f"{ratio(POISONING, 50, 50):.2f} with 50 in both; CleanCLIP, 50 in both, {ratio(CLEANING, 50, 50):.2f}",
    )


@check("BadCLIP's training code", "src/scheduler.py, src/train.py, utils/eda.py", "as for CleanCLIP", BADCLIP)
def same_files(inputs: Inputs) -> Result:
    names = ("src/scheduler.py", "src/train.py", "utils/eda.py", "pkgs/openai/model.py", "pkgs/openai/tokenizer.py")
    folders = [inputs.originals / repository for repository in (CLEANCLIP, BADCLIP)]
    other = [name for name in names if len({(folder / name).read_bytes() for folder in folders}) > 1]
    return Result(not other, f"{len(names)} files the same as CleanCLIP's" if not other else f"differ: {other}")


def edits(inputs: Inputs) -> Any:
    """The original's text edits; WordNet is not asked for anything here."""
    corpus = ModuleType("nltk.corpus")
    corpus.wordnet = SimpleNamespace(synsets=lambda _: [])  # type: ignore[attr-defined]
    return inputs.code(CLEANCLIP, "utils.eda", **{"nltk": ModuleType("nltk"), "nltk.corpus": corpus})
