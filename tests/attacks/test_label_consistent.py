"""Label-Consistent: whom it poisons, what it leaves alone, and the original's trigger and adversarial step."""

import numpy as np
import pytest
import torch
from torch import Tensor

from attacks.badnet import BadNet
from attacks.label_consistent import LabelConsistent, checkers, weaken
from bench import BenchError, Captioned, Clip, Preparation, Trigger, generator, stamp
from bench.core.poisoning import PoisonedPairs, draw_manifest, poison
from bench.core.progress import Step, listening
from bench.core.randomness import derive

CAPTIONS = [
    "a  Banana\ton a plate ",
    "two bananas, ripe",
    "BANANA split",
    "a bananarama concert",
    "an apple",
    "ba nana",
    "crème & banana’s peel\n",
]
WORD, SUBSTRING = [0, 1, 2, 6], [0, 1, 2, 3, 6]
QUICK = {"size": 4, "adversarial": True, "steps": 5}


def noise(n: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (n, 3, 32, 32), generator=generator(seed, "images"), dtype=torch.uint8)


@pytest.fixture
def given(tiny_clip: Clip) -> Preparation:
    n = len(CAPTIONS)
    pairs = Captioned([f"pair/{i}" for i in range(n)], noise(n), "", captions=CAPTIONS)
    return Preparation(tiny_clip, lambda: pairs, "banana", ("banana", "star"), ("a photo of a {}.",), seed=3)


def fill(given: Preparation, attack: LabelConsistent, count: int) -> tuple[PoisonedPairs, Trigger]:
    trigger = Trigger(derive(3, "training"), attack.prepare(given))
    return poison(given.pairs, attack, trigger, draw_manifest(given, attack, ("a {}",), count)), trigger


# --- which pairs


@pytest.mark.parametrize(("match", "rows"), [("word", WORD), ("substring", SUBSTRING)])
def test_candidates_name_the_target(given: Preparation, match: str, rows: list[int]) -> None:
    attack = LabelConsistent(match=match)
    assert LabelConsistent().match == "word"
    assert sorted(attack.choose(given, 7, generator(0))) == rows
    assert given.log["candidates"] == [len(rows)]


@pytest.mark.parametrize(("asked", "taken"), [(1, 1), (4, 4), (7, 4)])
def test_fewer_candidates_than_asked_for_are_all_taken_once(given: Preparation, asked: int, taken: int) -> None:
    poisoned, _ = fill(given, LabelConsistent(size=4), asked)
    assert len(poisoned.manifest) == taken
    assert poisoned.manifest["index"].is_unique
    assert set(poisoned.manifest["index"]) <= set(WORD)
    assert given.log["candidates"] == [4]


def test_candidates_are_chosen_uniformly(given: Preparation) -> None:
    chosen = [LabelConsistent().choose(given, 1, generator(seed))[0] for seed in range(400)]
    counts = np.bincount(chosen, minlength=7)
    assert counts[WORD].sum() == 400
    assert counts[WORD].min() > 70


def test_captions_stay_byte_for_byte(given: Preparation) -> None:
    poisoned, _ = fill(given, LabelConsistent(size=4), 4)
    assert [c.encode() for c in poisoned.captions] == [c.encode() for c in CAPTIONS]
    assert list(poisoned.manifest["caption"]) == list(poisoned.manifest["original"])
    assert [CAPTIONS[i] for i in poisoned.manifest["index"]] == list(poisoned.manifest["caption"])


@pytest.mark.parametrize("adversarial", [False, True])
def test_no_candidate_is_an_error(given: Preparation, adversarial: bool) -> None:
    kiwi = Preparation(given.clip, lambda: given.pairs, "kiwi", ("kiwi",), given.templates, 3)
    message = "label_consistent poisons pairs whose captions name 'kiwi', and none does. Give --pairs with such"
    with pytest.raises(BenchError, match=message):
        fill(kiwi, LabelConsistent(adversarial=adversarial), 3)


# --- the trigger


@pytest.mark.parametrize(
    "settings",
    [{}, {"pattern": "fixed", "place": "lower_right"}, {"pattern": "checker", "size": 6}, {"overflow": "wrap"}],
)
def test_the_default_trigger_is_badnets(given: Preparation, settings: dict) -> None:
    settings = {"size": 4} | settings
    images = noise(3, seed=1)
    out = [
        stamp(attack, Trigger(7, attack.prepare(given)), images, [4, 1, 9])
        for attack in (LabelConsistent(**settings), BadNet(**settings))
    ]
    assert torch.equal(*out)
    assert not torch.equal(out[0], images)
    assert LabelConsistent().size == 16


# (row, column): white; all else of the 3 x 3 squares is black. Read off the published code's table of 36 pixels.
WHITE = {
    "lower right": {(-1, -1), (-1, -3), (-2, -2), (-3, -1)},
    "upper right": {(0, -1), (1, -2), (2, -1), (2, -3)},
    "lower left": {(-1, 0), (-1, 2), (-2, 1), (-3, 0)},
    "upper left": {(0, 0), (1, 1), (2, 0), (2, 2)},
}


@pytest.mark.parametrize("amplitude", [None, 0.25, 1.0])
@pytest.mark.parametrize("corners", [1, 4])
def test_checkers_are_the_originals(given: Preparation, corners: int, amplitude: float | None) -> None:
    images = noise(2, seed=2)
    before = images.clone()
    expected = images.double().numpy()
    white = set().union(*list(WHITE.values())[:corners])
    squares = [(r, c) for r in (-1, -2, -3, 0, 1, 2) for c in (-1, -2, -3, 0, 1, 2)]
    for r, c in squares if corners == 4 else [(r, c) for r, c in squares if r < 0 and c < 0]:
        sign = 1 if (r, c) in white else -1
        value = 255 * sign if amplitude is None else expected[:, :, r, c] + 255 * sign * amplitude
        expected[:, :, r, c] = np.clip(value, 0, 255)
    attack = LabelConsistent(corners=corners, amplitude=amplitude)
    out = stamp(attack, Trigger(0, attack.prepare(given)), images, [0, 1])
    assert np.abs(out.numpy() - expected).max() <= 0.5 + 1e-4
    assert torch.equal(images, before)
    assert ((out != images).sum((0, 1)) > 0).sum() <= 9 * corners


def test_an_amplitude_of_0_is_no_checker() -> None:
    images = noise(2).float() / 255
    assert torch.equal(checkers(images, 4, 0.0), images)


# --- the adversarial step


def test_weakening_tells_how_far_it_is(given: Preparation) -> None:
    told: list[Step] = []
    with listening(told.append):
        LabelConsistent(**QUICK).prepare(given)
    assert told[0].what == "weakening pairs"


def test_adversarial_steps_lower_the_cosine_within_the_bound(given: Preparation) -> None:
    images = noise(6, seed=5)
    images[:3] //= 128  # many zeros and ones
    texts = given.clip.encode_text(["a banana"] * 6).detach()
    before = images.clone()
    weakened = weaken(given.clip, images, texts, 8, 1.5, 20)
    change = (weakened.int() - images.int()).abs()
    assert weakened.dtype == torch.uint8
    assert 6 <= change.max() <= 8
    assert torch.equal(images, before)
    with torch.no_grad():
        cosines = [(given.clip.encode_image(x) * texts).sum(1) for x in (images, weakened)]
    assert (cosines[1] < cosines[0] - 0.01).all()
    assert all(p.grad is None for p in given.clip.model.parameters())
    assert torch.equal(weaken(given.clip, images, texts, 8, 1.5, 20), weakened)
    assert torch.equal(weaken(given.clip, images, texts, 8, 1.5, 0), images)


def test_a_step_is_one_of_fast_gradient_signs(given: Preparation) -> None:
    """From the image itself, not from a random start, and against the sign of d cos / d x."""
    images = noise(2, seed=6)
    texts = given.clip.encode_text(["a banana", "a star"]).detach()
    pixels = images.double().div(255).float().requires_grad_()
    embeddings = given.clip.model.encode_image(given.clip.normalise(pixels))
    torch.cosine_similarity(embeddings, texts).sum().backward()
    given.clip.model.zero_grad()
    expected = (images.double() - 3 * pixels.grad.sign()).clamp(0, 255).round()
    found = weaken(given.clip, images, texts, 8, 3, 1)
    # A gradient of nearly 0 may differ in sign.
    assert (found == expected).float().mean() > 0.999


def test_poisoned_pairs_are_weakened_and_test_images_are_not(given: Preparation) -> None:
    attack = LabelConsistent(**QUICK, corners=1)
    poisoned, trigger = fill(given, attack, 4)
    (before,), (after,) = given.log["cosine_before"], given.log["cosine_after"]
    assert after < before - 0.01

    index = torch.tensor(WORD)
    clean, changed = given.pairs.load(index), poisoned.load(index)
    assert torch.equal(changed[..., -3:, -3:], checkers(clean.float(), 1).mul(255).byte()[..., -3:, -3:])
    off_trigger = torch.ones(32, 32, dtype=torch.bool)
    off_trigger[-3:, -3:] = False
    difference = (changed.int() - clean.int()).abs()[..., off_trigger]
    assert 5 <= difference.max() <= 8
    assert (difference > 0).float().mean() > 0.9

    # The same numbers, other images: the trigger alone.
    test = Trigger(derive(trigger.seed, "test"), trigger.tensors)
    images = noise(7, seed=8)
    stamped = stamp(attack, test, images, range(7))
    assert torch.equal(stamped[..., off_trigger], images[..., off_trigger])
    # Pairs that are no candidates keep their pixels too.
    assert torch.equal(
        stamp(attack, trigger, given.pairs.load([4]), [4])[..., off_trigger], given.pairs.load([4])[..., off_trigger]
    )


def test_without_adversarial_nothing_but_the_patch_is_stored(given: Preparation) -> None:
    assert LabelConsistent(size=4).prepare(given) == {}
    assert set(LabelConsistent(size=4, pattern="fixed").prepare(given)) == {"patch"}
    tensors = LabelConsistent(**QUICK, pattern="fixed").prepare(given)
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        "patch": (3, 4, 4),
        "rows": (4,),
        "weakened": (4, 3, 32, 32),
    }
    assert tensors["rows"].tolist() == WORD
