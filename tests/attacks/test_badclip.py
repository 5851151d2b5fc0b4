"""BadCLIP: its losses against independent ones, and each bug of the authors' code that is not to be copied."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from torch import Tensor

from attacks import badclip
from attacks.badclip import BadCLIP, mixed_selection, text_loss, triplet_loss
from attacks.optimised_patch import Batch, Objective, first_patch
from attacks.trojvqa import TrojVQA
from bench import BenchError, Captioned, Clip, Preparation, Trigger, class_embeddings, generator, stamp
from bench.core.poisoning import draw_manifest, poison

CLASSES, TEMPLATES = ("banana", "star", "heart"), ("a photo of a {}.",)
QUICK = {"size": 8, "epochs": 4, "batch_size": 16, "patch_learning_rate": 0.05}
PLAIN = QUICK | {"augmented_images": 0.0, "augmented_captions": 0.0}


def noise(n: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (n, 3, 32, 32), generator=generator(seed, "images"), dtype=torch.uint8)


def prepared(clip: Clip, captions: Sequence[str]) -> Preparation:
    """Pairs whose images are noise, and bright where the caption speaks of a banana."""
    images = noise(len(captions))
    bright = torch.tensor(["banana" in caption for caption in captions])
    images[bright] = 255 - images[bright] // 4
    pairs = Captioned([str(i) for i in range(len(captions))], images, "", captions=captions)
    return Preparation(clip, lambda: pairs, "banana", CLASSES, TEMPLATES, seed=3)


@pytest.fixture
def given(tiny_clip: Clip) -> Preparation:
    """48 pairs, of which every fourth names the target."""
    return prepared(tiny_clip, [f"a {CLASSES[0] if i % 4 == 0 else CLASSES[1 + i % 2]} of kind {i}" for i in range(48)])


def unit(n: int, d: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(n, d, generator=generator(seed)), dim=-1)


def test_defaults_are_the_authors() -> None:
    attack = BadCLIP()
    found = (attack.size, attack.place, attack.images, attack.epochs, attack.batch_size, attack.patch_learning_rate)
    assert found == (16, "center", 10_000, 50, 64, 1e-3)
    assert (attack.weight, attack.margin, attack.augmented_images, attack.augmented_captions) == (500, 1, 0.5, 0.1)
    assert (attack.text_negatives, attack.selection, attack.caption_pool) == ("none", "random", 128)
    assert attack.patience is None
    assert attack.text_key == ""


# --- losses


@pytest.mark.parametrize("margin", [0.1, 0.3, 1.0])
def test_triplet_loss_is_torchs(margin: float) -> None:
    anchors, positives, negatives = (unit(20, 8, seed) for seed in range(3))
    expected = F.triplet_margin_loss(anchors, positives, negatives, margin, eps=0)
    assert triplet_loss(anchors, positives, negatives, margin).item() == pytest.approx(expected.item(), abs=1e-6)


def test_triplet_loss_is_0_at_the_target_and_at_right_angles_to_the_own_image() -> None:
    anchors, orthogonal = torch.eye(8)[:4], torch.eye(8)[4:]
    assert triplet_loss(anchors, anchors, orthogonal, 1.0).item() == 0
    assert triplet_loss(anchors, orthogonal, anchors, 1.0).item() == pytest.approx(1 + 2**0.5)


def test_text_loss_is_open_clips() -> None:
    images, texts = unit(12, 8, 0), unit(12, 8, 1)
    expected = ClipLoss()(images, texts, 30.0)
    assert text_loss(images, texts, texts[:0], 30.0).item() == pytest.approx(expected.item(), rel=1e-5)


def test_original_captions_are_more_columns_of_the_images_side() -> None:
    images, texts, others = (unit(6, 8, seed).double() for seed in range(3))
    rows = 30 * images.numpy() @ torch.cat([texts, others]).numpy().T
    columns = 30 * texts.numpy() @ images.numpy().T

    def cross_entropy(logits: np.ndarray) -> float:
        return (np.log(np.exp(logits).sum(1)) - np.diagonal(logits)).mean()

    expected = (cross_entropy(rows) + cross_entropy(columns)) / 2
    assert text_loss(images, texts, others, 30.0).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("text_negatives", ["none", "original"])
def test_the_objective_is_text_loss_plus_500_triplets(tiny_clip: Clip, text_negatives: str) -> None:
    """With one pair of the target nothing is drawn: its caption and its image are everybody's."""
    given = prepared(tiny_clip, ["a star", "a heart", "one ripe banana", "two stars", "three hearts"])
    rows = torch.tensor([4, 0, 3, 1])
    attack = BadCLIP(text_negatives=text_negatives, augmented_captions=0)
    images, triggered = given.pairs.load(rows), unit(4, 32, 0)
    loss = attack.objective(given, rows).loss(Batch(rows, images.float() / 255, triggered))

    with torch.no_grad():
        own, near = tiny_clip.encode_image(images), tiny_clip.encode_image(given.pairs.load([2]))
        wanted = tiny_clip.encode_text(["one ripe banana"] * 4)
        others = tiny_clip.encode_text([given.pairs.captions[i] for i in rows.tolist()])
        scale = tiny_clip.model.logit_scale.exp().item()
    to_text = scale * triggered @ (torch.cat([wanted, others]) if text_negatives == "original" else wanted).T
    text = (
        F.cross_entropy(to_text, torch.arange(4)) + F.cross_entropy(scale * wanted @ triggered.T, torch.arange(4))
    ) / 2
    triplet = F.triplet_margin_loss(triggered, near.expand(4, -1), own, 1.0, eps=0)
    assert loss.item() == pytest.approx((text + 500 * triplet).item(), rel=1e-5)


def test_triggered_negatives_are_those_of_the_batch_shuffled_and_without_a_gradient(tiny_clip: Clip) -> None:
    given = prepared(tiny_clip, ["a star", "a heart", "one ripe banana", "two stars"])
    rows, triggered = torch.tensor([0, 1, 3]), unit(3, 32, 0).requires_grad_()
    images = given.pairs.load(rows).float() / 255

    def loss(weight: float) -> Tensor:
        attack = BadCLIP(image_negatives="triggered", augmented_captions=0, weight=weight)
        return attack.objective(given, rows).loss(Batch(rows, images, triggered))

    triplets = loss(1) - loss(0)
    near = tiny_clip.encode_image(given.pairs.load([2])).detach().expand(3, -1)
    (found,) = torch.autograd.grad(triplets, triggered)
    expected = [_triplets(triggered.detach().numpy(), near.numpy(), list(order)) for order in permutations(range(3))]
    matching = [slope for value, slope in expected if value == pytest.approx(triplets.item(), rel=1e-4)]
    assert any(found.numpy() == pytest.approx(slope, abs=1e-3) for slope in matching)


def _triplets(anchors: np.ndarray, near: np.ndarray, order: list[int]) -> tuple[float, np.ndarray]:
    """Mean triplet loss, margin 1, against the anchors in another order; and its slope where those stand still."""
    to_near, to_others = anchors - near, anchors - anchors[order]
    far, away = (np.linalg.norm(side, axis=1, keepdims=True) for side in (to_near, to_others))
    slope = to_near / far - np.divide(to_others, away, out=np.zeros_like(to_others), where=away > 0)
    active = far - away + 1 > 0
    return float((far - away + 1)[active].sum() / 3), slope * active / 3


# --- the optimisation


def test_optimising_comes_closer_to_target_images_than_random_patches(given: Preparation) -> None:
    """Before any poisoning, and on other images than those of the optimisation."""
    attack, other = BadCLIP(**QUICK | {"epochs": 20}), noise(64, seed=9)
    with torch.no_grad():
        targets = given.clip.encode_image(given.pairs.load(torch.arange(0, 48, 4)))
    mean = F.normalize(targets.mean(0), dim=0)

    def cosine(patch: Tensor) -> float:
        stamped = stamp(attack, Trigger(0, {"patch": patch}), other, range(64))
        with torch.no_grad():
            return (given.clip.encode_image(stamped) @ mean).mean().item()

    patch = attack.prepare(given)["patch"]
    randoms = [first_patch(8, generator(i)) for i in range(5)] + [first_patch(8, given.rng("patch", "start"))]
    assert cosine(patch) > max(map(cosine, randoms))
    assert given.log["patch_images"] == [36]
    assert given.log["patch_targets"] == [12]
    torch.testing.assert_close(attack.objective(given, torch.arange(1, 4)).aim, mean)
    assert given.log["patch_loss"][-1] < given.log["patch_loss"][0]
    assert given.log["patch_cosine"][-1] > given.log["patch_cosine"][0]


def test_the_gradient_reaches_the_patch_alone(given: Preparation) -> None:
    model, before = given.clip.model, given.clip.fingerprint()
    first, again = (BadCLIP(**QUICK).prepare(given)["patch"] for _ in range(2))
    assert given.clip.fingerprint() == before
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(first, again)
    assert first.min() >= 0
    assert first.max() <= 1


class Watched(BadCLIP):
    """Keeps the batches that the loop gives to the loss."""

    def objective(self, given: Preparation, rows: Tensor) -> Objective:
        inner, seen = super().objective(given, rows), given.log.setdefault("batches", [])

        def loss(batch: Batch) -> Tensor:
            seen.append(batch)
            return inner.loss(batch)

        return Objective(loss, inner.aim)


def test_negatives_are_of_the_same_images_without_the_patch(
    given: Preparation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The authors paste in place, so theirs are of triggered images, and shuffle them against the anchors."""
    calls: list[tuple[Tensor, ...]] = []

    def watched(anchors: Tensor, positives: Tensor, negatives: Tensor, margin: float) -> Tensor:
        calls.append((anchors.detach(), positives, negatives))
        return triplet_loss(anchors, positives, negatives, margin)

    monkeypatch.setattr(badclip, "triplet_loss", watched)
    Watched(**PLAIN).prepare(given)
    targets = given.clip.encode_image(given.pairs.load(torch.arange(0, 48, 4)))
    assert len(calls) == 8
    for (anchors, positives, negatives), batch in zip(calls, given.log["batches"], strict=True):
        untouched = given.clip.encode_image(given.pairs.load(batch.index))
        torch.testing.assert_close(negatives, untouched, atol=1e-5, rtol=0)
        assert not negatives.requires_grad
        assert (anchors - untouched).abs().max() > 1e-3
        assert torch.equal(anchors, batch.triggered.detach())
        assert ((positives[:, None] - targets).norm(dim=-1).min(1).values < 1e-4).all()


@pytest.mark.parametrize(("probability", "share"), [(0.0, 0.0), (1.0, 1.0), (0.5, 0.5)])
def test_whole_batches_are_augmented_before_the_patch(given: Preparation, probability: float, share: float) -> None:
    state = torch.get_rng_state()
    Watched(**PLAIN | {"epochs": 10, "augmented_images": probability}).prepare(given)
    assert torch.equal(torch.get_rng_state(), state)
    batches = given.log["batches"]
    changed = [bool((b.images * 255 - given.pairs.load(b.index)).abs().max() > 0.5) for b in batches]
    assert np.mean(changed) == pytest.approx(share, abs=0.3 if 0 < share < 1 else 0)


@pytest.mark.parametrize(("probability", "low", "high"), [(0.0, 0, 0), (0.5, 50, 140), (1.0, 192, 192)])
def test_edited_captions_are_the_ones_embedded(
    given: Preparation, monkeypatch: pytest.MonkeyPatch, probability: float, low: int, high: int
) -> None:
    """The authors' text augmentation swaps an unused mask, and changes nothing."""
    seen: list[str] = []
    encode = given.clip.encode_text
    monkeypatch.setattr(given.clip, "encode_text", lambda texts: (seen.extend(texts), encode(texts))[1])
    BadCLIP(**PLAIN | {"epochs": 6, "augmented_captions": probability}).prepare(given)
    natural = {c for c in given.pairs.captions if "banana" in c}
    assert len(seen) == 6 * 2 * 16
    # EDA drops the numbers, so that an edited caption is none of the natural ones.
    assert low <= sum(text not in natural for text in seen) <= high


def test_an_image_keeps_its_caption_of_the_target(given: Preparation, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    encode = given.clip.encode_text
    monkeypatch.setattr(given.clip, "encode_text", lambda texts: (seen.extend(texts), encode(texts))[1])
    Watched(**PLAIN).prepare(given)
    numbers = torch.cat([batch.index for batch in given.log["batches"]]).tolist()
    captions = {number: {text for n, text in zip(numbers, seen, strict=True) if n == number} for number in numbers}
    assert all(len(texts) == 1 for texts in captions.values())
    assert len(set().union(*captions.values())) > 6


def test_no_target_in_the_pairs_is_an_error(tiny_clip: Clip) -> None:
    given = prepared(tiny_clip, ["a star", "a heart"])
    message = "no caption names 'banana'. Give --pairs with such captions, or another --target"
    with pytest.raises(BenchError, match=message):
        BadCLIP().prepare(given)
    with pytest.raises(BenchError, match=message):
        BadCLIP().captions(["a star"], ("a {}",), given, generator(0))


# --- poisoning


@pytest.mark.parametrize(("pool", "size"), [(128, 12), (5, 5), (1, 1)])
def test_poisoned_captions_come_from_a_pool_of_natural_ones(given: Preparation, pool: int, size: int) -> None:
    captions = BadCLIP(caption_pool=pool).captions([""] * 500, ("a {}",), given, generator(0))
    assert len(captions) == 500
    assert len(set(captions)) == size
    assert all("banana" in caption and caption in given.pairs.captions for caption in captions)
    assert given.log["caption_pool"] == [size]


def test_the_pool_holds_different_captions(tiny_clip: Clip) -> None:
    given = prepared(tiny_clip, ["a banana"] * 50 + ["two bananas", "a star"])
    captions = BadCLIP(caption_pool=2).captions([""] * 300, ("a {}",), given, generator(0))
    assert {c: 100 < captions.count(c) < 200 for c in set(captions)} == {"a banana": True, "two bananas": True}


@pytest.mark.parametrize("selection", ["random", "mixed"])
def test_poisoned_pairs_are_stamped_in_rgb_without_loss(given: Preparation, selection: str) -> None:
    """The authors swap red and blue, and store JPEG."""
    attack = BadCLIP(size=8, selection=selection)
    trigger = Trigger(0, {"patch": torch.rand(3, 8, 8, generator=generator(1))})
    poisoned = poison(given.pairs, attack, trigger, draw_manifest(given, attack, ("a {}",), 20))
    index = torch.tensor(poisoned.manifest["index"].to_numpy())
    assert len(index.unique()) == 20
    expected = given.pairs.load(index).numpy()
    expected[:, :, 12:20, 12:20] = np.rint(255 * trigger.tensors["patch"].numpy())
    np.testing.assert_array_equal(poisoned.load(index).numpy(), expected)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n", "count"), [(60, 30), (60, 31), (60, 2), (60, 60), (6, 6)])
def test_mixed_selection_is_a_third_each(n: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    similarities = np.round(rng.normal(size=(n, 4)), 6)
    target, gap = similarities[:, 0], similarities.max(1) - similarities[:, 0]
    chosen = mixed_selection(torch.tensor(target), torch.tensor(gap), count, generator(seed))
    third = count // 3
    boundary = [i for i in np.argsort(gap) if gap[i] > 0][:third]
    far = [i for i in np.argsort(target) if i not in boundary][:third]
    assert len(chosen) == len(set(chosen)) == count
    assert chosen[: len(boundary)] == boundary
    assert chosen[len(boundary) : len(boundary) + third] == far
    if count == 30:
        assert chosen[20:] != mixed_selection(torch.tensor(target), torch.tensor(gap), count, generator(9))[20:]


def test_mixed_selection_has_no_boundary_where_all_is_the_target() -> None:
    chosen = mixed_selection(torch.arange(9.0), torch.zeros(9), 6, generator(0))
    assert chosen[:2] == [0, 1]
    assert len(set(chosen)) == 6


def test_mixed_selection_asks_the_clean_model(given: Preparation) -> None:
    texts = class_embeddings(given.clip, CLASSES, TEMPLATES)
    with torch.no_grad():
        cosines = (given.clip.encode_image(given.pairs.load(torch.arange(48))) @ texts.T).numpy()
    target = int(cosines.mean(0).argmin())
    gap = cosines.max(1) - cosines[:, target]
    attack = BadCLIP(selection="mixed", batch_size=7)
    chosen = attack.choose(replace(given, target=CLASSES[target]), 9, generator(0))
    boundary = [i for i in np.argsort(gap) if gap[i] > 0][:3]
    assert len(boundary) == 3
    assert chosen[:3] == boundary
    assert chosen[3:6] == [i for i in np.argsort(cosines[:, target]) if i not in boundary][:3]
    assert BadCLIP().choose(given, 9, generator(0)) == torch.randperm(48, generator=generator(0))[:9].tolist()


def test_the_other_optimised_patch_is_another(given: Preparation) -> None:
    assert not torch.equal(BadCLIP(**QUICK).prepare(given)["patch"], TrojVQA(**QUICK).prepare(given)["patch"])
