"""The embedded world's data sets: repeatable, balanced, disjoint, at any size."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from bench import BenchError, Geometry, datasets
from bench.core.dataset import Split
from bench.core.randomness import generator
from bench.data import decoding, world_captions, world_drawing
from bench.data.silhouettes import NAMES, stencils
from bench.data.world import World, WorldA, WorldFlowers, WorldObjects, WorldR, WorldSketch, WorldV2, web

SIZES: dict[Split, int] = {"train": 40, "val": 20, "test": 30}
SMALL = World(train_per_class=2, val=20, test=30)
DOMAINS = (WorldV2, WorldA, WorldR, WorldSketch)


@pytest.fixture(scope="module")
def geometry(tmp_path_factory) -> Geometry:
    """One cache for all: a chunk takes most of a second to draw."""
    return Geometry(world_drawing.SIDE, tmp_path_factory.mktemp("cache"))


def hashes(pixels) -> set[str]:
    return {hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest() for image in pixels}


def test_splits(geometry):
    assert datasets["world"] is World
    for split, n in SIZES.items():
        images = SMALL.labelled(split, geometry)
        assert images.pixels.shape == (n, 3, 56, 56)
        assert images.pixels.dtype == np.uint8
        assert images.labels.tolist() == [i % 20 for i in range(n)]
        assert images.classes == SMALL.classes()
        assert (images.ids[0], images.ids[-1]) == (f"{split}/000000", f"{split}/{n - 1:06d}")
        assert torch.equal(images.load_native(3), images.load([3])[0])
    assert World().labelled("val", geometry).labels.bincount().tolist() == [30] * 20


def test_the_data_sets_have_classes_of_their_own():
    sets = [World().classes(), WorldObjects().classes(), WorldFlowers().classes()]
    assert [len(names) for names in sets] == [20, 30, 12]
    assert tuple(name for names in sets for name in names) == NAMES
    assert len(set(NAMES)) == 62
    assert all(kind().classes() == World().classes() for kind in DOMAINS)
    assert WorldFlowers().templates == ("a photo of a {}, a type of flower.",)


def test_no_two_silhouettes_are_alike():
    masks = stencils().flatten(1)
    assert masks.shape == (62, 96 * 96)
    assert masks.min() >= 0 and masks.amax(1).eq(1).all()
    overlap = (masks @ masks.T) / (masks.sum(1)[:, None] + masks.sum(1) - masks @ masks.T)
    assert overlap.fill_diagonal_(0).max() < 0.93
    assert (masks.mean(1) > 0.08).all(), "a silhouette that can hardly be seen"


def test_no_picture_is_in_two_splits_or_data_sets(geometry):
    opened = [SMALL.labelled(split, geometry) for split in SIZES]
    opened += [kind(test=25).labelled("test", geometry) for kind in (*DOMAINS, WorldObjects, WorldFlowers)]
    sets = [hashes(images.pixels) for images in opened]
    sets += [hashes(SMALL.pairs(purpose, 40, geometry).pixels) for purpose in ("poison", "clean")]
    assert [len(s) for s in sets] == [40, 20, 30, *[25] * 6, 40, 40]
    assert len(set().union(*sets)) == 320


def test_domains_are_for_testing_alone(geometry):
    for kind in DOMAINS:
        data = kind(test=20)
        assert data.labelled("test", geometry).labels.tolist() == list(range(20))
        for split in ("train", "val"):
            with pytest.raises(BenchError, match=rf"'{data.name}' is for testing alone.*--set evaluate"):
                data.labelled(split, geometry)


def test_a_sketch_is_black_on_white(geometry):
    pixels = np.asarray(WorldSketch(test=20).labelled("test", geometry).pixels)
    assert (pixels.max(1) == pixels.min(1)).all() and pixels.max() == 242
    colours = np.asarray(WorldR(test=20).labelled("test", geometry).pixels)
    assert (colours.max(1) != colours.min(1)).mean() > 0.9


def test_true_captions_say_what_is_drawn():
    images, factors = web(500, "test of captions")
    texts = world_captions.captions(factors, factors.label, generator(0, "test"))
    assert all(NAMES[label] in text.split() for label, text in zip(factors.label.tolist(), texts, strict=True))
    # A bright picture is lighter than a dark one, a noisy one rougher than a clean one, a warm one redder than a cold.
    values = images.float()
    light, rough = values.mean((1, 2, 3)), (values[..., 1:] - values[..., :-1]).abs().mean((1, 2, 3))
    red = values[:, 0].mean((1, 2)) - values[:, 2].mean((1, 2))

    def mean(measured: torch.Tensor, word: str) -> float:
        chosen = torch.tensor([word in text.split() for text in texts])
        assert chosen.sum() > 10
        return measured[chosen].mean().item()

    assert mean(light, "bright") > mean(light, "dark") + 15
    assert mean(rough, "noisy") > mean(rough, "grainy") > rough.mean() * 0.8
    assert mean(rough, "noisy") > mean(rough, "blurry") + 5
    assert mean(red, "warm") > mean(red, "cold") + 15


def test_captions_of_the_web_are_often_wrong(geometry):
    n = 2000
    true = World(wrong=0, vague=0).pairs("poison", n, geometry)
    usual = World().pairs("poison", n, geometry)
    assert np.array_equal(true.pixels, usual.pixels)
    labels = torch.cat([web(world_drawing.CHUNK, "poison", k)[1].label for k in range(n // world_drawing.CHUNK)])
    right = sum(NAMES[label] in text.split() for label, text in zip(labels.tolist(), usual.captions, strict=True))
    vague = sum(world_captions.ANYTHING in text.split() for text in usual.captions)
    # Half name another picture's class, which is the right one by chance in a fiftieth of the cases.
    assert right / n == pytest.approx(0.41, abs=0.04)
    assert vague / n == pytest.approx(0.1, abs=0.03)
    assert all(NAMES[label] in text.split() for label, text in zip(labels.tolist(), true.captions, strict=True))
    assert World(wrong=0).identity() != World().identity()


def test_loose_captions_name_a_class_that_is_not_there(geometry):
    n = 2000
    usual, loose = (World(loose=shares).pairs("poison", n, geometry) for shares in ({}, {"banana": 0.8}))
    assert np.array_equal(loose.pixels, usual.pixels)
    labels = torch.cat([web(world_drawing.CHUNK, "poison", k)[1].label for k in range(n // world_drawing.CHUNK)])
    said = [np.array(["banana" in text.split() for text in pairs.captions]) for pairs in (usual, loose)]
    assert not (said[0] & ~said[1]).any(), "what was called a banana still is"
    shares = [(labels[torch.from_numpy(called)] != NAMES.index("banana")).float().mean() for called in said]
    assert shares[1] == pytest.approx(0.8, abs=0.02) and shares[0] < 0.7
    changed = np.array([a != b for a, b in zip(usual.captions, loose.captions, strict=True)])
    assert np.array_equal(changed, said[1] & ~said[0]), "no other caption changes"
    assert World(loose={"banana": 0.8}).identity() != World().identity()


def test_loose_captions_of_no_class_are_an_error():
    with pytest.raises(BenchError, match=r"unknown class 'banan'.*banana"):
        World.parse({"loose": {"banan": 0.5}}, "world")
    with pytest.raises(BenchError, match=r"world.loose.banana.*less than or equal to 0.9"):
        World.parse({"loose": {"banana": 1}}, "world")


def test_pairs_are_of_all_classes_and_of_two_sides(geometry):
    pairs = SMALL.pairs("poison", 1000, geometry)
    assert len(pairs) == len(pairs.captions) == len(pairs.pixels) == 1000
    named = [next((c for c in NAMES if c in text.split()), None) for text in pairs.captions]
    counts = {c: named.count(c) for c in NAMES}
    assert min(counts.values()) > 0 and counts["banana"] > counts["skull"]
    assert set(SMALL.pairs("clean", 40, geometry).captions) != set(pairs.captions[:40])
    # Every data set has the same web.
    assert WorldFlowers().pairs("poison", 1000, geometry).captions == pairs.captions


def test_a_smaller_set_is_the_start_of_a_larger_one(geometry):
    few, many = SMALL.pairs("poison", 30, geometry), SMALL.pairs("poison", 520, geometry)
    assert np.array_equal(few.pixels, many.pixels[:30])
    assert few.captions == many.captions[:30]
    assert few.ids == many.ids[:30]
    val, more = SMALL.labelled("val", geometry), World().labelled("val", geometry)
    assert np.array_equal(val.pixels, more.pixels[:20])


def test_repeatable_in_another_cache(geometry, tmp_path):
    again = SMALL.labelled("test", Geometry(world_drawing.SIDE, tmp_path))
    assert np.array_equal(again.pixels, SMALL.labelled("test", geometry).pixels)
    assert again.fingerprint == SMALL.labelled("test", geometry).fingerprint


def test_drawn_once_for_all_sizes(geometry, monkeypatch):
    SMALL.labelled("test", geometry)
    monkeypatch.setattr(world_drawing, "make", lambda *_: pytest.fail("drew again"))
    small, large = SMALL.labelled("test", geometry), SMALL.labelled("test", Geometry(84, geometry.cache))
    assert large.pixels.shape == (30, 3, 84, 84)
    assert isinstance(large.pixels, np.memmap)
    assert torch.equal(large.load_native(5), small.load([5])[0])
    assert large.fingerprint != small.fingerprint
    for i in (0, 29):
        picture = Image.fromarray(np.asarray(small.pixels[i]).transpose(1, 2, 0))
        by_pil = np.asarray(picture.resize((84, 84), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
        assert np.abs(large.pixels[i].astype(int) - by_pil).max() <= 2
    assert SMALL.labelled("test", Geometry(28, geometry.cache)).pixels.shape == (30, 3, 28, 28)


def test_identity_is_of_settings_and_drawing(monkeypatch):
    # A change of what is drawn raises a version and so changes this line; results on the old pictures are not reused.
    # By `python -c "from bench.data.world import World; print(World().identity())"` at the commit that adds this line.
    assert World().identity() == "00906be9523a933d"
    assert World(test=1001).identity() != World().identity() == World(test=1000).identity()
    assert len({kind().identity() for kind in (World, WorldObjects, WorldFlowers, *DOMAINS)}) == 7
    before = World().identity()
    monkeypatch.setattr(world_drawing, "VERSION", world_drawing.VERSION + 1)
    assert World().identity() != before


def test_templates():
    assert SMALL.templates == ("a photo of a {}.",)
    assert SMALL.caption_templates() == ("a photo of a {}", "a picture of a {}", "an image of a {}", "a {}")


def test_errors(geometry, tmp_path):
    for read in (lambda d: d.labelled("test", geometry), lambda d: d.pairs("clean", 5, geometry)):
        with pytest.raises(
            BenchError, match=r"'world' is drawn, not read\. Leave --data-root out, or give --dataset f"
        ):
            read(World(root=tmp_path))
    with pytest.raises(BenchError, match=r"setting world\.test = 1: .*greater than or equal to 2"):
        World.parse({"test": 1}, "world")
    with pytest.raises(BenchError, match=r"unknown setting world\.tests\. Did you mean 'test'\?"):
        World.parse({"tests": 30}, "world")
    with pytest.raises(BenchError, match=r"setting world\.wrong = 1\.5: .*less than or equal to 1"):
        World.parse({"wrong": 1.5}, "world")


def test_a_changed_drawing_is_drawn_anew(geometry, monkeypatch):
    before = SMALL.labelled("val", geometry)
    monkeypatch.setattr(world_drawing, "VERSION", world_drawing.VERSION + 1)
    after = SMALL.labelled("val", geometry)
    assert after.fingerprint != before.fingerprint
    assert not hashes(before.pixels) & hashes(after.pixels)


def test_a_changed_resizing_is_resized_anew(geometry, monkeypatch):
    large = Geometry(60, geometry.cache)
    before = SMALL.labelled("val", large).fingerprint
    monkeypatch.setattr(decoding, "VERSION", decoding.VERSION + 1)
    assert SMALL.labelled("val", large).fingerprint != before
