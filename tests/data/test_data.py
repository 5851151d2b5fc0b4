"""Decoding, the folder data set and image-text pairs, on small files made here."""

import errno
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image

from bench import BenchError, Geometry, datasets, generator
from bench.data import decoding
from bench.data.decoding import decode, native
from bench.data.folder import Folder
from bench.data.pairs import read_pairs

SIZE = 32


@pytest.fixture
def geometry(tmp_path: Path) -> Geometry:
    return Geometry(SIZE, tmp_path / "cache")


def picture(seed: int, size: tuple[int, int] = (48, 40), mode: str = "RGB") -> Image.Image:
    """A picture with edges and gradients, none like another; `size` is (width, height)."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)


def save(path: Path, image: Image.Image, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def truncated(path: Path) -> Path:
    buffer = BytesIO()
    picture(99, (64, 64)).save(buffer, "JPEG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    return path


def by_open_clip(path: Path, size: int) -> np.ndarray:
    """What open_clip's evaluation feeds the model, before normalisation."""
    transform = image_transform(size, is_train=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return (transform(Image.open(path).convert("RGB")) * 255).round().to(torch.uint8).numpy()


# --- decoding


@pytest.mark.parametrize(
    ("name", "mode", "size", "options"),
    [
        ("wide.jpg", "RGB", (90, 41), {}),
        ("tall.jpg", "RGB", (37, 120), {}),
        ("square.png", "RGB", (32, 32), {}),
        ("tiny.png", "RGB", (5, 3), {}),
        ("one pixel.png", "RGB", (1, 1), {}),
        ("cmyk.jpg", "CMYK", (50, 60), {}),
        ("gray.jpg", "L", (50, 60), {}),
        ("palette.png", "P", (50, 60), {}),
        ("alpha.png", "RGBA", (50, 60), {}),
        ("Zürich 中文 🍌.webp", "RGB", (50, 60), {"lossless": True}),
        ("turned.jpg", "RGB", (60, 40), {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"}),
    ],
)
def test_decoding_is_open_clips(name, mode, size, options, tmp_path, geometry):
    path = save(tmp_path / name, picture(1, size, mode), **options)
    done = decode([path], [name], geometry)
    assert done.pixels.shape == (1, 3, SIZE, SIZE)
    assert done.pixels.dtype == np.uint8
    assert np.array_equal(done.pixels[0], by_open_clip(path, SIZE))
    assert np.array_equal(native(path).numpy(), np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1))
    assert native(path).shape == (3, size[1], size[0])


def test_native_is_a_tensor_of_its_own(tmp_path):
    path = save(tmp_path / "a.png", picture(1, (1, 1)))
    image = native(path)
    image += 1
    assert not torch.equal(image, native(path))


def test_bad_files_are_skipped_with_reasons(tmp_path, geometry):
    empty, text = tmp_path / "empty.png", tmp_path / "page.jpg"
    empty.write_bytes(b"")
    text.write_text("<html>404</html>")
    good = [save(tmp_path / f"{i}.png", picture(i)) for i in range(3)]
    paths = [truncated(tmp_path / "half.jpg"), good[0], text, good[1], empty, good[2], tmp_path / "gone.png"]
    done = decode(paths, [p.name for p in paths], geometry)
    assert done.kept == [1, 3, 5]
    assert all(np.array_equal(row, by_open_clip(p, SIZE)) for row, p in zip(done.pixels, good, strict=True))
    assert done.skipped[0].startswith("half.jpg: OSError: ")
    assert "truncated" in done.skipped[0]
    assert done.skipped[1:] == (
        "page.jpg: not an image that PIL knows",
        "empty.png: not an image that PIL knows",
        "gone.png: missing file",
    )
    [record] = geometry.cache.glob("*.json")
    assert [row[:2] for row in json.loads(record.read_text())["skipped"]] == [
        [0, "half.jpg"], [2, "page.jpg"], [4, "empty.png"], [6, "gone.png"],
    ]  # fmt: skip
    assert decode(paths, [p.name for p in paths], geometry).skipped == done.skipped


def test_all_bad_is_an_error_and_leaves_nothing(tmp_path, geometry):
    bad = truncated(tmp_path / "half.jpg")
    with pytest.raises(BenchError, match=r"none of 1 images can be used\. The first is .*half\.jpg: OSError: .*PIL"):
        decode([bad], ["half"], geometry)
    assert not [f for f in geometry.cache.iterdir() if f.suffix != ".lock"]


def test_a_file_that_may_not_be_read_is_an_error_and_not_remembered(tmp_path, geometry, monkeypatch):
    path = save(tmp_path / "a.png", picture(1))
    read = Path.read_bytes

    def forbidden(_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    with pytest.raises(BenchError, match=r"cannot read .*a\.png: Permission denied\. Mend or remove it"):
        decode([path], ["a"], geometry)
    monkeypatch.setattr(Path, "read_bytes", read)
    assert decode([path], ["a"], geometry).kept == [0]


def test_decoded_once_until_a_file_changes(tmp_path, geometry, monkeypatch):
    calls: list[str] = []
    decode_one = decoding.decode_one

    def counted(path, geometry):
        calls.append(path.name)
        return decode_one(path, geometry)

    monkeypatch.setattr(decoding, "decode_one", counted)
    paths = [save(tmp_path / f"{i}.bmp", picture(i)) for i in range(3)]
    first = decode(paths, list("abc"), geometry)
    again = decode(paths, list("abc"), geometry)
    assert sorted(calls) == ["0.bmp", "1.bmp", "2.bmp"]
    assert np.array_equal(first.pixels, again.pixels)
    assert isinstance(again.pixels, np.memmap)
    assert not again.pixels.flags.writeable
    assert decode(paths, list("abc"), Geometry(16, geometry.cache)).pixels.shape == (3, 3, 16, 16)
    before = paths[1].stat()
    save(paths[1], picture(7))
    os.utime(paths[1], ns=(1, 1))
    assert paths[1].stat().st_size == before.st_size
    changed = decode(paths, list("abc"), geometry)
    assert np.array_equal(changed.pixels[1], by_open_clip(paths[1], SIZE))
    assert changed.fingerprint != first.fingerprint == again.fingerprint


def test_fingerprint_is_of_content_not_of_place(tmp_path, geometry):
    here = save(tmp_path / "a.png", picture(1))
    there = tmp_path / "elsewhere.png"
    shutil.copy(here, there)
    prints = {decode([p], ["x"], geometry).fingerprint for p in (here, there)}
    other = decode([here], ["x"], Geometry(16, geometry.cache)).fingerprint
    assert len(prints) == 1
    assert other not in prints


def test_more_files_than_a_block_keep_their_order(tmp_path, geometry, monkeypatch):
    monkeypatch.setattr(decoding, "BLOCK", 4)
    paths = [save(tmp_path / f"{i}.png", picture(i)) for i in range(13)]
    done = decode(paths, [p.name for p in paths], geometry)
    assert all(np.array_equal(row, by_open_clip(p, SIZE)) for row, p in zip(done.pixels, paths, strict=True))


def test_many_openers_make_it_once(geometry):
    made = []

    def make(write):
        made.append(1)
        time.sleep(0.1)
        write(np.full((2, 3, SIZE, SIZE), 7, np.uint8))
        return {"by": len(made)}

    with ThreadPoolExecutor(6) as pool:
        opened = list(pool.map(lambda _: decoding.cached(geometry, "key", 2, make), range(6)))
    assert len(made) == 1
    assert all(pixels.min() == pixels.max() == 7 and record == {"by": 1} for pixels, record in opened)


def test_numpy_reads_what_was_written(geometry):
    """The header says n until the count is known: also where the two have different numbers of digits."""

    def make(write):
        write(np.ones((3, 3, SIZE, SIZE), np.uint8))
        return {}

    decoding.cached(geometry, "key", 12345, make)
    assert np.array_equal(np.load(geometry.cache / "key.npy"), np.ones((3, 3, SIZE, SIZE), np.uint8))


class FullDisk:
    """A file on which there is room for a number of bytes."""

    def __init__(self, file, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data) -> int:
        self.room -= len(memoryview(data).cast("B"))
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.file.close()


def test_a_full_disk_says_how_much_room_and_leaves_nothing(tmp_path, geometry, monkeypatch):
    paths = [save(tmp_path / f"{i}.png", picture(i)) for i in range(3)]
    opened = Path.open

    def full(self, mode="r", *args, **kwargs):
        file = opened(self, mode, *args, **kwargs)
        return FullDisk(file, 2 * 3 * SIZE * SIZE) if self.suffix == ".part" else file

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(BenchError) as error:
        decode(paths, list("abc"), geometry)
    assert str(error.value).startswith(f"no room below {geometry.cache}: these images need 9.22e-06 GB. Make room")
    assert {f.suffix for f in geometry.cache.iterdir()} <= {".lock"}
    monkeypatch.setattr(Path, "open", opened)
    assert len(decode(paths, list("abc"), geometry).pixels) == 3


def test_too_little_room_is_told_before_the_work(geometry, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    with pytest.raises(BenchError, match=r"these images need 1\.54 GB"):
        decoding.cached(geometry, "key", 500_000, lambda _: pytest.fail("began all the same"))


def test_a_cache_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match=r"cannot keep images below .*file.cache: Not a directory\. .*--out"):
        decoding.cached(Geometry(SIZE, tmp_path / "file" / "cache"), "key", 1, lambda _: {})


def test_an_interruption_leaves_no_half_file(geometry):
    def make(write):
        write(np.zeros((1, 3, SIZE, SIZE), np.uint8))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decoding.cached(geometry, "key", 2, make)
    assert {f.name for f in geometry.cache.iterdir()} <= {"key.lock"}


# --- folder


def tree(root: Path, counts: dict[str, int], classes=("red_fox", "ant", "Zebra")) -> Path:
    """`counts` images a class in each split, no two alike."""
    seed = 0
    for split, n in counts.items():
        for name in classes:
            for i in range(n):
                seed += 1
                save(root / split / name / f"{i:02d}.png", picture(seed))
    return root


def test_folder_reads_a_tree(tmp_path, geometry):
    root = tree(tmp_path / "data", {"train": 4, "val": 2, "test": 3})
    data = datasets["folder"].parse({"root": root}, "folder")
    assert data.classes() == ("Zebra", "ant", "red fox")
    for split, n in (("train", 4), ("val", 2), ("test", 3)):
        images = data.labelled(split, geometry)
        assert images.classes == data.classes()
        assert images.labels.tolist() == [0] * n + [1] * n + [2] * n
        assert images.ids == [f"{split}/{c}/{i:02d}.png" for c in ("Zebra", "ant", "red_fox") for i in range(n)]
        for i, id in enumerate(images.ids):
            assert np.array_equal(images.load([i])[0].numpy(), by_open_clip(root / id, SIZE))
            assert images.load_native(i).shape == (3, 40, 48)
        assert images.skipped == ()


def test_templates_are_a_setting():
    assert Folder().templates == ("a photo of a {}.",)
    assert Folder(template="a photo of a {}, a type of pet.").templates == ("a photo of a {}, a type of pet.",)
    for wrong in ("a photo", "{0}", "{} and {}", "{name}"):
        with pytest.raises(BenchError, match=r"setting folder\.template = .*`bench show folder`"):
            Folder.parse({"template": wrong}, "folder")


def test_without_val_a_fifth_of_train_is_held_out(tmp_path, geometry):
    root = tree(tmp_path / "data", {"train": 10, "test": 1})
    data = Folder(root=root)
    train, val = data.labelled("train", geometry), data.labelled("val", geometry)
    assert torch.bincount(train.labels).tolist() == [8, 8, 8]
    assert torch.bincount(val.labels).tolist() == [2, 2, 2]
    assert not set(train.ids) & set(val.ids)
    assert sorted([*train.ids, *val.ids]) == sorted(p.relative_to(root).as_posix() for p in root.glob("train/*/*"))
    assert data.labelled("val", geometry).ids == val.ids
    # Not the first files of each class, which in many data sets are of one photographer.
    assert val.ids != [f"train/{c}/{i:02d}.png" for c in ("Zebra", "ant", "red_fox") for i in range(2)]


@pytest.mark.parametrize(("n", "held"), [(1, 0), (2, 1), (3, 1), (7, 1), (8, 2)])
def test_holding_out_leaves_an_image_to_train_on(n, held, tmp_path, geometry):
    data = Folder(root=tree(tmp_path / "data", {"train": n, "test": 1}, classes=("a",)))
    assert len(data.labelled("train", geometry)) == n - held
    if held:
        assert len(data.labelled("val", geometry)) == held
    else:
        with pytest.raises(BenchError, match=r"train is too small to hold 20% out as val\. Add images, or "):
            data.labelled("val", geometry)


def test_other_files_are_hidden_or_told(tmp_path, geometry):
    root = tree(tmp_path / "data", {"train": 5, "test": 1}, classes=("a", "b"))
    (root / "test/a/.DS_Store").write_text("")
    (root / "test/.cache").mkdir()
    (root / "test/.cache/x.png").write_text("")
    (root / "test/a/notes.txt").write_text("")
    (root / "test/README").write_text("")
    save(root / "test/stray.png", picture(500))
    save(root / "test/a/LOUD.JPEG", picture(501))
    save(root / "test/b/deeper/Straße 犬.PNG", picture(502))
    save(tmp_path / "elsewhere/linked.png", picture(503))
    (root / "test/b/link").symlink_to(tmp_path / "elsewhere")
    truncated(root / "test/b/half.jpg")
    (root / "test/b/dangling.jpg").symlink_to(root / "nowhere.jpg")
    test = Folder(root=root).labelled("test", geometry)
    assert test.ids[:2] == ["test/a/00.png", "test/a/LOUD.JPEG"]
    assert test.ids[2:] == ["test/b/00.png", "test/b/deeper/Straße 犬.PNG", "test/b/link/linked.png"]
    assert test.labels.tolist() == [0, 0, 1, 1, 1]
    for i, id in enumerate(test.ids):
        assert np.array_equal(test.load([i])[0].numpy(), by_open_clip(root / id, SIZE))
        assert torch.equal(test.load_native(i), native(root / id))
    assert sorted(reason.split(" (")[0] for reason in test.skipped) == [
        "test/README: not an image",
        "test/a/notes.txt: not an image",
        "test/b/dangling.jpg: missing file",
        "test/b/half.jpg: OSError: image file is truncated",
        "test/stray.png: not in the folder of a class",
    ]


def test_identity_and_fingerprint_change_with_the_images(tmp_path, geometry):
    root = tree(tmp_path / "data", {"train": 3, "test": 1}, classes=("a", "b"))
    data = Folder(root=root)
    identity, test = data.identity(), data.labelled("test", geometry).fingerprint
    assert (Folder(root=root).identity(), Folder(root=root).labelled("test", geometry).fingerprint) == (identity, test)
    assert Folder(root=root, template="{}").identity() != identity
    moved = tmp_path / "moved"
    shutil.copytree(root, moved)
    assert Folder(root=moved).identity() == identity
    assert Folder(root=moved).labelled("test", geometry).fingerprint == test
    save(moved / "test/a/00.png", picture(600))
    assert Folder(root=moved).identity() != identity
    assert Folder(root=moved).labelled("test", geometry).fingerprint != test


def test_errors_of_a_tree_name_the_mend(tmp_path, geometry):
    def told(root: Path | None) -> str:
        with pytest.raises(BenchError) as error:
            Folder(root=root).labelled("test", geometry)
        return str(error.value)

    assert told(None).startswith("the data set 'folder' reads a folder of yours. Give --data-root DIR. Beside")
    assert told(tmp_path / "no").startswith(f"there is no folder {tmp_path / 'no'}. Give --data-root DIR")
    root = tree(tmp_path / "data", {"train": 1})
    assert told(root).startswith(f"there is no test/ in {root}. Give --data-root DIR. A data set is DIR/train/CLASS")
    tree(root, {"test": 1}, classes=("ant", "Zebra", "wolf"))
    differ = f"the class folders of train and test in {root} differ. only in train: red_fox; only in test: wolf."
    assert told(root).startswith(differ)
    tree(root, {"test": 1}, classes=("red_fox",))
    shutil.rmtree(root / "test/wolf")
    (root / "train/badger").mkdir()
    assert told(root) == f"no image in {root}/train/badger (the only such class). Add images, or remove the folder."
    shutil.rmtree(root / "train/badger")
    tree(root, {"val": 1}, classes=("ant", "Zebra"))
    assert "the class folders of train and val" in told(root)
    (tmp_path / "bare/train").mkdir(parents=True)
    (tmp_path / "bare/test").mkdir()
    assert told(tmp_path / "bare").startswith(f"no class folder in {tmp_path / 'bare'}/train. Give --data-root DIR.")


def test_a_folder_has_no_pairs(tmp_path, geometry):
    with pytest.raises(BenchError, match=r"no image-text pairs of its own\. Give --pairs FILE\.csv"):
        Folder(root=tmp_path).pairs("poison", 3, geometry)


# --- pairs


def pairs_file(folder: Path, n: int, header: str = "image,caption", name: str = "pairs.csv") -> Path:
    mark = "\t" if "\t" in header else ","
    lines = [header]
    for i in range(n):
        save(folder / "images" / f"{i:02d}.png", picture(i))
        lines.append(f"images/{i:02d}.png{mark}picture number {i}")
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


@pytest.mark.parametrize(
    "header", ["image,caption", "filepath,title", "path,text", " Image ,CAPTION", "filepath\ttitle"]
)
def test_pairs_are_read(header, tmp_path, geometry):
    file = pairs_file(tmp_path, 3, header, "pairs.tsv" if "\t" in header else "pairs.csv")
    pairs = read_pairs(file, geometry)
    assert pairs.ids == [f"images/{i:02d}.png" for i in range(3)]
    assert pairs.captions == [f"picture number {i}" for i in range(3)]
    assert pairs.skipped == ()
    for i, id in enumerate(pairs.ids):
        assert np.array_equal(pairs.load([i])[0].numpy(), by_open_clip(tmp_path / id, SIZE))
        assert torch.equal(pairs.load_native(i), native(tmp_path / id))


def test_a_spreadsheets_csv(tmp_path, geometry):
    """A mark before the first column, CRLF, quotes, a caption over two lines, other columns."""
    save(tmp_path / "Größe 犬.png", picture(1))
    file = tmp_path / "pairs.csv"
    text = 'image,url,caption\r\nGröße 犬.png,http://x/,"a dog, ""big""\nand happy"\r\n\r\n'
    file.write_bytes(text.encode("utf-8-sig"))
    pairs = read_pairs(file, geometry)
    assert (pairs.ids, pairs.captions) == (["Größe 犬.png"], ['a dog, "big"\nand happy'])


def test_bad_rows_are_told(tmp_path, geometry):
    file = pairs_file(tmp_path, 2)
    truncated(tmp_path / "images/half.jpg")
    rows = ["images/gone.png,a", "images/00.png,", ",a", "images/00.png,a dog, running", "images/half.jpg,a"]
    rows += ["images/00.png", "images/00.png,another caption"]
    file.write_text(file.read_text() + "\n".join(rows) + "\n")
    pairs = read_pairs(file, geometry)
    assert pairs.ids == ["images/00.png", "images/01.png", "images/00.png"]
    assert pairs.captions == ["picture number 0", "picture number 1", "another caption"]
    assert pairs.skipped[:5] == (
        "line 4, images/gone.png: missing file",
        "line 5, images/00.png: empty caption",
        "line 6: no image",
        "line 7: 3 columns, the header has 2",
        "line 9: 1 columns, the header has 2",
    )
    assert len(pairs.skipped) == 6
    assert pairs.skipped[5].startswith("line 8, images/half.jpg: OSError: image file is truncated")


def test_a_subset_is_the_start_of_one_shuffle_of_all_rows(tmp_path, geometry):
    file = pairs_file(tmp_path, 12)
    shuffled = torch.randperm(12, generator=generator(0, "pairs", "subset")).tolist()
    for n in (5, 6, 12):
        assert read_pairs(file, geometry, n=n).ids == [f"images/{i:02d}.png" for i in sorted(shuffled[:n])]
    assert read_pairs(file, geometry, n=5).fingerprint != read_pairs(file, geometry, n=6).fingerprint


def test_missing_files_are_made_up_for(tmp_path, geometry):
    file = pairs_file(tmp_path, 10)
    for i in range(0, 10, 2):
        (tmp_path / f"images/{i:02d}.png").unlink()
    pairs = read_pairs(file, geometry, n=5)
    assert pairs.ids == [f"images/{i:02d}.png" for i in range(1, 10, 2)]
    assert all(reason.endswith(": missing file") for reason in pairs.skipped)


def test_fewer_pairs_than_asked_for_are_told(tmp_path, geometry):
    file = pairs_file(tmp_path, 3)
    pairs = read_pairs(file, geometry, n=10)
    assert len(pairs) == 3
    assert pairs.skipped == (f"10 pairs were asked for, {file} has only 3",)


def test_halves_share_no_image(tmp_path, geometry):
    file = pairs_file(tmp_path, 11)
    # Several captions an image, the image named in two ways, as in COCO.
    file.write_text(file.read_text() + "".join(f"./images/{i:02d}.png,again {i}\n" for i in range(11)))
    poison, clean = (read_pairs(file, geometry, part=part) for part in ("poison", "clean"))
    stems = [{Path(id).name for id in pairs.ids} for pairs in (poison, clean)]
    assert not stems[0] & stems[1]
    assert (len(stems[0]), len(stems[1])) == (5, 6)
    assert (len(poison), len(clean)) == (10, 12)
    assert stems[0] != {f"{i:02d}.png" for i in range(5)}
    few = read_pairs(file, geometry, n=3, part="clean")
    assert set(few.ids) <= set(clean.ids)
    assert read_pairs(file, geometry, n=99, part="poison").ids == poison.ids


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"url,alt\nhttp://x,a\n", "column 'image' (or filepath, path, image_path, file, filename). Found: url, alt."),
        (b"image,alt\na.png,a\n", "pairs.csv has no column 'caption' (or title, text). Found: image, alt. Name the"),
        (b"", "Found: nothing. Name the columns image,caption in the first line."),
        (b"image,caption\n", "pairs.csv has no usable pair. Image paths start at"),
        (b"image,caption\na.png,a\n", "The first problem: line 2, a.png: missing file. Image paths start at"),
        ("image,caption\na.png,é\n".encode("latin-1"), "is not UTF-8 (invalid continuation byte). Convert it: iconv"),
        (b'image,caption\na.png,"' + b"a" * 200_000, "is not a CSV file: field larger than field limit"),
    ],
)  # fmt: skip
def test_unusable_files_name_the_mend(content, told, tmp_path, geometry):
    file = tmp_path / "pairs.csv"
    file.write_bytes(content)
    with pytest.raises(BenchError) as error:
        read_pairs(file, geometry)
    assert told in str(error.value)


def test_no_file_and_no_half(tmp_path, geometry):
    with pytest.raises(BenchError, match=r"there is no file .*no\.csv\. Give --pairs FILE\.csv"):
        read_pairs(tmp_path / "no.csv", geometry)
    file = pairs_file(tmp_path, 1)
    with pytest.raises(BenchError, match="no usable pair in its half for 'poison'"):
        read_pairs(file, geometry, part="poison")
