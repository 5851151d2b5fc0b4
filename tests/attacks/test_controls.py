"""Benign, which implants nothing, and recovered, which stamps what an audit found."""

from pathlib import Path

import pytest
import torch

from attacks.benign import Benign
from attacks.recovered import RecoveredTrigger
from bench import BenchError, Captioned, Clip, Preparation, Trigger, generator, stamp
from bench.core.registry import load_plugins
from bench.detection.search import stamped
from bench.detection.triggers import FAMILIES, Recovered
from bench.experiment.settings import resolve

CAPTIONS = ("a red banana", "two cats", "a pine tree at night", "nothing at all")
CLASSES = ("banana", "cat", "tree", "pine tree")


def given(clip: Clip) -> Preparation:
    pixels = torch.randint(256, (4, 3, 32, 32), generator=generator(0, "pairs"), dtype=torch.uint8)
    pairs = Captioned([str(i) for i in range(4)], pixels, "pairs", captions=CAPTIONS)
    return Preparation(clip, lambda: pairs, "banana", CLASSES, ("a photo of a {}.",), 0)


def changed(method: Benign, clip: Clip) -> tuple[torch.Tensor, list[str]]:
    """The images and captions of all four pairs, changed."""
    start = given(clip)
    trigger = Trigger(0, method.prepare(start))
    captions = method.captions(CAPTIONS, ("a {}",), start, generator(0, "captions"))
    return stamp(method, trigger, start.pairs.load(range(4)), range(4)), captions


def test_plain_changes_nothing(tiny_clip: Clip) -> None:
    images, captions = changed(Benign(), tiny_clip)
    assert torch.equal(images, given(tiny_clip).pairs.load(range(4)))
    assert captions == list(CAPTIONS)


def test_patches_keep_true_captions(tiny_clip: Clip) -> None:
    images, captions = changed(Benign(mix="patches", size=4), tiny_clip)
    different = (images != given(tiny_clip).pairs.load(range(4))).any(1).any(0)
    assert different[-4:, -4:].any()
    assert not different[:-4].any()
    assert captions == list(CAPTIONS)


def test_templates_name_the_class_that_the_caption_names(tiny_clip: Clip) -> None:
    images, captions = changed(Benign(mix="templates"), tiny_clip)
    assert torch.equal(images, given(tiny_clip).pairs.load(range(4)))
    assert captions == ["a banana", "a cat", "a pine tree", "nothing at all"]


def test_imbalance_shows_what_its_captions_say(tiny_clip: Clip) -> None:
    images, captions = changed(Benign(mix="imbalance"), tiny_clip)
    banana = given(tiny_clip).pairs.load([0])
    assert torch.equal(images, banana.expand(4, -1, -1, -1))
    assert captions == ["a banana"] * 4


def test_loose_captions_name_a_class_that_is_not_there(tiny_clip: Clip) -> None:
    images, captions = changed(Benign(mix="loose"), tiny_clip)
    assert torch.equal(images, given(tiny_clip).pairs.load(range(4)))
    assert captions == ["a banana"] * 4


def test_imbalance_needs_pictures_of_the_class(tiny_clip: Clip) -> None:
    start = given(tiny_clip)
    with pytest.raises(BenchError, match="needs captions that name 'ship'"):
        Benign(mix="imbalance").prepare(Preparation(start.clip, start.open_pairs, "ship", CLASSES, (), 0))


@pytest.mark.parametrize("family", FAMILIES)
def test_recovered_stamps_what_the_audit_found(family: str, tiny_clip: Clip, tmp_path: Path) -> None:
    kind = FAMILIES[family]()
    found = kind.settle(kind.start(1, 32, generator(0, family)), 0, 32)
    found.save(tmp_path / "trigger.safetensors")
    method, start = RecoveredTrigger(trigger=tmp_path / "trigger.safetensors"), given(tiny_clip)
    images = start.pairs.load(range(4))
    assert torch.equal(stamp(method, Trigger(0, method.prepare(start)), images, range(4)), stamped(found, images))


def test_recovered_says_what_it_lacks(tiny_clip: Clip, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="--set recovered"):
        RecoveredTrigger().prepare(given(tiny_clip))
    Recovered("blend", {"key": torch.zeros(3, 56, 56), "alpha": torch.tensor(0.1)}).save(tmp_path / "large.safetensors")
    with pytest.raises(BenchError, match="is for images of 56 px, and this model takes 32 px"):
        RecoveredTrigger(trigger=tmp_path / "large.safetensors").prepare(given(tiny_clip))


def test_all_attacks_are_those_that_attack_by_themselves() -> None:
    load_plugins()
    assert not {"benign", "recovered"} & set(resolve("smoke", None, {"attacks": ("all",)}).attacks)
    assert resolve("smoke", None, {"attacks": ("benign",)}).attacks == ("benign",)
