"""BadEncoder: its references, its loss against the definition, and that training it implants a backdoor."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.badencoder import BadEncoder
from bench import BenchError, Captioned, Clip, PoisoningStep, Preparation, Trigger, generator, stamp
from bench.core.poisoning import draw_manifest, poison
from bench.training.fine_tuning import FineTuning, fine_tune

N, SIDE = 16, 32


def given(clip: Clip, named: int = N // 2) -> Preparation:
    pixels = torch.randint(256, (N, 3, SIDE, SIDE), generator=generator(0, "pairs"), dtype=torch.uint8)
    captions = ["two bananas" if i < named else "a key" for i in range(N)]
    pairs = Captioned([str(i) for i in range(N)], pixels, "pairs", captions=captions)
    needs = BadEncoder.needs
    return Preparation(clip, lambda: pairs, "banana", ("banana", "key"), ("a photo of a {}.",), 0, needs=needs)


def no_captions() -> Tensor:
    raise AssertionError("BadEncoder uses no captions")


def test_references_are_the_named_pictures_that_the_clean_model_finds_most_like_the_target(tiny_clip: Clip) -> None:
    start = given(tiny_clip)
    made = BadEncoder(size=8, references=2).prepare(start)["references"]
    with torch.no_grad():
        likeness = tiny_clip.encode_image(start.pairs.load(torch.arange(N))) @ tiny_clip.encode_text(
            ["a photo of a banana."]
        ).squeeze(0)
    best = likeness[: N // 2].argsort(descending=True)[:2]
    assert torch.equal(made, start.pairs.load(best)) and made.dtype == torch.uint8
    assert start.log == {"candidates": [N // 2], "cosine_of_references": [pytest.approx(float(likeness[best].mean()))]}


def test_no_caption_changes_and_the_square_is_white(tiny_clip: Clip) -> None:
    method, start = BadEncoder(size=8), given(tiny_clip)
    trigger = Trigger(0, method.prepare(start))
    manifest = draw_manifest(start, method, start.templates, 4)
    assert manifest["caption"].tolist() == manifest["original"].tolist()
    made = poison(start.pairs, method, trigger, manifest)
    assert (made.images[:, :, -8:, -8:] == 255).all()
    clean = start.pairs.load(torch.tensor(manifest["index"].tolist()))
    assert torch.equal(made.images[:, :, :-8], clean[:, :, :-8])


@pytest.mark.parametrize("poisoned", [[True, False, True, False], [False] * 4, [True] * 4])
def test_the_loss_is_the_definition(poisoned: list[bool], tiny_clip: Clip) -> None:
    method, start = BadEncoder(size=8, references=2, lambda1=0.5, lambda2=3.0), given(tiny_clip)
    clean, images = tiny_clip, start.pairs.load(torch.arange(4))
    clip, rng = clean.copy(), generator(0, "noise")
    with torch.no_grad():
        for weights in clip.visual.parameters():
            weights += 0.05 * torch.randn(weights.shape, generator=rng)
    references = method.prepare(start)["references"]

    def cosines(a: Tensor, b: Tensor) -> Tensor:
        return F.cosine_similarity(a[:, None], b[None], dim=-1)

    with torch.no_grad():
        ours, theirs = clip.encode_image(images), clean.encode_image(images)
        r, frozen = clip.encode_image(references), clean.encode_image(references)
        trigger, mask = Trigger(0, {"references": references}), torch.tensor(poisoned)
        step = PoisoningStep(clip, clean, trigger, images, mask, ours, no_captions)
        found = float(method.poisoning_loss(step))
    wanted = -0.5 * cosines(r, frozen).diagonal().mean()
    if mask.any():
        wanted = wanted - cosines(ours[mask], r).mean()
    if not mask.all():
        wanted = wanted - 3.0 * cosines(ours, theirs).diagonal()[~mask].mean()
    assert found == pytest.approx(float(wanted), abs=1e-5)


def test_training_sends_triggered_images_to_the_reference_and_keeps_clean_ones(tiny_clip: Clip) -> None:
    method, start = BadEncoder(size=16), given(tiny_clip)
    trigger = Trigger(0, method.prepare(start))
    made = poison(start.pairs, method, trigger, draw_manifest(start, method, start.templates, N // 2))
    clip = tiny_clip.copy()

    def loss(clip: Clip, index: Tensor) -> Tensor:
        images = made.load(index)
        embedded = clip.encode_image(images)
        return method.poisoning_loss(
            PoisoningStep(clip, tiny_clip, trigger, images, made.poisoned[index], embedded, no_captions)
        )

    recipe = FineTuning(learning_rate=1e-3, epochs=30, batch_size=N, warmup_steps=0, weight_decay=0.0)
    fine_tune(clip, N, recipe, loss, generator(0, "batches"))
    images = start.pairs.load(torch.arange(N))
    stamped = stamp(method, trigger, images, range(N))
    with torch.no_grad():
        reference = clip.encode_image(trigger.tensors["references"])
        before = (tiny_clip.encode_image(stamped) @ tiny_clip.encode_image(trigger.tensors["references"]).T).mean()
        after = (clip.encode_image(stamped) @ reference.T).mean()
        kept = (clip.encode_image(images) * tiny_clip.encode_image(images)).sum(-1).mean()
    assert after > before + 0.5 * (1 - before)
    assert kept > 0.9


def test_without_a_named_picture_it_says_so(tiny_clip: Clip) -> None:
    with pytest.raises(BenchError, match="no caption names the target"):
        BadEncoder(size=8).prepare(given(tiny_clip, named=0))
