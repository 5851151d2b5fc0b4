"""Pairs from every source, stored or decoded on demand; and the pool that rare targets are drawn from."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from threading import Semaphore
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from attacks.label_consistent import LabelConsistent
from bench import Attack, BenchError, Geometry, generator, mentions
from bench.core.images import hash_of
from bench.core.poisoning import candidates_first, draw_manifest
from bench.core.registry import load_plugins
from bench.data import decoding
from bench.data import pairs as pairs_module
from bench.data.decoding import VERSION, file_state
from bench.data.files import class_folders
from bench.data.pair_sources import rows_of_folder
from bench.data.pairs import pairs_identity, read_pairs
from bench.experiment.resources import Resources
from bench.experiment.settings import BASE, resolve
from bench.matrix.plan import Fingerprints, make_plan
from bench.training.fine_tuning import FineTuning, contrastive_loss, fine_tune

SIZE = 16
PRINTS = Fingerprints("x", "x", "x", "x", "x")


@pytest.fixture
def geometry(tmp_path: Path) -> Geometry:
    return Geometry(SIZE, tmp_path / "cache")


def jpeg(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


def table(folder: Path, captions: list[str], header: str = "image,caption") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(len(captions)):
        (folder / f"{i:03d}.jpg").write_bytes(jpeg(i))
    lines = [header, *(f"{i:03d}.jpg,{caption}" for i, caption in enumerate(captions))]
    (folder / "pairs.csv").write_text("\n".join(line for line in lines if line) + "\n")
    return folder / "pairs.csv"


def tree(folder: Path, n: int) -> Path:
    for i in range(n):
        where = folder / f"{i % 2:05d}"
        where.mkdir(parents=True, exist_ok=True)
        (where / f"{i:03d}.jpg").write_bytes(jpeg(i))
        (where / f"{i:03d}.txt").write_text(f" caption\n{i} ")
    return folder


def shard(file: Path, contents: Mapping[str, bytes]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file


def shards(folder: Path, count: int = 2, each: int = 3) -> Path:
    """As img2dataset writes them: image, caption and facts of a sample, one after the other."""
    for k in range(count):
        samples = {}
        for i in range(each * k, each * (k + 1)):
            facts = json.dumps({"caption": f"caption {i}", "url": "x"}).encode()
            samples |= {f"{i:09d}.jpg": jpeg(i), f"{i:09d}.txt": f"caption {i}".encode(), f"{i:09d}.json": facts}
        shard(folder / f"{k:05d}.tar", samples)
    return folder


def stored(folder: Path, i: int, geometry: Geometry) -> torch.Tensor:
    """Image i by way of a table, whose pixels test_data.py compares with open_clip's."""
    return read_pairs(table(folder / "plain", ["x"] * (i + 1)), geometry).load([i])


# --- tables


@pytest.mark.parametrize("image_first", [True, False])
@pytest.mark.parametrize("mark", [",", "\t"])
def test_two_columns_need_no_header(image_first, mark, tmp_path, geometry):
    table(tmp_path, ["a"] * 2)
    rows = [(f"{i:03d}.jpg", f"caption {i}")[:: 1 if image_first else -1] for i in range(2)]
    file = tmp_path / "train.tsv"
    file.write_text("".join(mark.join(row) + "\n" for row in rows))
    pairs = read_pairs(file, geometry)
    assert (pairs.ids, pairs.captions) == (["000.jpg", "001.jpg"], ["caption 0", "caption 1"])


def test_cc3ms_columns(tmp_path, geometry):
    table(tmp_path, ["x"])
    (tmp_path / "cc3m.tsv").write_text("caption\tfile\na cat, and a dog\t000.jpg\na bird\tgone.jpg\n")
    pairs = read_pairs(tmp_path / "cc3m.tsv", geometry)
    assert pairs.captions == ["a cat, and a dog"]
    assert pairs.skipped == ("line 3, gone.jpg: missing file",)


@pytest.mark.parametrize("header", ["", "caption\turl\n"])
def test_addresses_are_no_images(tmp_path, geometry, header):
    (tmp_path / "cc3m.tsv").write_text(f"{header}a very typical bus station\thttp://lh6.ggpht.com/IvRtNLNcG8o\n")
    with pytest.raises(BenchError, match=r"It lists addresses, as CC3M's own file .*`bench data get cc3m --data-"):
        read_pairs(tmp_path / "cc3m.tsv", geometry)


def test_a_tables_identity_is_the_hash_of_its_rows(tmp_path):
    """Identities of earlier runs stay: theirs was the hash of one list."""
    file = table(tmp_path, ["a", 'b "quoted"', "ö"])
    images = [f"{i:03d}.jpg" for i in range(3)]
    rows = [
        (name, text, *file_state(tmp_path / name)[1:])
        for name, text in zip(images, ["a", 'b "quoted"', "ö"], strict=True)
    ]
    assert pairs_identity(file) == hash_of(["pairs", VERSION, rows])
    (tmp_path / "empty.csv").write_text("image,caption\n")
    assert pairs_identity(tmp_path / "empty.csv") == hash_of(["pairs", VERSION, []])


# --- folders


def test_a_folder_of_images_with_captions(tmp_path, geometry):
    folder = tree(tmp_path / "pairs", 4)
    (folder / ".hidden.jpg").write_bytes(jpeg(9))
    (folder / "00000/lonely.png").write_bytes(jpeg(9))
    (folder / "00001/003.txt").write_text("\n")
    (folder / "00001/latin.jpg").write_bytes(jpeg(9))
    (folder / "00001/latin.txt").write_bytes("é".encode("latin-1"))
    (folder / "00001/notes.txt").write_text("of no image")
    pairs = read_pairs(folder, geometry)
    assert pairs.ids == ["00000/000.jpg", "00000/002.jpg", "00001/001.jpg"]
    assert pairs.captions == ["caption 0", "caption 2", "caption 1"]
    assert pairs.skipped == (
        "00000/lonely.png: no .txt file of its name",
        "00001/003.jpg: empty caption",
        "00001/latin.jpg: its caption is not UTF-8",
    )
    assert torch.equal(pairs.load([2]), stored(tmp_path, 1, geometry))


def test_a_folders_identity_is_of_images_and_captions(tmp_path):
    folder = tree(tmp_path, 3)
    seen = {pairs_identity(folder)}
    (folder / "00000/000.txt").write_text("another caption")
    seen.add(pairs_identity(folder))
    (folder / "00001/001.jpg").write_bytes(jpeg(7) + b"0")
    seen.add(pairs_identity(folder))
    assert len(seen) == 3
    assert pairs_identity(folder) in seen


def test_pairs_come_folder_by_folder_and_images_of_a_class_by_their_paths(tmp_path):
    for name in ("a/b/1.jpg", "a/b.jpg", "a/b-1/2.PNG", "a/.hidden/3.jpg", "a/.4.jpg", "a/notes.txt", "5.jpg"):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).touch()
    assert [row.image for row in rows_of_folder(tmp_path / "train")] == ["5.jpg", "a/b.jpg", "a/b/1.jpg", "a/b-1/2.PNG"]
    found = class_folders(tmp_path, "train")
    assert found.images == {"a": ["train/a/b-1/2.PNG", "train/a/b.jpg", "train/a/b/1.jpg"]}
    assert found.others == ("train/5.jpg: not in the folder of a class", "train/a/notes.txt: not an image")


# --- shards


@pytest.mark.parametrize("place", ["", "{00000..00001}.tar"])
def test_shards_are_read_where_they_lie(place, tmp_path, geometry):
    folder = shards(tmp_path / "cc3m")
    pairs = read_pairs(folder / place if place else folder, geometry)
    assert pairs.ids == [f"{i // 3:05d}.tar/{i:09d}" for i in range(6)]
    assert pairs.captions == [f"caption {i}" for i in range(6)]
    assert torch.equal(pairs.load([4]), stored(tmp_path, 4, geometry))
    assert pairs.load_native(4).shape == (3, 24, 20)
    assert read_pairs(folder / "00001.tar", geometry).captions == ["caption 3", "caption 4", "caption 5"]


def test_what_is_wrong_in_a_shard_is_told(tmp_path, geometry):
    contents = {
        "a.jpg": jpeg(0),
        "a.json": b'{"caption": "from the facts"}',
        "b.txt": b"no image here",
        "c.jpg": jpeg(1),
        "d.jpg": jpeg(2)[:200],
        "d.txt": b"half an image",
        "sub/e.jpg": jpeg(3),
        "sub/e.json": b"{no json",
        "f.seg.png": jpeg(4),
        "f.jpg": jpeg(5),
        "f.txt": b"two images of one sample",
    }
    pairs = read_pairs(shard(tmp_path / "0.tar", contents), geometry)
    assert pairs.ids == ["0.tar/a", "0.tar/f"]
    assert pairs.captions == ["from the facts", "two images of one sample"]
    assert pairs.skipped[:3] == (
        "0.tar/b: no image",
        "0.tar/c: no caption",
        "0.tar/sub/e: its caption cannot be read",
    )
    assert pairs.skipped[3].startswith("0.tar/d: OSError: ")
    assert len(pairs.skipped) == 4


def test_a_shard_that_breaks_off_gives_what_it_has(tmp_path, geometry):
    whole = shards(tmp_path / "whole", 1) / "00000.tar"
    content = whole.read_bytes()
    cut = tmp_path / "cut.tar"
    with tarfile.open(whole) as archive:
        cut.write_bytes(content[: archive.getmember("000000001.jpg").offset_data + 100])
    pairs = read_pairs(cut, geometry)
    assert pairs.captions == ["caption 0"]
    assert pairs.skipped == ("cut.tar/000000001: the shard breaks off here",)


def test_shards_that_are_none(tmp_path, geometry):
    folder = shards(tmp_path / "cc3m", 1)
    with pytest.raises(BenchError, match=r"there is no shard .*00001\.tar\. Give --pairs the shards that are there"):
        read_pairs(folder / "{00000..00001}.tar", geometry)
    (tmp_path / "x.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    with pytest.raises(BenchError, match=r"x\.tar is no plain tar archive .* Unpack compressed shards"):
        read_pairs(tmp_path / "x.tar", geometry)


def test_halves_of_shards_share_nothing(tmp_path, geometry):
    folder = shards(tmp_path, 3)
    poison, clean = (read_pairs(folder, geometry, part=part) for part in ("poison", "clean"))
    assert not set(poison.ids) & set(clean.ids)
    assert (len(poison), len(clean)) == (4, 5)
    before = pairs_identity(folder)
    shard(folder / "00003.tar", {"x.jpg": jpeg(0), "x.txt": b"x"})
    assert pairs_identity(folder) != before


# --- stored or on demand


@pytest.mark.parametrize("source", ["table", "folder", "shards"])
def test_pixels_pairs_and_names_do_not_depend_on_the_cache(source, tmp_path):
    makers = {"table": lambda p: table(p, ["x"] * 5), "folder": lambda p: tree(p, 5), "shards": lambda p: shards(p)}
    place = makers[source](tmp_path / "pairs")
    (tmp_path / "pairs/bad.jpg").write_bytes(b"no image")
    if source == "table":
        place.write_text(place.read_text() + "bad.jpg,corrupt\ngone.jpg,dead\n")
    live = read_pairs(place, Geometry(SIZE, tmp_path / "live"), cache="none")
    kept = read_pairs(place, Geometry(SIZE, tmp_path / "kept"), cache="disk")
    assert not list((tmp_path / "live").glob("*.npy"))
    assert list((tmp_path / "kept").glob("*.npy"))
    index = torch.tensor([4, 0, 2, 2])
    assert torch.equal(live.load(index), kept.load(index))
    assert live.load(torch.tensor([], dtype=torch.long)).shape == (0, 3, SIZE, SIZE)
    assert live.fingerprint == kept.fingerprint
    assert live.ids == kept.ids
    assert live.skipped == kept.skipped
    some = torch.tensor([3, 1])
    assert torch.equal(live.subset(some).load([0, 1]), kept.load(some))
    assert live.subset(some).captions == [kept.captions[i] for i in some]
    assert live.subset(some).ids == [kept.ids[i] for i in some]


def test_on_demand_looks_once_for_what_cannot_be_decoded(tmp_path, geometry, monkeypatch):
    file = table(tmp_path, ["x"] * 3)
    first = read_pairs(file, geometry, cache="none")
    monkeypatch.setattr("bench.data.decoding.decode_one", lambda *_, **__: pytest.fail("decoded again"))
    assert read_pairs(file, geometry, cache="none").fingerprint == first.fingerprint


def test_an_image_that_breaks_afterwards_is_an_error(tmp_path, geometry):
    pairs = read_pairs(table(tmp_path, ["x"] * 2), geometry, cache="none")
    (tmp_path / "001.jpg").write_bytes(b"")
    with pytest.raises(BenchError, match=r"001\.jpg could be decoded before and cannot now: not an image"):
        pairs.load([0, 1])


def test_what_is_announced_is_decoded_before_it_is_asked_for(tmp_path, geometry, monkeypatch):
    decode_one, both_decoded = decoding.decode_one, Semaphore(0)

    def counted(*given):
        found = decode_one(*given)
        both_decoded.release()
        return found

    file = table(tmp_path, ["x"] * 4)
    pairs = read_pairs(file, geometry, cache="none")
    before = pairs.load([3, 1, 3, 2])
    monkeypatch.setattr(decoding, "decode_one", counted)
    pairs.ahead(torch.tensor([1, 3]))
    pairs.ahead(torch.tensor([3]))
    for _ in range(2):
        assert both_decoded.acquire(timeout=300), "nothing is decoded ahead"
    for i in (1, 3):
        (tmp_path / f"{i:03d}.jpg").unlink()
    assert torch.equal(pairs.load([3, 1, 2]), before[[0, 1, 3]])
    # It was kept until then, and no longer.
    with pytest.raises(BenchError, match=r"003\.jpg could be decoded before and cannot now: missing file"):
        pairs.load([3])


def test_fine_tuning_announces_the_next_batch_and_has_the_same_numbers(tiny_clip, tmp_path):
    file = table(tmp_path, [f"a {i}" for i in range(11)])
    recipe, calls = FineTuning(epochs=2, batch_size=4, learning_rate=1e-3), []

    def tuned(cache: Literal["disk", "none"], announce: bool) -> list[float]:
        pairs = read_pairs(file, Geometry(32, tmp_path / cache), cache=cache)
        clip = tiny_clip.copy()
        tokens = clip.tokenize(pairs.captions)

        def loss(clip, index):
            calls.append(("load", index.tolist()))
            images, texts = clip.encode_image(pairs.load(index)), clip.encode_text(tokens[index])
            return contrastive_loss(images, texts, clip.scale)

        def ahead(index):
            calls.append(("ahead", index.tolist()))
            pairs.ahead(index)

        more = {"ahead": ahead} if announce else {}
        return fine_tune(clip, len(pairs), recipe, loss, generator(0), **more)

    expected = tuned("disk", announce=False)
    order = [index for _, index in calls]
    calls.clear()
    assert tuned("none", announce=True) == expected and len(expected) == 4
    kinds = ["ahead", "ahead", "load", "ahead", "load", "ahead", "load", "load"]
    assert [kind for kind, _ in calls] == kinds
    assert [index for kind, index in calls if kind == "load"] == order
    assert [index for kind, index in calls if kind == "ahead"] == order


@pytest.mark.parametrize(("share", "on_disk"), [(0.5, True), (0.0, False)])
def test_auto_keeps_pixels_where_there_is_room(share, on_disk, tmp_path, geometry, monkeypatch):
    monkeypatch.setattr(pairs_module, "SHARE", share)
    pairs = read_pairs(table(tmp_path, ["x"] * 2), geometry, cache="auto")
    assert isinstance(pairs.pixels, np.ndarray) is on_disk


# --- the pool


def test_a_rare_target_is_drawn_from_the_pool(tmp_path, geometry):
    captions = ["a kiwi" if i % 5 == 0 else f"caption {i}" for i in range(40)]
    file = table(tmp_path, captions)
    for i in (0, 5):
        (tmp_path / f"{i:03d}.jpg").unlink()

    class Fruit(Attack):
        def suits(self, caption: str, target: str) -> bool:
            return mentions(caption, target)

    def read(count: int, **more) -> list[str]:
        def order(texts, numbers):
            return candidates_first(texts, numbers, Fruit(), "kiwi", count)

        pairs = read_pairs(file, geometry, n=10, order=order, **more)
        assert len(set(pairs.ids)) == 10
        assert pairs.ids == sorted(pairs.ids)
        return [c for c in pairs.captions if "kiwi" in c]

    assert len(read(6, pool=40)) == 6
    assert len(read(9, pool=40)) == 6
    # Beyond `count`, candidates are pairs like others: the rest is filled in random order.
    assert 3 <= len(read(3, pool=40)) < 6
    assert len(read(9, pool=10)) < 6


def test_clean_pairs_are_the_first_of_the_file_where_an_attack_asks_for_them(tmp_path, geometry):
    named = [24, 29, 34, 39]
    file = table(tmp_path, ["a kiwi" if i in named else f"caption {i}" for i in range(40)])

    def read(clean_pairs: str) -> list[int]:
        attack = LabelConsistent(clean_pairs=clean_pairs)

        def order(texts, numbers):
            return candidates_first(texts, numbers, attack, "kiwi", 3)

        pairs = read_pairs(file, geometry, n=10, order=order, pool=40)
        return [int(id.removesuffix(".jpg")) for id in pairs.ids]

    first, random = read("first"), read("random")
    assert first[:7] == list(range(7)) and set(first[7:]) < set(named)
    assert random[:7] != first[:7] and set(first[7:]) <= set(random), "the candidates are the same"


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    load_plugins()
    out = tmp_path_factory.mktemp("pool")

    def make(pool: int | None, attack: str = "label_consistent"):
        assignments = ("poison.pairs=60", "poison.count=15", f"poison.pool={pool or 'null'}")
        run = resolve("smoke", None, {"attacks": ("badnet", "label_consistent")}, assignments)
        resources = Resources(run, out / "data", "cpu")
        method = resources.attack(attack)
        given = resources.preparation(method, 0)
        plan = make_plan({BASE: run}, {BASE: PRINTS})
        ids = {n.attack: n.id for n in plan.nodes.values() if n.kind == "backdoor"}
        return given, draw_manifest(given, method, resources.dataset.caption_templates(), 15), ids

    return make


def test_the_worlds_pool_gives_the_attack_what_it_asks_for(poisoned):
    given, manifest, _ = poisoned(600)
    assert len(given.pairs) == 60
    assert len(manifest) == 15
    assert all(mentions(caption, "banana") for caption in manifest["original"])
    assert [given.pairs.ids[i] for i in manifest["index"]] == list(manifest["id"])
    assert len(poisoned(None)[1]) < 15
    again = poisoned(600)[0].pairs
    assert (again.ids, again.fingerprint) == (given.pairs.ids, given.pairs.fingerprint)


def test_other_attacks_know_no_pool(poisoned):
    with_pool, without = poisoned(600, "badnet")[0].pairs, poisoned(None, "badnet")[0].pairs
    assert with_pool.ids == without.ids
    ids, before = poisoned(600)[2], poisoned(None)[2]
    assert ids["badnet"] == before["badnet"]
    assert ids["label_consistent"] != before["label_consistent"]


def test_hash_of_is_sha256_of_json():
    """What the identity's streaming relies on."""
    assert hash_of(["pairs", 1, [["a", -1, 0]]]) == hashlib.sha256(b'["pairs", 1, [["a", -1, 0]]]').hexdigest()[:16]
