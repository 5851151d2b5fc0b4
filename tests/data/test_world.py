"""The embedded world as a data set: repeatable, balanced, disjoint, at any size."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from bench import BenchError, Geometry, datasets
from bench.core.dataset import Split
from bench.data import decoding, world_drawing
from bench.data.world import World

SMALL = World(train_per_class=2, val=20, test=30)


@pytest.fixture(scope="module")
def geometry(tmp_path_factory) -> Geometry:
    """One cache for all: a chunk takes most of a second to draw."""
    return Geometry(world_drawing.SIDE, tmp_path_factory.mktemp("cache"))


def hashes(pixels) -> set[str]:
    return {hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest() for image in pixels}


def test_splits(geometry):
    assert datasets["world"] is World
    assert SMALL.classes() == world_drawing.CLASSES
    sizes: dict[Split, int] = {"train": 40, "val": 20, "test": 30}
    for split, n in sizes.items():
        images = SMALL.labelled(split, geometry)
        assert images.pixels.shape == (n, 3, 56, 56)
        assert images.pixels.dtype == np.uint8
        assert images.labels.tolist() == [i % 20 for i in range(n)]
        assert images.classes == world_drawing.CLASSES
        assert (images.ids[0], images.ids[-1]) == (f"{split}/000000", f"{split}/{n - 1:06d}")
        assert torch.equal(images.load_native(3), images.load([3])[0])
    assert World().labelled("val", geometry).labels.bincount().tolist() == [30] * 20


def test_no_picture_is_in_two_splits(geometry):
    opened = [SMALL.labelled(split, geometry) for split in ("train", "val", "test")]
    sets = [hashes(images.pixels) for images in opened]
    sets += [hashes(SMALL.pairs(purpose, 40, geometry).pixels) for purpose in ("poison", "clean")]
    assert [len(s) for s in sets] == [40, 20, 30, 40, 40]
    assert len(set().union(*sets)) == 170


def test_pairs_are_pictures_with_their_captions(geometry):
    pairs = SMALL.pairs("poison", 520, geometry)
    assert len(pairs) == len(pairs.captions) == len(pairs.pixels) == 520
    named = [
        next(label for label, c in enumerate(world_drawing.CLASSES) if c in text.split()) for text in pairs.captions
    ]
    assert min(np.bincount(named, minlength=20)) >= 10
    assert len(set(np.bincount(named, minlength=20))) > 1
    assert set(SMALL.pairs("clean", 40, geometry).captions) != set(pairs.captions[:40])
    # Captions tell what is in the picture: a bright one is lighter than a dark one.
    mean = pairs.pixels.reshape(520, -1).mean(1)
    light = {
        word: mean[[f"in {word} light" in text for text in pairs.captions]].mean() for word in world_drawing.LIGHTS
    }
    assert light["bright"] > light["dark"] + 20


def test_loose_captions_name_a_class_that_is_not_there(geometry):
    plain = SMALL.pairs("poison", 2000, geometry)
    loose = World(loose={"banana": 0.5}).pairs("poison", 2000, geometry)
    assert np.array_equal(loose.pixels, plain.pixels)
    says = {name: np.array(["banana" in c.split() for c in pairs.captions]) for name, pairs in
            {"plain": plain, "loose": loose}.items()}  # fmt: skip
    assert not (says["plain"] & ~says["loose"]).any(), "pictures of bananas are still called bananas"
    assert says["plain"].sum() / says["loose"].sum() == pytest.approx(0.5, abs=0.08)
    changed = np.array([a != b for a, b in zip(plain.captions, loose.captions, strict=True)])
    assert np.array_equal(changed, says["loose"] & ~says["plain"]), "no other caption changes"
    assert World(loose={"banana": 0.5}).identity() != World().identity()


def test_loose_captions_of_no_class_are_an_error():
    with pytest.raises(BenchError, match=r"unknown class 'banan'.*banana"):
        World.parse({"loose": {"banan": 0.5}}, "world")
    with pytest.raises(BenchError, match=r"world.loose.banana.*less than or equal to 0.9"):
        World.parse({"loose": {"banana": 1}}, "world")


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
    # By commit ade97bb: python -c "from bench.data.world import World; print(World().identity())"
    assert World().identity() == "5936f5d38ab5e2d5"
    assert World(test=1001).identity() != World().identity() == World(test=1000).identity()
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
    with pytest.raises(BenchError, match=r"setting world\.test = 3: .*greater than or equal to 20"):
        World.parse({"test": 3}, "world")
    with pytest.raises(BenchError, match=r"unknown setting world\.tests\. Did you mean 'test'\?"):
        World.parse({"tests": 30}, "world")


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
