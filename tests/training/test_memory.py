"""What is done when memory runs out, and what spares it: the mathematics stays the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from open_clip import transformer
from torch import Tensor
from tuning import PLAIN, SMALL, fit, make_data, make_images, prompts_of

from bench import BenchError, Clip, Victim, generator
from bench.matrix.cards import Meter
from bench.training.fine_tuning import FineTuning, contrastive_loss, fine_tune
from defenses.rvpt import RVPT
from defenses.tower import Tower, within_memory
from defenses.vpt import VPT


def out_of_memory_above(images: int, monkeypatch: pytest.MonkeyPatch, prompted: bool) -> list[int]:
    """A tower that takes no more images at a time, with prompts or without; returns the sizes it was given."""
    encode, sizes = Tower.encode, []

    def limited(self: Tower, hidden: Tensor, prompts: Tensor | None = None) -> Any:
        if (prompts is not None) == prompted:
            sizes.append(len(hidden))
            if len(hidden) > images:
                raise torch.OutOfMemoryError("injected")
        return encode(self, hidden, prompts)

    monkeypatch.setattr(Tower, "encode", limited)
    return sizes


@pytest.mark.parametrize("method", [VPT, RVPT])
@pytest.mark.parametrize("views", [None, 1])
def test_prompts_are_tuned_in_smaller_parts_to_the_same_end(
    method: Any, views: int | None, tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of 12: 12 fail, 6 fail, 3 fit; from then on three at a time."""
    recipe = method(**SMALL | {"batch_size": 12}, views=views)
    expected, whole = fit(recipe, tiny_clip)
    sizes = out_of_memory_above(4, monkeypatch, prompted=True)
    with pytest.warns(UserWarning, match="out of memory: going on with 3 images at a time"):
        seen, data = fit(recipe, tiny_clip)
    assert sizes == [12, 6] + [3] * 12
    torch.testing.assert_close(seen.prompts, expected.prompts, atol=1e-6, rtol=1e-5)
    assert data.log.pop("images_at_once") == [3]
    assert data.log.keys() == whole.log.keys()
    for name, values in whole.log.items():
        assert data.log[name] == pytest.approx(values, rel=1e-5)


def test_unequal_parts_count_by_their_images(tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """10 images as 5 and 5, then 3, 3, 3, 1."""
    recipe, data = RVPT(**PLAIN | {"batch_size": 10, "shots": 4}), make_data(make_images().subset(torch.arange(10)))
    expected = prompts_of(recipe, tiny_clip, data)
    sizes = out_of_memory_above(3, monkeypatch, prompted=True)
    with pytest.warns(UserWarning, match="with 3 images"):
        seen = prompts_of(recipe, tiny_clip, data)
    assert sizes == [10, 5] + [3, 3, 3, 1] * 3
    torch.testing.assert_close(seen, expected, atol=1e-6, rtol=1e-5)


def test_frozen_features_come_in_smaller_parts(tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RVPT(**SMALL | {"batch_size": 12}, views=1)
    expected = prompts_of(recipe, tiny_clip)
    sizes = out_of_memory_above(3, monkeypatch, prompted=False)
    with pytest.warns(UserWarning, match="out of memory: going on with 3 images"):
        seen = prompts_of(recipe, tiny_clip)
    assert sizes == [12, 6, 3, 3, 3, 3]
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-4)


def test_not_even_one_image_is_an_error() -> None:
    def work(_: int) -> None:
        raise torch.OutOfMemoryError("injected")

    with (
        pytest.warns(UserWarning, match="with 1 images"),
        pytest.raises(BenchError, match=r"out of memory with a single image\. Use a smaller model, precision=bf16"),
    ):
        within_memory(work, 5)


def test_other_errors_are_not_memory() -> None:
    with pytest.raises(ZeroDivisionError):
        within_memory(lambda n: n // 0, 5)


@pytest.mark.parametrize("flags", [(True, True), (True, False), (False, False)])
def test_a_fit_leaves_the_victim_s_weights_as_trainable_as_they_were(flags: tuple[bool, bool], tiny_clip: Clip) -> None:
    tiny_clip.model.requires_grad_(flags[0])
    tiny_clip.visual.proj.requires_grad_(flags[1])
    before = [p.requires_grad for p in tiny_clip.model.parameters()]
    fit(RVPT(**SMALL), tiny_clip)
    assert [p.requires_grad for p in tiny_clip.model.parameters()] == before

    class Broken(VPT):
        def _rate(self, epoch: int) -> float:
            raise ValueError

    with pytest.raises(ValueError):
        Broken(**SMALL).fit(Victim(tiny_clip), make_data())
    assert [p.requires_grad for p in tiny_clip.model.parameters()] == before


def test_half_precision_scales_its_gradients(tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients that leave half precision's range skip a step, which is counted; the others are unscaled again."""
    expected = prompts_of(RVPT(**PLAIN), tiny_clip)
    seen, data = fit(RVPT(**PLAIN, precision="fp16"), tiny_clip)
    skipped = len(data.log.get("skipped_overflow", []))
    assert skipped == 0
    torch.testing.assert_close(seen.prompts, expected, atol=2e-2, rtol=0)
    loss = RVPT.loss

    def explode(self: RVPT, prompted: Tensor, frozen: Tensor) -> Any:
        value, logged = loss(self, prompted, frozen)
        return value * 1e36, logged

    monkeypatch.setattr(RVPT, "loss", explode)
    seen, data = fit(RVPT(**PLAIN, precision="fp16"), tiny_clip)
    assert data.log["skipped_overflow"] == [0, 0, 1, 1, 2, 2]
    assert seen.prompts is not None
    assert torch.equal(seen.prompts, prompts_of(RVPT(**PLAIN | {"epochs": 0}), tiny_clip))


# --- contrastive fine-tuning


def tune(clip: Clip, **settings: Any) -> list[float]:
    images = torch.randint(256, (8, 3, 32, 32), generator=generator(0, "images"), dtype=torch.uint8)
    tokens = clip.tokenize([f"a photo of {word}" for word in "abcdefgh"])

    def loss(clip: Clip, index: Tensor) -> Tensor:
        return contrastive_loss(clip.encode_image(images[index]), clip.encode_text(tokens[index]), clip.scale)

    recipe = FineTuning(learning_rate=1e-3, batch_size=4, epochs=2, warmup_steps=0, **settings)
    return fine_tune(clip, 8, recipe, loss, generator(0))


def test_checkpointing_recomputes_and_changes_no_gradient(tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def count(checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: calls.append(1) or checkpoint(*args, **kwargs)

    monkeypatch.setattr(transformer, "checkpoint", count(torch.utils.checkpoint.checkpoint))
    plain, spared = tiny_clip, tiny_clip.copy()
    first, second = tune(plain), tune(spared, gradient_checkpointing=True)
    assert len(calls) == 4 * (4 + 2), "four steps, four blocks of images and two of texts"
    assert second == pytest.approx(first, rel=1e-6)
    for (name, a), b in zip(plain.model.named_parameters(), spared.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-7, rtol=1e-5, msg=name)
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5, msg=name)
    assert not spared.visual.transformer.grad_checkpointing
    assert not spared.model.transformer.grad_checkpointing


def test_a_contrastive_batch_that_does_not_fit_is_an_error(tiny_clip: Clip) -> None:
    def loss(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("injected")

    message = r"out of memory with batch_size = 4\. Set gradient_checkpointing=true, .* or a smaller batch_size"
    with pytest.raises(BenchError, match=message):
        fine_tune(tiny_clip, 8, FineTuning(batch_size=4), loss, generator(0))


def test_a_worker_may_measure_a_gpu_before_it_has_used_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "init", lambda: calls.append("init"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: calls.append(str(device)))
    Meter("cuda:1")
    assert calls == ["init", "cuda:1"]
