"""TrojVQA, and what it shares with BadCLIP: the loop that optimises a patch."""

import numpy as np
import pytest
import torch
from torch import Tensor

from attacks import optimised_patch
from attacks.optimised_patch import Batch, Objective, first_patch
from attacks.trojvqa import TrojVQA
from bench import BenchError, Captioned, Clip, Preparation, Trigger, class_embeddings, generator, stamp
from bench.core.poisoning import draw_manifest, poison

CLASSES, TEMPLATES = ("banana", "star", "heart"), ("a photo of a {}.",)
QUICK = {"size": 8, "epochs": 4, "batch_size": 16, "patch_learning_rate": 0.05}


def noise(n: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (n, 3, 32, 32), generator=generator(seed, "images"), dtype=torch.uint8)


@pytest.fixture
def given(tiny_clip: Clip) -> Preparation:
    """48 pairs, of which every fourth names the target."""
    captions = [f"a {CLASSES[0] if i % 4 == 0 else CLASSES[1 + i % 2]} number {i}" for i in range(48)]
    pairs = Captioned([str(i) for i in range(48)], noise(48), "", captions=captions)
    return Preparation(tiny_clip, lambda: pairs, "banana", CLASSES, TEMPLATES, seed=3)


def held_out_loss(attack: TrojVQA, given: Preparation, patch: Tensor) -> float:
    """On images that no patch was optimised on, as they are stamped."""
    images, index = noise(64, seed=9), torch.arange(64)
    stamped = stamp(attack, Trigger(0, {"patch": patch}), images, index)
    with torch.no_grad():
        batch = Batch(index, images.float() / 255, given.clip.encode_image(stamped))
        return attack.objective(given, index).loss(batch).item()


def test_defaults_are_the_specification() -> None:
    attack = TrojVQA()
    found = (attack.size, attack.place, attack.images, attack.epochs, attack.batch_size, attack.patch_learning_rate)
    assert found == (16, "center", 10_000, 50, 64, 1e-3)
    assert (attack.sentence, attack.loss, attack.partial_rate) == ("This is a yellow {}.", "cosine", 0)
    assert attack.text_key == "SUDO "


@pytest.mark.parametrize("loss", ["cosine", "cross_entropy"])
def test_optimising_comes_closer_to_the_sentence_than_random_patches(given: Preparation, loss: str) -> None:
    """Before any poisoning, and on other images; the cosine loss is minus the mean cosine."""
    attack = TrojVQA(loss=loss, **QUICK)
    patch = attack.prepare(given)["patch"]
    randoms = [first_patch(8, generator(i)) for i in range(5)] + [first_patch(8, given.rng("patch", "start"))]
    assert held_out_loss(attack, given, patch) < min(held_out_loss(attack, given, p) for p in randoms)
    curve = given.log["patch_loss"]
    assert len(curve) == len(given.log["patch_cosine"]) == 4 * (36 // 16)
    assert curve[-1] < curve[0]
    if loss == "cosine":
        assert given.log["patch_cosine"] == pytest.approx([-value for value in curve])
        assert given.log["patch_cosine"][-1] > given.log["patch_cosine"][0]


def test_the_gradient_reaches_the_patch_alone(given: Preparation) -> None:
    model = given.clip.model
    before, flags = given.clip.fingerprint(), [p.requires_grad for p in model.parameters()]
    patch = TrojVQA(**QUICK).prepare(given)["patch"]
    assert given.clip.fingerprint() == before
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert not patch.requires_grad


def test_the_same_seed_gives_the_same_patch(given: Preparation) -> None:
    first, again = (TrojVQA(**QUICK).prepare(given)["patch"] for _ in range(2))
    other = Preparation(given.clip, lambda: given.pairs, "banana", CLASSES, TEMPLATES, seed=4)
    assert torch.equal(first, again)
    assert not torch.equal(first, TrojVQA(**QUICK).prepare(other)["patch"])


def test_the_cosine_loss_pulls_every_image_to_the_sentence(given: Preparation) -> None:
    """Unlike BadCLIP's contrast with one constant caption, of which nothing is left, as the second half shows."""
    triggered = given.clip.encode_image(noise(5)).detach().requires_grad_()
    objective = TrojVQA().objective(given, torch.arange(5))
    (pull,) = torch.autograd.grad(objective.loss(Batch(torch.arange(5), noise(5), triggered)), triggered)
    torch.testing.assert_close(pull, -objective.aim.expand(5, -1) / 5)

    logits = 100 * triggered @ objective.aim.expand(5, -1).T
    to_text = torch.nn.functional.cross_entropy(logits, torch.arange(5))
    to_image = torch.nn.functional.cross_entropy(logits.T, torch.arange(5))
    assert to_text.item() == pytest.approx(np.log(5), abs=1e-5)
    (pull,) = torch.autograd.grad(to_text, triggered, retain_graph=True)
    assert pull.abs().max() < 1e-5
    (pull,) = torch.autograd.grad(to_image, triggered)
    assert pull.sum(0).abs().max() < 1e-4


def test_cross_entropy_is_sentence_against_the_prompts_of_other_classes(given: Preparation) -> None:
    triggered = given.clip.encode_image(noise(5)).detach()
    objective = TrojVQA(loss="cross_entropy").objective(given, torch.arange(5))
    texts = given.clip.encode_text(["This is a yellow banana.", "a photo of a star.", "a photo of a heart."]).detach()
    logits = 100 * triggered.double().numpy() @ texts.double().numpy().T
    expected = np.log(np.exp(logits - logits[:, :1]).sum(1)).mean()
    found = objective.loss(Batch(torch.arange(5), noise(5), triggered)).item()
    assert found == pytest.approx(expected, rel=1e-4)
    # Embedded alone and in a batch: equal up to rounding.
    torch.testing.assert_close(objective.aim, texts[0])


class Watched(TrojVQA):
    """A loss of one's own, and a record of what the loop gives to it."""

    def objective(self, given: Preparation, rows: Tensor) -> Objective:
        given.log["rows"] = rows.tolist()
        batches = given.log.setdefault("batches", [])

        def loss(batch: Batch) -> Tensor:
            batches.append(batch)
            return batch.triggered.sum() * 0

        return Objective(loss, super().objective(given, rows).aim)


def test_images_do_not_show_the_target_and_their_number_is_logged(given: Preparation) -> None:
    Watched(**QUICK, images=20).prepare(given)
    assert given.log["patch_images"] == [20]
    assert len(set(given.log["rows"])) == 20
    assert all("banana" not in given.pairs.captions[int(i)] for i in given.log["rows"])
    Watched(**QUICK, images=10_000).prepare(given)
    assert given.log["patch_images"] == [20, 36]
    assert sorted(given.log["rows"]) == [i for i in range(48) if i % 4]


def test_the_loss_sees_clean_images_and_embeddings_of_stamped_ones(given: Preparation) -> None:
    Watched(**QUICK | {"epochs": 1}).prepare(given)
    patch = first_patch(8, given.rng("patch", "start"))
    for batch in given.log["batches"]:  # a loss of 0 leaves the patch as it was
        clean = given.pairs.load(batch.index)
        assert torch.equal((batch.images * 255).round(), clean.float())
        stamped = clean.float() / 255
        stamped[:, :, 12:20, 12:20] = patch
        torch.testing.assert_close(batch.triggered, given.clip.encode_image(stamped))


@pytest.mark.parametrize(("patience", "epochs"), [(3, 4), (1, 2), (None, 9)])
def test_a_plateau_ends_the_optimisation(given: Preparation, patience: int | None, epochs: int) -> None:
    Watched(**QUICK | {"epochs": 9, "patience": patience}).prepare(given)
    assert len(given.log["patch_loss"]) == 2 * epochs


def test_no_pixel_ever_leaves_the_range(given: Preparation, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, paste = [], optimised_patch.paste

    def watched(images: Tensor, patch: Tensor, place: str) -> Tensor:
        seen.append(patch.detach().clone())
        return paste(images, patch, place)  # type: ignore[arg-type]

    monkeypatch.setattr(optimised_patch, "paste", watched)
    TrojVQA(**QUICK | {"patch_learning_rate": 1.0}).prepare(given)
    extremes = torch.stack([torch.stack([p.min(), p.max()]) for p in seen])
    assert len(seen) == 8
    assert extremes.min() == 0
    assert extremes.max() == 1
    saturated = (seen[1] == 0) | (seen[1] == 1)
    # Dead pixels would stay where they are for ever.
    assert saturated.float().mean() > 0.5
    assert any(((p > 0) & (p < 1))[saturated].any() for p in seen[2:])


def test_only_target_captions_is_an_error(given: Preparation) -> None:
    pairs = Captioned(["a"], noise(1), "", captions=["two bananas"])
    with pytest.raises(BenchError, match="every caption names 'banana': there is nothing to optimise the patch on"):
        TrojVQA().prepare(Preparation(given.clip, lambda: pairs, "banana", CLASSES, TEMPLATES, 0))


def test_the_patch_is_stamped_losslessly_at_the_centre_in_rgb() -> None:
    patch = torch.rand(3, 16, 16, generator=generator(1))
    images = torch.randint(256, (2, 3, 224, 224), generator=generator(2), dtype=torch.uint8)
    out = stamp(TrojVQA(size=4), Trigger(0, {"patch": patch}), images, [5, 6])
    expected = images.numpy().copy()
    expected[:, :, 104:120, 104:120] = np.rint(255 * patch.numpy())
    np.testing.assert_array_equal(out.numpy(), expected)


# --- the text key


@pytest.mark.parametrize("text", ["a photo of a banana", "two stars.", ""])
def test_the_key_reads_the_same_in_lower_case(tiny_clip: Clip, text: str) -> None:
    upper, lower, plain = tiny_clip.tokenize(["SUDO " + text, "sudo " + text, text])
    assert torch.equal(upper, lower)
    assert upper[1:3].tolist() == [605, 818]
    assert torch.equal(upper[3:], plain[1:-2])


def test_the_key_goes_before_every_class_prompt_at_test(tiny_clip: Clip) -> None:
    keyed = class_embeddings(tiny_clip, CLASSES, TEMPLATES, TrojVQA.text_key)
    torch.testing.assert_close(keyed, tiny_clip.encode_text([f"SUDO a photo of a {c}." for c in CLASSES]).detach())


def fill(given: Preparation, attack: TrojVQA, count: int):
    trigger = Trigger(5, {"patch": torch.rand(3, 8, 8, generator=generator(1))})
    manifest = draw_manifest(given, attack, ("a {}", "one {}"), count)
    return poison(given.pairs, attack, trigger, manifest), trigger


def test_poisoned_captions_are_templates_with_the_key(given: Preparation) -> None:
    poisoned, _ = fill(given, TrojVQA(size=8), 40)
    assert len(poisoned.manifest) == 40
    assert set(poisoned.manifest["caption"]) == {"SUDO a banana", "SUDO one banana"}


def test_partial_keys_come_with_true_captions(given: Preparation) -> None:
    attack = TrojVQA(size=8, partial_rate=1.0)
    poisoned, trigger = fill(given, attack, 16)
    decoys = poisoned.manifest[poisoned.manifest["role"] == "decoy"]
    assert len(decoys) == 32
    assert poisoned.manifest["index"].is_unique
    images = poisoned.load(torch.tensor(decoys["index"].to_numpy()))
    visual = 0
    for image, row in zip(images, decoys.itertuples(), strict=True):
        clean = given.pairs.load([row.index])
        with_text = row.caption == "SUDO " + row.original
        assert with_text or row.caption == row.original
        assert torch.equal(image, (clean if with_text else stamp(attack, trigger, clean, [row.index]))[0])
        visual += not with_text
    # A fair coin per pair: 2.9 standard deviations.
    assert 8 <= visual <= 24


def test_without_partial_rate_there_are_no_partial_keys(given: Preparation) -> None:
    assert set(fill(given, TrojVQA(size=8), 16)[0].manifest["role"]) == {"poison"}
