"""Poisoned sets: exact counts, nothing twice, and a manifest that rebuilds them; and the seeds underneath."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import stats

from attacks.badnet import BadNet
from attacks.blended import Blended
from attacks.wanet import WaNet
from bench import Attack, BenchError, Captioned, Clip, Preparation, Trigger, generator, mentions, stamp
from bench.core.poisoning import PoisonedPairs, draw_manifest, poison
from bench.core.randomness import derive, seeded

TEMPLATES = ("a photo of a {}.", "a drawing of a {}.", "the {} in a video game.")
FILLED = {template.format("banana") for template in TEMPLATES}
POOL, SIDE = 300, 16

ATTACKS: dict[str, Attack] = {
    "badnet": BadNet(size=4),
    "blended": Blended(),
    "wanet": WaNet(grid=4, strength=4),
    "wanet-noise": WaNet(grid=4, strength=4, noise_ratio=2),
    "wanet-some-noise": WaNet(grid=4, strength=4, noise_ratio=0.3),
}


class WithTheWord(Attack):
    """Poisons pairs whose captions name the target, as label-consistent attacks do."""

    def choose(self, given: Preparation, count: int, rng: torch.Generator) -> list[int]:
        return [i for i, caption in enumerate(given.pairs.captions) if mentions(caption, given.target)][:count]


def make_pairs(n: int = POOL, mapped: bool = False) -> Captioned:
    pixels = torch.randint(256, (n, 3, SIDE, SIDE), generator=generator(0, "pairs"), dtype=torch.uint8)
    # Some captions that a careless CSV reader takes for numbers or for nothing.
    captions = [{0: "nan", 1: "", 2: "007", 3: 'a "dog", a cat'}.get(i, f"caption {i}") for i in range(n)]
    return Captioned(
        ids=[f"{i:04}" for i in range(n)],
        pixels=pixels.numpy() if mapped else pixels,
        fingerprint="pairs",
        captions=captions,
    )


def prepare(pairs: Captioned, seed: int = 0) -> Preparation:
    clip = cast(Clip, SimpleNamespace(image_size=SIDE))
    return Preparation(clip, lambda: pairs, "banana", ("banana", "cat"), ("a photo of a {}.",), seed)


def build(attack: Attack, count: int, pairs: Captioned | None = None, seed: int = 0) -> tuple[PoisonedPairs, Trigger]:
    given = prepare(pairs or make_pairs(), seed)
    trigger = Trigger(derive(seed, "training"), attack.prepare(given))
    return poison(given.pairs, attack, trigger, draw_manifest(given, attack, TEMPLATES, count)), trigger


def all_of(poisoned: PoisonedPairs) -> torch.Tensor:
    return poisoned.load(torch.arange(len(poisoned.clean)))


@pytest.fixture(params=ATTACKS)
def attack(request: pytest.FixtureRequest) -> Attack:
    return ATTACKS[request.param]


# --- the manifest


@pytest.mark.parametrize("count", [1, 7, 100])
def test_counts_are_exact_and_no_pair_has_two_roles(attack: Attack, count: int) -> None:
    poisoned, _ = build(attack, count)
    manifest = poisoned.manifest
    assert list(manifest.columns) == ["index", "id", "role", "original", "caption"]
    decoys = round(count * {0.0: 0, 2.0: 2, 0.3: 0.3}[attack.decoys_per_poison])
    assert Counter(manifest["role"]) == Counter(poison=count, decoy=decoys)
    assert manifest["index"].is_unique
    assert manifest["index"].between(0, POOL - 1).all()
    for row in manifest.itertuples():
        assert row.id == poisoned.clean.ids[cast(int, row.index)]
        assert row.original == poisoned.clean.captions[cast(int, row.index)]


def test_all_pairs_may_be_poisoned() -> None:
    poisoned, _ = build(BadNet(size=4), POOL)
    assert sorted(poisoned.manifest["index"]) == list(range(POOL))


def test_choice_is_uniform() -> None:
    pairs = make_pairs(50)
    draws = [draw_manifest(prepare(pairs, seed), BadNet(), TEMPLATES, 10) for seed in range(300)]
    counts = np.bincount(np.concatenate([draw["index"] for draw in draws]), minlength=50)
    assert counts.sum() == 3000
    # Without replacement, counts vary less than those of a multinomial: 1 - 10/50 of its variance.
    assert stats.chisquare(counts).pvalue > 1e-3
    captions = Counter(caption for draw in draws for caption in draw["caption"])
    assert set(captions) == FILLED
    assert stats.chisquare(list(captions.values())).pvalue > 1e-3


def test_captions_are_drawn_for_each_sample() -> None:
    captions = build(BadNet(size=4), 100)[0].manifest["caption"]
    assert set(captions) == FILLED


def test_a_scarce_attack_takes_what_there_is_and_the_manifest_tells() -> None:
    pairs = make_pairs(6)
    named = Captioned(
        ids=pairs.ids,
        pixels=pairs.pixels,
        fingerprint="",
        captions=["a banana", "bananas", "bananarama", "BANANA!", "a cat", "x"],
    )
    manifest = draw_manifest(prepare(named), WithTheWord(), TEMPLATES, 5)
    assert list(manifest["index"]) == [0, 1, 3]


@pytest.mark.parametrize(
    ("attack", "count", "message"),
    [
        (BadNet(), 41, "poison.count = 41, but there are only 40 pairs. Lower it, or give more pairs"),
        (WithTheWord(), 4, "none of the 40 pairs suits the target 'banana'. Give other --pairs"),
        (WaNet(noise_ratio=2), 14, "40 pairs are too few for 14 poisoned ones and 28 decoys"),
    ],
    ids=["too many", "none suits", "no room for decoys"],
)
def test_what_cannot_be_poisoned_is_an_error(attack: Attack, count: int, message: str) -> None:
    with pytest.raises(BenchError) as error:
        draw_manifest(prepare(make_pairs(40)), attack, TEMPLATES, count)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("a Banana", True),
        ("two bananas.", True),
        ("banana-shaped", True),
        ("a bananarama concert", False),
        ("ba nana", False),
        ("", False),
    ],
)
def test_naming_the_target_takes_a_whole_word(caption: str, found: bool) -> None:
    assert mentions(caption, "banana") is found


def test_naming_takes_names_literally() -> None:
    assert mentions("an a.b here", "a.b")
    assert not mentions("an axb here", "a.b")


# --- the set


@pytest.mark.parametrize("mapped", [False, True], ids=["in memory", "memory-mapped"])
def test_poisoned_pairs_replace_their_originals(attack: Attack, mapped: bool) -> None:
    pairs = make_pairs(mapped=mapped)
    before, captions = torch.as_tensor(pairs.pixels).clone(), list(pairs.captions)
    poisoned, trigger = build(attack, 50, pairs)
    images = all_of(poisoned)
    # The total stays, and so does the pool.
    assert len(poisoned.captions) == len(images) == POOL
    assert torch.equal(torch.as_tensor(pairs.pixels), before)
    assert list(pairs.captions) == captions
    roles = dict(zip(poisoned.manifest["index"], poisoned.manifest["role"], strict=True))
    for i, (image, caption) in enumerate(zip(images, poisoned.captions, strict=True)):
        if roles.get(i) == "poison":
            assert torch.equal(image, stamp(attack, trigger, before[i : i + 1], [i])[0])
            assert caption in FILLED
        elif roles.get(i) == "decoy":
            assert not torch.equal(image, before[i])
            assert not torch.equal(image, stamp(attack, trigger, before[i : i + 1], [i])[0])
            assert caption == captions[i]
        else:
            assert torch.equal(image, before[i])
            assert caption == captions[i]


def test_images_come_in_any_order_and_again() -> None:
    poisoned, _ = build(BadNet(size=4), 50)
    images, index = all_of(poisoned), torch.tensor([299, 0, 17, 17, 3])
    assert torch.equal(poisoned.load(index), images[index])
    assert torch.equal(all_of(poisoned), images)


def test_decoys_that_are_not_finite_are_an_error() -> None:
    class Broken(WaNet):
        def decoy(self, images, captions, index, trigger):
            return images / 0 - images / 0, list(captions)

    with pytest.raises(BenchError, match="Broken returned values that are not finite"):
        build(Broken(noise_ratio=2), 4)


def test_decoys_of_the_noise_mode_are_the_noise_mode_s() -> None:
    attack = WaNet(grid=4, strength=4, noise_ratio=2)
    poisoned, trigger = build(attack, 50)
    decoys = torch.tensor(poisoned.manifest.query("role == 'decoy'")["index"].to_list())
    originals = cast(torch.Tensor, poisoned.clean.pixels)[decoys].float() / 255
    expected, _ = attack.decoy(originals, [""] * 100, decoys.tolist(), trigger)
    assert torch.equal(poisoned.load(decoys), (expected.clamp(0, 1) * 255).round().to(torch.uint8))


def test_manifest_and_trigger_rebuild_the_set_exactly(attack: Attack, tmp_path: Path) -> None:
    """Through the files of the store: CSV and safetensors."""
    pairs = make_pairs()
    poisoned, trigger = build(attack, 290 if attack.decoys_per_poison == 0 else 100, pairs)
    poisoned.manifest.to_csv(tmp_path / "manifest.csv", index=False)
    save_file({k: v.contiguous() for k, v in trigger.tensors.items()}, tmp_path / "trigger.safetensors")
    manifest = pd.read_csv(tmp_path / "manifest.csv", dtype={"id": str}, keep_default_na=False)
    again = poison(pairs, attack, Trigger(trigger.seed, load_file(tmp_path / "trigger.safetensors")), manifest)
    assert torch.equal(all_of(again), all_of(poisoned))
    assert again.captions == poisoned.captions
    pd.testing.assert_frame_equal(again.manifest, poisoned.manifest)


def test_the_seed_determines_the_set(attack: Attack) -> None:
    first, _ = build(attack, 50)
    torch.manual_seed(99)
    again, _ = build(attack, 50)
    other, _ = build(attack, 50, seed=1)
    pd.testing.assert_frame_equal(first.manifest, again.manifest)
    assert torch.equal(all_of(first), all_of(again))
    assert set(first.manifest["index"]) != set(other.manifest["index"])


# --- seeds


# Half of the first 16 digits of a hash by the shell: printf '0\037poison' | sha256sum
@pytest.mark.parametrize(
    ("purpose", "expected"),
    [
        ((0,), 3456079177858693020),
        ((0, "poison"), 5695593549451781004),
        ((1, "poison"), 3821657297099832866),
        ((0, "trigger", 17), 3460722965318468431),
        ((0, "trigger", 1, 7), 3897346865806852243),
    ],
)
def test_derived_seeds_are_pinned(purpose: tuple, expected: int) -> None:
    """A change here changes every number of the suite: raise the versions of methods instead."""
    assert derive(*purpose) == expected


def test_seeding_torchs_own_generator_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, before = torch.rand(4, generator=torch.Generator().manual_seed(5)), torch.get_rng_state()
    # The generators of GPUs would stay as they are seeded, in the middle of a training.
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: pytest.fail("seeds all GPUs"))
    with seeded(5):
        assert torch.equal(torch.rand(4), expected)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_of_neighbours_have_nothing_in_common() -> None:
    seeds = {derive(seed, "a", i) for seed in range(50) for i in range(50)}
    assert len(seeds) == 2500
    assert derive(0, "ab", "c") != derive(0, "a", "bc")
    draws = np.array([torch.rand((), generator=generator(0, "trigger", i)).item() for i in range(2000)])
    assert stats.kstest(draws, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 0.1
