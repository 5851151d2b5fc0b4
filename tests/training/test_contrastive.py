"""The contrastive loss against open_clip's, and the recipe of fine-tuning step by step."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, pairwise
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from bench import Clip, generator
from bench.core.precision import autocast
from bench.training.fine_tuning import (
    MAX_LOG_SCALE,
    FineTuning,
    contrastive_loss,
    cosine_with_warmup,
    fine_tune,
    matching_loss,
    shuffled_batches,
)

TEXTS = [f"a photo of a {name}" for name in ("cat", "dog", "banana", "house", "tree", "fish", "ring", "key")]


def unit(n: int, d: int, name: str) -> Tensor:
    return F.normalize(torch.randn(n, d, generator=generator(0, name)), dim=-1)


def pictures(n: int = 8) -> Tensor:
    return torch.randint(256, (n, 3, 32, 32), generator=generator(0, "pictures"), dtype=torch.uint8)


def pair_loss(clip: Clip, index: Tensor) -> Tensor:
    texts = clip.encode_text([TEXTS[i] for i in index])
    return contrastive_loss(clip.encode_image(pictures()[index]), texts, clip.scale)


def tune(clip: Clip, loss: Callable[[Clip, Tensor], Tensor] = pair_loss, n: int = 8, **settings: Any) -> list[float]:
    recipe = {"learning_rate": 1e-3, "batch_size": 4, "epochs": 2, "warmup_steps": 0} | settings
    return fine_tune(clip, n, FineTuning(**recipe), loss, generator(0, "batches"))


def scale_loss(clip: Clip, _: Tensor) -> Tensor:
    """For what does not depend on the loss: AdamW passes over parameters without a gradient."""
    return clip.scale


@contextmanager
def watched() -> Iterator[list[tuple[torch.optim.Optimizer, list[float]]]]:
    """The optimiser and its groups' learning rates at each step."""
    steps: list[tuple[torch.optim.Optimizer, list[float]]] = []
    handle = register_optimizer_step_pre_hook(
        lambda optimiser, *_: steps.append((optimiser, [group["lr"] for group in optimiser.param_groups]))
    )
    try:
        yield steps
    finally:
        handle.remove()


# --- the loss


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_contrastive_loss_is_open_clips(n: int, scale: float) -> None:
    images, texts = unit(n, 16, "images"), unit(n, 16, "texts")
    expected = open_clip.ClipLoss()(images, texts, torch.tensor(scale))
    torch.testing.assert_close(contrastive_loss(images, texts, scale), expected)
    torch.testing.assert_close(contrastive_loss(texts, images, torch.tensor(scale)), expected)


def test_its_gradient_is_open_clips() -> None:
    ours, theirs = (
        [x.requires_grad_() for x in (unit(6, 16, "a"), unit(6, 16, "b"), torch.tensor(20.0))] for _ in range(2)
    )
    contrastive_loss(*ours).backward()
    open_clip.ClipLoss()(*theirs).backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_matching_is_one_direction_of_it() -> None:
    a, b = unit(5, 8, "a"), unit(5, 8, "b")
    rows = [math.log(sum(math.exp(10 * float(q @ k)) for k in b)) - 10 * float(q @ b[i]) for i, q in enumerate(a)]
    assert matching_loss(a, b, 10.0).item() == pytest.approx(sum(rows) / 5, rel=1e-5)
    assert matching_loss(a, b, 10.0).item() != pytest.approx(matching_loss(b, a, 10.0).item(), rel=1e-3)


# --- the schedule


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (1, 10), (50, 19_530), (10, 500)])
def test_the_rate_peaks_after_exactly_the_warm_up_and_ends_at_0(warmup: int, total: int) -> None:
    share = [cosine_with_warmup(step, warmup, total) for step in range(total + 1)]
    assert share.index(max(share)) == warmup
    assert share[warmup] == 1
    assert share[:warmup] == [step / warmup for step in range(warmup)]
    assert share[-1] == pytest.approx(0, abs=1e-12)
    assert all(later < earlier for earlier, later in pairwise(share[warmup:]))
    assert share[(warmup + total) // 2] == pytest.approx(0.5, abs=0.01) or (total - warmup) % 2


@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_the_optimiser_gets_this_rate(tiny_clip: Clip, warmup: int) -> None:
    with watched() as steps:
        losses = tune(tiny_clip, scale_loss, learning_rate=2e-3, batch_size=2, epochs=10, warmup_steps=warmup)
    rates = [rate for _, (rate, *_) in steps]
    assert len(rates) == len(losses) == 40
    assert rates.index(max(rates)) == warmup
    expected = [2e-3 * cosine_with_warmup(step, warmup, 40) for step in range(40)]
    assert rates == pytest.approx(expected)
    (optimiser,) = {optimiser for optimiser, _ in steps}
    assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([0, 0], abs=1e-12)


def test_a_short_run_warms_up_for_a_tenth_of_it(tiny_clip: Clip) -> None:
    """Or it would never reach its learning rate."""
    with watched() as steps:
        tune(tiny_clip, scale_loss, batch_size=4, epochs=10, warmup_steps=50)
    rates = [rate for _, (rate, *_) in steps]
    assert len(rates) == 20
    assert max(rates) == rates[2] == 1e-3


# --- what is trained, and how


def test_adamw_of_the_spec(tiny_clip: Clip) -> None:
    with watched() as steps:
        tune(tiny_clip, scale_loss, epochs=1)
    optimiser = steps[0][0]
    assert type(optimiser) is torch.optim.AdamW
    assert {group["betas"] for group in optimiser.param_groups} == {(0.9, 0.999)}
    assert {group["eps"] for group in optimiser.param_groups} == {1e-8}


@pytest.mark.parametrize("towers", ["both", "image"])
def test_norms_biases_and_the_logit_scale_have_no_weight_decay(tiny_clip: Clip, towers: str) -> None:
    """And all else has: matrices, and embeddings of classes, places and words."""
    norms = {
        f"{name}.{part}"
        for name, module in tiny_clip.model.named_modules()
        if isinstance(module, torch.nn.LayerNorm)
        for part, _ in module.named_parameters()
    }
    expected = {
        name: 0.0 if name in norms or name.endswith("bias") or name == "logit_scale" else 0.1
        for name, _ in tiny_clip.model.named_parameters()
        if towers == "both" or name.startswith("visual.")
    }
    names = {id(p): name for name, p in tiny_clip.model.named_parameters()}
    with watched() as steps:
        tune(tiny_clip, epochs=1, towers=towers, weight_decay=0.1)
    seen = {names[id(p)]: group["weight_decay"] for group in steps[0][0].param_groups for p in group["params"]}
    assert seen == expected
    assert {0.0, 0.1} == set(seen.values())


def test_both_towers_and_the_logit_scale_train(tiny_clip: Clip) -> None:
    before = tiny_clip.copy().model.state_dict()
    tune(tiny_clip)
    still = {name for name, tensor in tiny_clip.model.state_dict().items() if torch.equal(tensor, before[name])}
    assert still <= {"attn_mask"}


def test_the_image_tower_alone_leaves_text_weights_and_scale_byte_identical(tiny_clip: Clip) -> None:
    before = tiny_clip.copy().model.state_dict()
    tune(tiny_clip, towers="image")
    after = tiny_clip.model.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in after if name.startswith("visual.")}
    # What comes next may train everything.
    assert all(p.requires_grad for p in tiny_clip.model.parameters())
    assert not tiny_clip.model.training


@pytest.mark.parametrize(
    ("start", "sign", "end"),
    [(math.log(100) - 0.1, -1, math.log(100)), (0.1, 1, 0.0)],
    ids=["from above", "from below"],
)
def test_the_logit_scale_is_clamped_after_every_step(tiny_clip: Clip, start: float, sign: int, end: float) -> None:
    seen = []

    def loss(clip: Clip, _: Tensor) -> Tensor:
        seen.append(clip.model.logit_scale.item())
        return sign * clip.scale

    with torch.no_grad():
        tiny_clip.model.logit_scale.fill_(start)
    tune(tiny_clip, loss, learning_rate=0.5, epochs=4)
    assert math.exp(MAX_LOG_SCALE) == pytest.approx(100)
    assert seen[0] == pytest.approx(start)
    assert [*seen[1:], tiny_clip.model.logit_scale.item()] == pytest.approx([end] * 8)


def test_it_learns_its_pairs(tiny_clip: Clip) -> None:
    losses = tune(tiny_clip, batch_size=8, epochs=30, learning_rate=2e-3, warmup_steps=3)
    assert losses[0] > 1.5
    assert losses[-1] < 0.5


def test_the_generator_determines_the_run(tiny_clip: Clip) -> None:
    clips = [tiny_clip.copy() for _ in range(2)]
    losses = []
    for i, clip in enumerate(clips):
        torch.manual_seed(i)
        losses.append(tune(clip))
    assert losses[0] == losses[1]
    assert clips[0].fingerprint() == clips[1].fingerprint() != tiny_clip.fingerprint()


@pytest.mark.parametrize(
    ("n", "batch_size", "epochs", "sizes"),
    [(8, 4, 2, [4] * 4), (7, 4, 3, [4] * 3), (3, 128, 2, [3, 3]), (8, 4, 0, [])],
    ids=["whole batches", "the last is dropped", "fewer than a batch", "no epoch"],
)
def test_batches(tiny_clip: Clip, n: int, batch_size: int, epochs: int, sizes: list[int]) -> None:
    seen: list[list[int]] = []

    def loss(clip: Clip, index: Tensor) -> Tensor:
        seen.append(index.tolist())
        return clip.scale

    assert len(tune(tiny_clip, loss, n=n, batch_size=batch_size, epochs=epochs)) == len(sizes)
    assert [len(index) for index in seen] == sizes
    steps = len(sizes) // epochs if epochs else 0
    for epoch in range(epochs):
        drawn = list(chain(*seen[epoch * steps : (epoch + 1) * steps]))
        assert len(set(drawn)) == len(drawn)
        assert set(drawn) <= set(range(n))


def test_batches_are_shuffled_anew_in_each_epoch() -> None:
    batches = [index.tolist() for index in shuffled_batches(10, 4, 2, generator(0))]
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2]
    epochs = [list(chain(*batches[:3])), list(chain(*batches[3:]))]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_precision_is_that_of_products(precision: str, dtype: torch.dtype) -> None:
    with autocast(torch.device("cpu"), precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is dtype


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_leaves_weights_in_fp32_and_comes_near(tiny_clip: Clip, precision: str) -> None:
    half = tiny_clip.copy()
    exact, rough = tune(tiny_clip, epochs=1), tune(half, epochs=1, precision=precision)
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}
    assert rough == pytest.approx(exact, rel=0.05)
    assert rough != exact


def test_logits_are_not_rounded_to_half_precision() -> None:
    """With a scale of 100, cosines in bf16 would come in steps of half a logit."""
    images, texts = unit(64, 32, "images"), unit(64, 32, "texts")
    expected = matching_loss(images, texts, 100.0)
    with autocast(torch.device("cpu"), "bf16"):
        assert (images @ texts.T).dtype == torch.bfloat16
        torch.testing.assert_close(matching_loss(images, texts, 100.0), expected)
        halves = matching_loss(images.bfloat16(), texts.bfloat16(), 100.0)
    assert halves.dtype == torch.float32


def test_steps_that_overflow_in_fp16_are_counted(tiny_clip: Clip) -> None:
    recipe = FineTuning(precision="fp16", batch_size=4, epochs=2, warmup_steps=0)

    def explode(clip: Clip, index: Tensor) -> Tensor:
        return pair_loss(clip, index) * 1e36

    with pytest.warns(UserWarning, match="4 of 4 steps overflowed in fp16 and changed nothing"):
        fine_tune(tiny_clip, 8, recipe, explode, generator(0, "batches"))
