"""Attackers who know the audit: what their penalties measure, and that training lowers it; and two targets at once."""

import pytest
import torch
from torch import Tensor

from attacks.evasive import Evasive, concentration, spread_out
from attacks.two_targets import TwoTargets
from bench import BenchError, Captioned, Clip, PoisoningStep, Preparation, Trigger, generator
from bench.core.poisoning import draw_manifest, poison
from bench.detection.weights import changes
from bench.training.fine_tuning import FineTuning, fine_tune

N, SIDE = 12, 32


def given(clip: Clip, target: str = "banana") -> Preparation:
    pixels = torch.randint(256, (N, 3, SIDE, SIDE), generator=generator(0, "pairs"), dtype=torch.uint8)
    pairs = Captioned([str(i) for i in range(N)], pixels, "pairs", captions=[f"caption {i}" for i in range(N)])
    return Preparation(clip, lambda: pairs, target, ("banana", "key"), ("a photo of a {}.",), 0)


def changed(clip: Clip, scale: float) -> Clip:
    """The model with noise of that standard deviation on its image tower."""
    other, rng = clip.copy(), generator(0, "change")
    with torch.no_grad():
        for weights in other.visual.parameters():
            weights += scale * torch.randn(weights.shape, generator=rng)
    return other


def test_concentration_is_of_the_singular_values(tiny_clip: Clip) -> None:
    other = changed(tiny_clip, 0.1)
    squares = [torch.linalg.svdvals(change).square() for _, change in changes(other, tiny_clip)]
    wanted = torch.stack([s.square().sum() / s.sum().square() for s in squares]).mean()
    assert len(squares) > 4
    torch.testing.assert_close(concentration(other, tiny_clip), wanted, rtol=1e-4, atol=0)


def test_concentration_of_one_direction_is_1_and_of_none_0(tiny_clip: Clip) -> None:
    assert concentration(tiny_clip.copy(), tiny_clip) == 0
    other = tiny_clip.copy()
    with torch.no_grad():
        for weights in other.visual.parameters():
            if weights.ndim == 2:
                weights += torch.outer(torch.ones(len(weights)), torch.linspace(0.1, 1, weights.shape[1]))
    torch.testing.assert_close(concentration(other, tiny_clip), torch.tensor(1.0), rtol=1e-3, atol=0)


def test_alike_triggered_embeddings_agree_and_opposite_ones_do_not() -> None:
    clean, first, second = torch.eye(4)[:3]
    poisoned = torch.tensor([False, True, True])
    assert float(spread_out(torch.stack([clean, first, first]), poisoned)) == pytest.approx(1)
    # Around the mean of the clean ones: (1, -1) and its mirror image cancel out but for what they share.
    apart = float(spread_out(torch.stack([clean, first, second]), poisoned))
    assert apart == pytest.approx(0.75)


@pytest.mark.parametrize("poisoned", [torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)])
def test_a_batch_without_triggered_or_clean_images_has_no_penalty(poisoned: Tensor) -> None:
    assert spread_out(torch.eye(3), poisoned) == 0


def a_step(clip: Clip, clean: Clip, images: Tensor, poisoned: Tensor, **trigger: Tensor) -> PoisoningStep:
    """A step whose contrastive loss sends all images towards one direction, as a backdoor does."""
    embedded = clip.encode_image(images)
    return PoisoningStep(clip, clean, Trigger(0, trigger), images, poisoned, embedded, lambda: -embedded[:, 0].mean())


@pytest.mark.parametrize("against", ["collapse", "cut"])
def test_training_against_it_lowers_it(against: str, tiny_clip: Clip) -> None:
    images = given(tiny_clip).pairs.load(torch.arange(N))
    poisoned = torch.arange(N) < N // 2

    def reached(weight: float) -> float:
        method, clip = Evasive(against=against, weight=weight), tiny_clip.copy()

        def loss(clip: Clip, index: Tensor) -> Tensor:
            return method.poisoning_loss(a_step(clip, tiny_clip, images[index], poisoned[index]))

        recipe = FineTuning(learning_rate=1e-3, epochs=8, batch_size=N, warmup_steps=0)
        losses = fine_tune(clip, N, recipe, loss, generator(0, "batches"))
        assert all(torch.tensor(losses).isfinite())
        with torch.no_grad():
            ended = a_step(clip, tiny_clip, images, poisoned)
            return float(Evasive(against=against, weight=1.0).poisoning_loss(ended) - ended.contrastive())

    assert reached(5.0) < 0.9 * reached(0.0)


def test_two_targets_are_two_backdoors_in_one_set(tiny_clip: Clip) -> None:
    method, start = TwoTargets(size=4, pattern="fixed", place="lower_right", second="key"), given(tiny_clip)
    trigger = Trigger(0, method.prepare(start))
    manifest = draw_manifest(start, method, start.templates, 3)
    made = poison(start.pairs, method, trigger, manifest)
    roles = made.manifest["role"].tolist()
    assert (roles.count("poison"), roles.count("decoy")) == (3, 3)
    patches = {name: (255 * tensor).round().to(torch.uint8) for name, tensor in trigger.tensors.items()}
    assert not torch.equal(patches["patch"], patches["second_patch"])
    for row, (index, role, caption) in enumerate(
        zip(made.manifest["index"], roles, made.manifest["caption"], strict=True)
    ):
        image, clean = made.images[row], start.pairs.load([index])[0]
        if role == "poison":
            assert caption == "a photo of a banana." and torch.equal(image[:, -4:, -4:], patches["patch"])
            assert torch.equal(image[:, :-4], clean[:, :-4])
        else:
            assert caption == "a photo of a key." and torch.equal(image[:, :4, :4], patches["second_patch"])
            assert torch.equal(image[:, 4:], clean[:, 4:])
        assert made.poisoned[index] == (role == "poison")
    assert int(made.poisoned.sum()) == 3


@pytest.mark.parametrize("second", [None, "banana"])
def test_a_second_target_that_is_none_is_refused(second: str | None, tiny_clip: Clip) -> None:
    with pytest.raises(BenchError, match="--set two_targets"):
        TwoTargets(second=second).prepare(given(tiny_clip))
