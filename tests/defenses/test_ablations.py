"""RVPT's ablations against a second implementation: where prompts go, what is repelled, how, and with which texts."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from tuning import CLASSES, PLAIN, first_tokens, fit, make_data, make_images, prompts_of

from bench import BenchError, CleanData, Clip, Victim, class_embeddings, generator
from bench.core.encoder import encode
from defenses.prompt_tuning import PromptTuning
from defenses.rvpt import RVPT, feature_repelling
from defenses.vpt import VPT

WHOLE: dict[str, Any] = {**PLAIN, "batch_size": 12, "epochs": 4}
# Of four blocks, with D = 0: those with prompts, those repelled.
ARRANGEMENTS = {
    None: ([0, 1, 2, 3], [0, 1, 2, 3]),
    "split": ([0, 1], [2, 3]),
    "overlap": ([2, 3], [2, 3]),
    "intertwine": ([0, 2], [1, 3]),
    "mix": ([1, 3], [1, 3]),
}


def numpy_similarity(prompted: np.ndarray, frozen: np.ndarray, distance: str) -> float:
    """Mean similarity of features (blocks, n, [tokens,] width)."""
    p, f = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (prompted, frozen))
    if distance == "cosine":
        return float((p * f).sum(-1).mean())
    return -float(np.linalg.norm(p - f, ord={"l1": 1, "l2": 2}[distance], axis=-1).mean())


@pytest.mark.parametrize("shape", [(3, 7, 8), (2, 5, 17, 8)], ids=["class token", "all tokens"])
@pytest.mark.parametrize("distance", ["cosine", "l1", "l2"])
def test_similarities_are_those_of_numpy(distance: Any, shape: tuple[int, ...]) -> None:
    a, b = (torch.randn(shape, generator=generator(0, name)) * 3 for name in "ab")
    expected = numpy_similarity(a.double().numpy(), b.double().numpy(), distance)
    assert feature_repelling(a, b, distance=distance).item() == pytest.approx(expected, abs=1e-6)


def test_a_margin_is_per_image_over_blocks_and_tokens() -> None:
    a, b = (torch.randn(2, 5, 17, 8, generator=generator(0, name)) for name in "ab")
    per_image = F.cosine_similarity(a, b, dim=-1).double().numpy().mean((0, 2))
    assert per_image.min() < 0 < per_image.max()
    assert feature_repelling(a, b, 0.0).item() == pytest.approx(np.maximum(per_image, 0).mean(), abs=1e-6)


def forward(clip: Clip, images: Tensor, prompts: Tensor, blocks: list[int]) -> tuple[Tensor, Tensor]:
    """All tokens after every block, (L, n, 17, width), and the embedding; prompts go behind the patches."""
    hidden, outputs = first_tokens(clip, images), []
    for d, block in enumerate(clip.visual.transformer.resblocks):
        if d in blocks:
            hidden = torch.cat([hidden, prompts[blocks.index(d)].expand(len(hidden), -1, -1)], 1)
        hidden = block(hidden)[:, :17]
        outputs.append(hidden)
    return torch.stack(outputs), clip.visual.ln_post(hidden[:, 0]) @ clip.visual.proj


def similarity(prompted: Tensor, frozen: Tensor, distance: str) -> Tensor:
    p, f = prompted / prompted.norm(dim=-1, keepdim=True), frozen / frozen.norm(dim=-1, keepdim=True)
    if distance == "cosine":
        return (p * f).sum(-1).mean()
    return -((p - f).abs().sum(-1) if distance == "l1" else (p - f).square().sum(-1).sqrt()).mean()


def manual_fit(method: RVPT, clip: Clip, data: CleanData, blocks: list[int], repelled: list[int]) -> Tensor:
    """Whole batches, plain autograd, SGD by hand."""
    kept = [i for i in range(len(CLASSES)) if not (method.without_target and i == data.target)]
    shots = data.shots(method.shots, data.target if method.without_target else None)
    images, labels = shots.load(range(len(shots))), torch.tensor([kept.index(y) for y in shots.labels.tolist()])
    texts = clip.encode_text([(method.template or "a photo of a {}.").format(CLASSES[i]) for i in kept]).detach()
    prompts = torch.randn(len(blocks), method.prompts, 32, generator=data.rng("prompts")) * method.init_std
    frozen = forward(clip, images, prompts, [])[0].detach()
    velocity: Tensor | float = 0.0
    for epoch in range(method.epochs):
        prompts.requires_grad_()
        outputs, embedding = forward(clip, images, prompts, blocks)
        logits = clip.scale.detach() * F.normalize(embedding, dim=-1) @ texts.T
        width = slice(None) if method.tokens == "all" else slice(1)
        apart = similarity(outputs[repelled][:, :, width], frozen[repelled][:, :, width], method.distance)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels) + method.alpha * apart, prompts)
        velocity = method.momentum * velocity + gradient + method.weight_decay * prompts.detach()
        rate = method.learning_rate * (1 + math.cos(math.pi * epoch / method.epochs)) / 2
        prompts = prompts.detach() - rate * velocity
    return prompts


@pytest.mark.parametrize(
    "settings",
    [
        {"distance": "l1", "alpha": 0.1},
        {"distance": "l2"},
        {"tokens": "all"},
        {"tokens": "all", "distance": "l2", "permutation": "mix"},
        {"permutation": "split"},
        {"permutation": "overlap"},
        {"permutation": "intertwine"},
        {"permutation": "mix"},
        {"template": "###### {}"},
        {"without_target": True},
    ],
    ids=str,
)
def test_an_ablation_is_its_equations(settings: dict[str, Any], tiny_clip: Clip) -> None:
    method = RVPT(**WHOLE | {"depth": 0} | settings)
    expected = manual_fit(method, tiny_clip, make_data(), *ARRANGEMENTS[method.permutation])
    seen = prompts_of(method, tiny_clip)
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-4)
    plain = prompts_of(RVPT(**WHOLE | {"depth": 0}), tiny_clip)
    assert seen.shape != plain.shape or (seen - plain).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "prompted", "repelled"),
    [
        ({}, [3, 4, 5, 6, 7, 8, 9, 10, 11], [3, 4, 5, 6, 7, 8, 9, 10, 11]),
        ({"last_blocks": 6}, [6, 7, 8, 9, 10, 11], [6, 7, 8, 9, 10, 11]),
        ({"permutation": "split"}, [4, 5, 6, 7], [8, 9, 10, 11]),
        ({"permutation": "overlap"}, [8, 9, 10, 11], [8, 9, 10, 11]),
        ({"permutation": "intertwine"}, [4, 6, 8, 10], [5, 7, 9, 11]),
        ({"permutation": "mix"}, [5, 7, 9, 11], [5, 7, 9, 11]),
        ({"permutation": "split", "depth": 0}, [0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]),
        ({"permutation": "intertwine", "last_blocks": 4}, [8, 10], [9, 11]),
        ({"first_blocks": 3}, [0, 1, 2], [0, 1, 2]),
        ({"permutation": "split", "first_blocks": 4}, [0, 1], [2, 3]),
    ],
    ids=str,
)
def test_arrangements_of_twelve_blocks(settings: dict[str, Any], prompted: list[int], repelled: list[int]) -> None:
    assert RVPT(**settings).arrangement(12) == (prompted, repelled)


@pytest.mark.parametrize("method", [VPT, RVPT])
def test_blocks_from_the_output_are_blocks_from_the_input(method: type[PromptTuning], tiny_clip: Clip) -> None:
    common = {k: v for k, v in PLAIN.items() if k != "depth"}
    from_output = prompts_of(method(**common, last_blocks=1), tiny_clip)
    assert len(from_output) == 1
    assert torch.equal(from_output, prompts_of(method(**common, depth=3), tiny_clip))


@pytest.mark.parametrize("permutation", ["split", "overlap", "intertwine", "mix"])
def test_a_permuted_victim_is_restored(permutation: Any, tiny_clip: Clip) -> None:
    victim, _ = fit(RVPT(**WHOLE | {"depth": 0, "learning_rate": 1.0}, permutation=permutation), tiny_clip)
    prompted, _ = ARRANGEMENTS[permutation]
    delta = victim.delta(tiny_clip)
    assert set(delta.tensors) == {"prompts"}
    again, images = Victim.restore(tiny_clip, delta), make_images().load(range(4))
    assert again.blocks == victim.blocks
    assert again.depth == prompted[0]
    with torch.no_grad():
        expected = forward(tiny_clip, images, delta.tensors["prompts"], prompted)[1]
        torch.testing.assert_close(again.encode(images).embedding, expected, atol=1e-5, rtol=1e-4)
        assert torch.equal(again.encode(images).embedding, victim.encode(images).embedding)
        assert (expected - encode(tiny_clip, images).embedding).abs().max() > 0.01


def test_the_prompt_text_is_the_same_at_test(tiny_clip: Clip) -> None:
    victim, data = fit(RVPT(**WHOLE, template="###### {} ü"), tiny_clip)
    again = Victim.restore(tiny_clip, victim.delta(tiny_clip))
    for one in (victim, again):
        seen = one.class_embeddings(("dog", "cow"), data.templates, prefix="SUDO ")
        assert torch.equal(seen, class_embeddings(tiny_clip, ("dog", "cow"), ("###### {} ü",), prefix="SUDO "))
    plain, _ = fit(RVPT(**WHOLE), tiny_clip)
    expected = class_embeddings(tiny_clip, ("dog",), data.templates)
    assert torch.equal(plain.class_embeddings(("dog",), data.templates), expected)


@pytest.mark.parametrize("method", [VPT, RVPT])
def test_without_the_target_s_images(method: type[PromptTuning], tiny_clip: Clip) -> None:
    """Its images are not seen, its text is not in the softmax, and its text is there at test."""
    data = make_data()
    victim, _ = fit(method(**WHOLE, without_target=True), tiny_clip, data)
    labels = dict(zip(data.train.ids, data.train.labels.tolist(), strict=True))
    assert [labels[id] for id in data.used] == [0] * 4 + [2] * 4
    with torch.no_grad():
        texts = victim.class_embeddings(CLASSES, data.templates)
        assert victim.logits(victim.encode(data.train.load([0])), texts).isfinite().all()
    # Whatever the target's images are, they change nothing.
    other = make_images()
    other.pixels[other.labels == 1] = 0
    assert torch.equal(prompts_of(method(**WHOLE, without_target=True), tiny_clip, make_data(other)), victim.prompts)


def test_a_target_class_that_is_not_there_cannot_be_left_out(tiny_clip: Clip) -> None:
    with pytest.raises(BenchError, match="the training images have no class with the target's name"):
        fit(RVPT(**WHOLE, without_target=True), tiny_clip, replace(make_data(), target=None))


@pytest.mark.parametrize("setting", ["split", "overlap", "intertwine", "mix"])
def test_a_permutation_without_repelling_is_vpt_there(setting: Any, tiny_clip: Clip) -> None:
    common = {**WHOLE, "depth": 0, "permutation": setting}
    assert torch.equal(prompts_of(RVPT(**common, alpha=0), tiny_clip), prompts_of(RVPT(**common, margin=1), tiny_clip))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 1, "last_blocks": 2}, "depth = 1 counts blocks from the input, last_blocks = 2 from the output"),
        ({"template": "a photo"}, "template = 'a photo' has no place for the class's name: write {} where it goes"),
        ({"distance": "l1", "margin": 0.5}, "rvpt.margin is a cosine, and rvpt.distance = l1 has none"),
        ({"permutation": "shuffle"}, "setting rvpt.permutation = 'shuffle'"),
        ({"last_blocks": 0}, "setting rvpt.last_blocks = 0"),
    ],
)
def test_settings_that_contradict(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError) as error:
        RVPT.parse(settings, "rvpt")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"last_blocks": 5}, "last_blocks = 5, but this image tower has 4 blocks"),
        ({"depth": 3, "permutation": "mix"}, r"rvpt.permutation = mix needs two blocks or more\. Lower rvpt.depth"),
    ],
)
def test_settings_that_do_not_fit_the_tower(settings: dict[str, Any], message: str, tiny_clip: Clip) -> None:
    with pytest.raises(BenchError, match=message):
        fit(RVPT(**settings), tiny_clip)


def test_an_average_is_the_mean_of_the_prompts_after_the_steps_of_the_last_epochs(tiny_clip: Clip) -> None:
    steps: list[Tensor] = []

    def keep(optimiser: torch.optim.Optimizer, *_: Any) -> None:
        steps.append(optimiser.param_groups[0]["params"][0].detach().clone())

    hook = register_optimizer_step_post_hook(keep)
    try:
        averaged = prompts_of(RVPT(**PLAIN, average=2), tiny_clip)
    finally:
        hook.remove()
    per_epoch = len(steps) // 3
    assert per_epoch == math.ceil(len(make_images()) / PLAIN["batch_size"])
    torch.testing.assert_close(averaged, torch.stack(steps[per_epoch:]).mean(0))
    assert torch.equal(prompts_of(RVPT(**PLAIN), tiny_clip), steps[-1]), "the default is the last step"


def test_a_longer_gradient_is_cut_to_its_largest_norm(tiny_clip: Clip) -> None:
    plain = PLAIN | {"momentum": 0, "weight_decay": 0, "batch_size": 12, "epochs": 1}
    start, cut = prompts_of(VPT(**plain | {"epochs": 0}), tiny_clip), prompts_of(VPT(**plain, max_norm=1e-3), tiny_clip)
    assert (cut - start).norm().item() == pytest.approx(plain["learning_rate"] * 1e-3, rel=1e-2)
    assert torch.equal(prompts_of(VPT(**plain, max_norm=1e6), tiny_clip), prompts_of(VPT(**plain), tiny_clip))


def test_more_epochs_cannot_be_averaged_than_there_are() -> None:
    with pytest.raises(BenchError, match=r"average = 4 is more than epochs = 3: give as many or fewer"):
        RVPT(**PLAIN, average=4)
