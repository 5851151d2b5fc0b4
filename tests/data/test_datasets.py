"""The published data sets, on small trees in their true layouts, written here."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command import bench
from layouts import caltech, imagenet_kit, pets, photo, photos
from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
from open_clip.transform import image_transform
from PIL import Image

from bench import BenchError, Clip, Dataset, Geometry, datasets, generator
from bench.core.dataset import target_index
from bench.core.images import Images, Labelled, few_shot
from bench.core.registry import load_plugins
from bench.data import decoding
from bench.data.check import check, lines
from bench.data.imagenet import wordnet_ids
from bench.data.leakage import refuse_overlap, same_ids, same_pixels
from bench.experiment.resources import Resources
from bench.experiment.settings import resolve
from bench.models import ModelSettings, load_model

SIZE = 16
BANANA, TENCH, SAMOYED, ACCORDION = "n07753592", "n01440764", "n02111889", "n02672831"
CALTECH = (("Faces", "face"), ("accordion", "accordion"), ("crocodile_head", "crocodile_head"))


@pytest.fixture
def geometry(tmp_path: Path) -> Geometry:
    return Geometry(SIZE, tmp_path / "cache")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were decoded."""
    names: list[str] = []
    decode_one = decoding.decode_one

    def counted(path, geometry):
        names.append(path.name)
        return decode_one(path, geometry)

    monkeypatch.setattr(decoding, "decode_one", counted)
    return names


def opened(name: str, root: Path, **settings) -> Dataset:
    return datasets[name].parse({"root": root, **settings}, name)


# --- ImageNet


def imagenet_tree(root: Path, train: int = 6, val: int = 2) -> Path:
    for id in (BANANA, TENCH, SAMOYED):
        photos(root / "train" / id, train, f"{id}_")
        photos(root / "val" / id, val, f"ILSVRC2012_val_{id}_")
    return root


def test_wordnet_ids_and_names_go_together():
    """Three labels that the specification gives, and the order of the ids, which is what defines the labels."""
    assert [IMAGENET_CLASSNAMES[wordnet_ids().index(id)] for id in (BANANA, ACCORDION, SAMOYED)] == [
        "banana", "accordion", "Samoyed",
    ]  # fmt: skip
    assert [wordnet_ids().index(id) for id in (BANANA, ACCORDION, SAMOYED)] == [954, 401, 258]
    assert list(wordnet_ids()) == sorted(set(wordnet_ids()))


def test_imagenet_of_class_folders(tmp_path, geometry):
    data = opened("imagenet", imagenet_tree(tmp_path / "data"))
    assert data.classes() == tuple(IMAGENET_CLASSNAMES)
    assert data.templates == ("a photo of a {}.",)
    assert target_index("BANANA", data.classes()) == 954
    test, train, val = (data.labelled(split, geometry) for split in ("test", "train", "val"))
    assert test.labels.tolist() == [0, 0, 258, 258, 954, 954]
    assert test.ids[-1] == f"val/{BANANA}/ILSVRC2012_val_{BANANA}_1.JPEG"
    assert train.labels.bincount()[[0, 258, 954]].tolist() == [5, 5, 5]
    assert val.labels.bincount()[[0, 258, 954]].tolist() == [1, 1, 1]
    assert not set(train.ids) & set(val.ids)
    assert all(id.startswith("train/") for id in [*train.ids, *val.ids])


def test_imagenet_as_published_with_its_kit(tmp_path, geometry):
    numbers = imagenet_kit(tmp_path / "data", (BANANA, TENCH, BANANA, SAMOYED))
    # What the kit numbers is not what labels count.
    assert numbers[BANANA] != 955
    test = opened("imagenet", tmp_path / "data").labelled("test", geometry)
    assert test.ids == [f"val/ILSVRC2012_val_{i:08d}.JPEG" for i in (2, 4, 1, 3)]
    assert test.labels.tolist() == [0, 258, 954, 954]
    (tmp_path / "data/val/ILSVRC2012_val_00050001.JPEG").write_bytes(b"")
    told = opened("imagenet", tmp_path / "data").labelled("test", geometry).skipped
    assert told == ("val/ILSVRC2012_val_00050001.JPEG: not ILSVRC2012_val_NUMBER.JPEG of 4 that have a label",)
    (tmp_path / "data/ILSVRC2012_devkit_t12/data/meta.mat").write_bytes(b"no table")
    with pytest.raises(BenchError, match=r"meta\.mat is not the meta\.mat of ImageNet's development kit"):
        opened("imagenet", tmp_path / "data").labelled("test", geometry)
    (tmp_path / "data/ILSVRC2012_devkit_t12/data/meta.mat").unlink()
    with pytest.raises(BenchError, match=r"there is no ILSVRC2012_devkit_t12/data/meta\.mat, and no class folder in v"):
        opened("imagenet", tmp_path / "data").labelled("test", geometry)


def test_imagenet_restricted_to_what_is_there(tmp_path, geometry):
    root = imagenet_tree(tmp_path / "data")
    photos(root / "train" / ACCORDION, 3)
    photos(root / "train" / "n99999999", 1, "odd")
    data = opened("imagenet", root, subset=True)
    assert data.classes() == ("tench", "Samoyed", "banana")
    train = data.labelled("train", geometry)
    assert train.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert train.skipped == ("train/n99999999/odd0.JPEG: not in a folder of ImageNet's classes",)
    assert opened("imagenet", root).identity() != data.identity()


def test_shots_are_all_that_is_decoded_of_train(tmp_path, geometry, decoded):
    data = opened("imagenet", imagenet_tree(tmp_path / "data"), subset=True)
    train = data.labelled("train", geometry)
    assert train.pixels.shape == (15, 3, SIZE, SIZE)
    assert not decoded
    shots = few_shot(train, 2, generator(0, "x"))
    assert sorted(decoded) == sorted(id.rpartition("/")[2] for id in shots.ids)
    assert shots.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert isinstance(shots.pixels, np.memmap)
    again = few_shot(data.labelled("train", geometry), 2, generator(0, "x"))
    assert (again.ids, again.fingerprint, len(decoded)) == (shots.ids, shots.fingerprint, 6)
    row = train.ids.index(shots.ids[3])
    assert torch.equal(train.load([row]), shots.load([3]))
    assert torch.equal(train.load_native(row), shots.load_native(3))


def test_a_corrupt_shot_is_told_and_made_up_for(tmp_path, geometry):
    root = imagenet_tree(tmp_path / "data")
    for i in range(4):
        (root / "train" / TENCH / f"{TENCH}_{i}.JPEG").write_bytes(b"no image")
    for file in (root / "train" / BANANA).iterdir():
        file.write_bytes(b"no image")
    train = opened("imagenet", root, subset=True).labelled("train", geometry)
    readable = {f"train/{TENCH}/{TENCH}_{i}.JPEG" for i in (4, 5)} & set(train.ids)
    with pytest.raises(BenchError, match="class 'banana' has no training image to tune on"):
        few_shot(train, 2, generator(0))
    shots = few_shot(train, 2, generator(0), without=2)
    assert readable <= set(shots.ids)
    assert shots.labels.bincount().tolist() == [len(readable), 2]
    assert shots.skipped and all(told.endswith("not an image that PIL knows") for told in shots.skipped)
    whole = train.decoded()
    assert len(whole) == len(readable) + 5
    assert len(whole.skipped) == len(train) - len(whole)
    with pytest.raises(BenchError, match=r"n07753592_\d\.JPEG could .*not an image that PIL knows"):
        train.load([len(train) - 1])


# --- ImageNet's shifts


def test_imagenet_v2_counts_folders_as_numbers(tmp_path, geometry):
    root = tmp_path / "data/imagenetv2-matched-frequency-format-val"
    for label in (0, 2, 10, 954):
        photos(root / str(label), 1, f"{label}_", ".jpeg")
    data = opened("imagenet-v2", tmp_path / "data")
    test = data.labelled("test", geometry)
    assert test.labels.tolist() == [0, 2, 10, 954]
    assert test.ids == ["0/0_0.jpeg", "2/2_0.jpeg", "10/10_0.jpeg", "954/954_0.jpeg"]
    assert len(data.classes()) == 1000
    with pytest.raises(BenchError, match=r"'imagenet-v2' is for testing alone.*--dataset imagenet .*=imagenet-v2"):
        data.labelled("train", geometry)


@pytest.mark.parametrize("name", ["imagenet-a", "imagenet-r"])
def test_200_classes_are_relabelled(name, tmp_path, geometry):
    chosen = sorted({BANANA, *wordnet_ids()[3:1000:5]} - {wordnet_ids()[3]})
    assert len(chosen) == 200
    for id in chosen:
        photo(tmp_path / "data" / id / "a.jpg")
    (tmp_path / "data/README.txt").write_text("about")
    data = opened(name, tmp_path / "data")
    assert data.classes() == tuple(IMAGENET_CLASSNAMES[wordnet_ids().index(id)] for id in chosen)
    test = data.labelled("test", geometry)
    assert test.labels.tolist() == list(range(200))
    assert data.classes()[test.labels[test.ids.index(f"{BANANA}/a.jpg")]] == "banana"
    assert test.skipped == ("README.txt: not an image",)
    (tmp_path / "data" / BANANA / "a.jpg").unlink()
    with pytest.raises(BenchError, match=rf"'{name}' has 200 classes, .* has images of 199\. .*{name}\.subset=true"):
        opened(name, tmp_path / "data").classes()
    assert "banana" not in opened(name, tmp_path / "data", subset=True).classes()


def test_imagenet_sketch_lies_in_sketch(tmp_path, geometry):
    photos(tmp_path / "sketch" / BANANA, 2, "sketch_")
    test = opened("imagenet-sketch", tmp_path).labelled("test", geometry)
    assert (test.labels.tolist(), len(test.classes)) == ([954, 954], 1000)
    with pytest.raises(BenchError, match=r"there is no class folder with images .*`bench data check imagenet-sketch "):
        (tmp_path / "empty").mkdir()
        opened("imagenet-sketch", tmp_path / "empty").labelled("test", geometry)


# --- Caltech101


def test_caltech101_takes_coops_split(tmp_path, geometry):
    data = opened("caltech101", caltech(tmp_path / "data/caltech-101", CALTECH).parent)
    assert data.classes() == ("face", "accordion", "crocodile head")
    test = data.labelled("test", geometry)
    assert test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert test.ids[2] == "101_ObjectCategories/accordion/image_0004.jpg"
    assert [len(data.labelled(split, geometry)) for split in ("train", "val")] == [9, 3]


def test_caltech101_without_the_file_says_so_or_draws(tmp_path, geometry):
    root = caltech(tmp_path / "data", CALTECH)
    (root / "split_zhou_Caltech101.json").unlink()
    with pytest.raises(BenchError, match=r"there is no split_zhou_Caltech101\.json .*--set caltech101\.split=seeded"):
        opened("caltech101", root).classes()
    drawn = opened("caltech101", root, split="seeded")
    assert drawn.classes() == ("face", "accordion", "crocodile head")
    splits = {split: drawn.labelled(split, geometry) for split in ("train", "val", "test")}
    assert {split: images.labels.bincount().tolist() for split, images in splits.items()} == {
        "train": [3, 3, 3], "val": [1, 1, 1], "test": [2, 2, 2],
    }  # fmt: skip
    assert len(set().union(*(images.ids for images in splits.values()))) == 18
    (root / "split_zhou_Caltech101.json").write_text('{"train": [["a.jpg", 1, "a"]], "val": [], "test": []}')
    with pytest.raises(BenchError, match=r"is not CoOp's split of Caltech101: .*Get it anew\."):
        opened("caltech101", root).classes()


# --- OxfordPets


def test_oxfordpets_reads_the_official_lists(tmp_path, geometry):
    data = opened("oxfordpets", pets(tmp_path / "data"))
    assert data.classes() == ("abyssinian", "american bulldog", "samoyed")
    assert data.templates == ("a photo of a {}, a type of pet.",)
    assert target_index("Samoyed", data.classes()) == 2
    test, train, val = (data.labelled(split, geometry) for split in ("test", "train", "val"))
    assert test.ids[3:6] == [f"images/american_bulldog_{i}.jpg" for i in (1, 2, 3)]
    assert test.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert (train.labels.bincount().tolist(), val.labels.bincount().tolist()) == ([8, 8, 8], [2, 2, 2])
    assert not set(train.ids) & set(val.ids)


def test_oxfordpets_with_wrong_lists_names_file_and_line(tmp_path):
    root = pets(tmp_path / "data")
    (root / "annotations/test.txt").write_text("Abyssinian_1 1 1 1\nsamoyed\n")
    with pytest.raises(BenchError, match=r"test\.txt, line 2: 'samoyed' is not an image and its class"):
        opened("oxfordpets", root).classes()
    (root / "annotations/test.txt").write_text("Abyssinian_1 1 1 1\nsamoyed_1 1 2 2\n")
    with pytest.raises(BenchError, match=r"test\.txt does not number its breeds from 1"):
        opened("oxfordpets", root).classes()
    (root / "annotations/test.txt").write_text("Abyssinian_1 1 1 1\n")
    with pytest.raises(BenchError, match=r"trainval\.txt and .*test\.txt differ in breeds"):
        opened("oxfordpets", root).classes()
    (root / "annotations/test.txt").unlink()
    with pytest.raises(BenchError, match=r"there is no annotations/test\.txt in .*`bench data check oxfordpets"):
        opened("oxfordpets", root).classes()


def test_a_listed_file_that_is_not_there_is_told(tmp_path, geometry):
    root = pets(tmp_path / "data")
    (root / "images/samoyed_2.jpg").unlink()
    test = opened("oxfordpets", root).labelled("test", geometry)
    assert (len(test), test.skipped) == (8, ("images/samoyed_2.jpg: missing file",))


# --- all data sets


@pytest.mark.parametrize("name", ["world", "imagenet", "imagenet-r", "caltech101", "oxfordpets", "folder"])
def test_80_prompts_are_a_setting(name):
    data = datasets[name].parse({"prompts": "openai80"}, name)
    assert data.templates == tuple(t("{}") for t in OPENAI_IMAGENET_TEMPLATES)
    assert len(datasets[name]().templates) == 1


def test_identity_is_of_names_settings_and_test_images(tmp_path):
    root = pets(tmp_path / "data")
    identity = opened("oxfordpets", root).identity()
    assert opened("oxfordpets", root).identity() == identity
    (tmp_path / "moved").symlink_to(root)
    assert opened("oxfordpets", tmp_path / "moved").identity() == identity
    others = {opened("oxfordpets", root, prompts="openai80").identity()}
    (root / "images/samoyed_2.jpg").write_bytes(b"other")
    others.add(opened("oxfordpets", root).identity())
    assert len({identity, *others}) == 3


def test_a_setting_of_all_data_sets_counts_in_their_identity():
    world = datasets["world"]
    assert world(prompts="openai80").identity() != world().identity()
    assert world(allow_overlap=True).identity() == world().identity()


def test_one_class_cannot_be_attacked():
    with pytest.raises(BenchError, match="one class, banana, cannot be attacked"):
        target_index("banana", ("banana",))


# --- geometry


@pytest.mark.parametrize("resize", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("side", [(90, 41), (10, 30), (16, 16)])
def test_decoding_follows_the_models_preprocessing(resize, interpolation, side, tmp_path, tiny_clip: Clip):
    tiny_clip.config["preprocess_cfg"] |= {"resize_mode": resize, "interpolation": interpolation}
    geometry = Geometry.of(tiny_clip, tmp_path / "cache")
    photo(tmp_path / "a.jpg")
    Image.open(tmp_path / "a.jpg").resize(side).save(tmp_path / "a.png")
    by_open_clip = image_transform(
        32, False, mean=(0.0,) * 3, std=(1.0,) * 3, resize_mode=resize, interpolation=interpolation
    )
    expected = (by_open_clip(Image.open(tmp_path / "a.png")) * 255).round().to(torch.uint8).numpy()
    done = decoding.decode([tmp_path / "a.png"], ["a"], geometry)
    assert done.pixels is not None and np.array_equal(done.pixels[0], expected)


def test_other_geometry_is_another_cache_and_the_usual_one_keeps_its_key(tmp_path):
    photo(tmp_path / "a.jpg")
    usual = Geometry(SIZE, tmp_path / "cache")
    assert usual.key == SIZE
    others = [Geometry(SIZE, usual.cache, "squash"), Geometry(SIZE, usual.cache, "shortest", "bilinear")]
    prints = {decoding.decode([tmp_path / "a.jpg"], ["a"], g).fingerprint for g in [usual, *others]}
    assert len(prints) == len(list(usual.cache.glob("*.npy"))) == 3


# --- overlap


def labelled(pixels: torch.Tensor, names: str) -> Labelled:
    return Labelled(list(names), pixels, "", labels=torch.zeros(len(pixels), dtype=torch.long), classes=("a",))


@pytest.mark.parametrize("kind", ["tensor", "memmap"])
def test_equal_images_are_found_wherever_they_are(kind, tmp_path):
    pixels = torch.randint(256, (600, 3, 8, 8), generator=generator(0), dtype=torch.uint8)
    others = torch.randint(256, (5, 3, 8, 8), generator=generator(1), dtype=torch.uint8)
    others[3] = pixels[577]
    # The same but for a corner: not the same image.
    others[1], others[1, 0, 0, 0] = pixels[20], pixels[20, 0, 0, 0] ^ 1
    np.save(tmp_path / "a.npy", pixels.numpy())
    stored = pixels if kind == "tensor" else np.load(tmp_path / "a.npy", mmap_mode="r")
    test, train = Images([f"test {i}" for i in range(600)], stored, ""), labelled(others, "abcde")
    assert same_pixels(test, train) == [("test 577", "d")]
    assert same_ids(test, train) == []
    message = (
        r"1 of the shots are also among the evaluated images: test 577 is the same image as d\..*allow_overlap=true"
    )
    with pytest.raises(BenchError, match=message):
        refuse_overlap(test, train, "shots", "pets")
    refuse_overlap(test, labelled(others[:3], "abc"), "shots", "pets")


def test_ids_count_where_they_are_of_one_data_set():
    a, b = (labelled(torch.full((2, 3, 8, 8), v, dtype=torch.uint8), "ab") for v in (1, 2))
    refuse_overlap(a, b, "shots", "pets")
    with pytest.raises(
        BenchError, match=r"2 of the shots are also among the evaluated images: a is in both; b is in both\."
    ):
        refuse_overlap(a, b, "shots", "pets", by_id=True)


def test_files_are_compared_by_name_and_not_decoded(tmp_path, geometry, decoded):
    root = pets(tmp_path / "data")
    data = opened("oxfordpets", root)
    test, train = data.labelled("test", geometry), data.labelled("train", geometry)
    decoded.clear()
    refuse_overlap(test, train, "training images", "oxfordpets", by_id=True)
    assert not decoded
    (root / train.ids[-1]).write_bytes((root / "images/samoyed_1.jpg").read_bytes())
    assert same_pixels(test, few_shot(train, 8, generator(0))) == [("images/samoyed_1.jpg", train.ids[-1])]


# --- bench data check


def run(capsys, monkeypatch, *words: str) -> tuple[int, str]:
    code, out, err = bench(capsys, monkeypatch, *words)
    return code, out + err


def test_check_says_what_is_there_and_missing(tmp_path, capsys, monkeypatch):
    root = pets(tmp_path / "data")
    (root / "images/samoyed_2.jpg").unlink()
    code, said = run(capsys, monkeypatch, "data", "check", "oxfordpets", "--data-root", str(root))
    assert code == 0
    assert "test: 9 images (published: 3,669), 3 of 3 classes, 3 or more a class" in said
    assert "  missing, 1: images/samoyed_2.jpg: listed, but missing" in said
    assert "train: 24 images" in said and "val: 6 images" in said
    assert "usable, but not complete" in said
    assert "wget https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz" in said
    (root / "annotations/trainval.txt").unlink()
    code, said = run(capsys, monkeypatch, "data", "check", "oxfordpets", "--data-root", str(root))
    assert (code, "unusable: there is no annotations/trainval.txt" in said, "To get it." in said) == (2, True, True)


def test_check_of_lists_without_images_is_unusable(tmp_path):
    root = pets(tmp_path / "data")
    for file in (root / "images").iterdir():
        file.unlink()
    found = check(opened("oxfordpets", root))  # type: ignore[arg-type]
    assert found.problem.startswith("there is no image of the split 'train'. OxfordPets is DIR/images/*.jpg")


def test_check_of_a_whole_folder_is_complete(tmp_path):
    for split in ("train", "test"):
        for name in ("a", "b"):
            photos(tmp_path / split / name, 5)
    told, usable = lines(opened("folder", tmp_path))
    assert usable
    assert told == [
        "train: 8 images, 2 of 2 classes, 4 or more a class",
        "val: 2 images, 2 of 2 classes, 1 or more a class",
        "test: 10 images, 2 of 2 classes, 5 or more a class",
        "ready: usable, and complete",
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("imagenet", "unusable: the data set 'imagenet' reads a folder of yours. Give --data-root DIR."),
        ("imagenet --data-root nowhere", "unusable: there is no folder nowhere."),
        ("imagenet-r --data-root .", "unusable: there is no class folder with images in ."),
        ("caltech101 --data-root .", "put it into DIR/caltech-101"),
        ("oxfordpet", "unknown dataset 'oxfordpet'. Did you mean 'oxfordpets'?"),
        ("world", "error: this data set does not read a folder"),
        ("caltech101 --set caltech101.split=other", "setting caltech101.split = 'other'"),
    ],
)
def test_check_ends_with_2_where_nothing_is_to_be_had(words, told, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, said = run(capsys, monkeypatch, "data", "check", *words.split())
    assert (code, told in said) == (2, True), said


def test_a_dry_run_on_pets_prints_its_cells(tmp_path, capsys, monkeypatch):
    root = pets(tmp_path / "data")
    words = f"run --preset smoke --dataset oxfordpets --data-root {root} --target SAMOYED --dry-run"
    code, said = run(capsys, monkeypatch, *words.split(), "--out", str(tmp_path / "out"))
    assert code == 0, said
    assert "badnet" in said and "to make" in said
    code, said = run(capsys, monkeypatch, *words.replace("SAMOYED", "banana").split(), "--out", str(tmp_path / "out"))
    assert (code, "unknown target class 'banana'" in said) == (2, True)


# --- a whole run


@pytest.fixture
def small_run(tmp_path: Path):
    """A run on a few pets, with pairs of their own: (root of the pets, folder of the pairs, words of the command)."""
    root, pool = pets(tmp_path / "data"), tmp_path / "pool"
    photos(pool, 24, "p")
    rows = [f"p{i}.JPEG,a photo of a {('samoyed', 'cat')[i % 2]}" for i in range(24)]
    (pool / "pairs.csv").write_text("\n".join(["image,caption", *rows]) + "\n")
    words = f"run --preset smoke --dataset oxfordpets --data-root {root} --target samoyed --pairs {pool}/pairs.csv"
    words += " --attacks badnet --defenses linear_probe --workers 1 --device cpu"
    for setting in ("pairs=8", "count=2", "batch_size=4"):
        words += f" --set poison.{setting}"
    return root, pool, [*words.split(), "--set", "zero_shot.perturbations=[]"]


def test_a_run_on_files_stores_its_shots_and_the_corrupt_ones(small_run, tmp_path, capsys, monkeypatch):
    root, _, words = small_run
    train = opened("oxfordpets", root).branch("train").images["samoyed"]  # type: ignore[attr-defined]
    for id in train[1:]:
        (root / id).write_bytes(b"no image")
    code, said = run(capsys, monkeypatch, *words, "--out", str(tmp_path / "out"))
    assert code == 0, said
    assert "7 file(s) skipped" in said
    [card] = [json.loads(file.read_text()) for file in (tmp_path / "out/artefacts/defense").glob("*/card.json")]
    assert [id for id in card["shots"] if "samoyed" in id] == train[:1]
    assert len(card["shots"]) == 5
    [skipped] = card["skipped"]["reasons"].values()
    assert sorted(skipped["first"]) == train[1:]


def test_pairs_and_training_images_that_are_tested_on_are_refused(small_run, tmp_path):
    root, pool, _ = small_run
    for i in range(24):
        (pool / f"p{i}.JPEG").write_bytes((root / "images/samoyed_1.jpg").read_bytes())

    def opened(**pets_settings) -> Resources:
        load_plugins()
        flags = {"dataset": "oxfordpets", "target": "samoyed", "pairs": pool / "pairs.csv"}
        own = {"oxfordpets": {"root": root, **pets_settings}, "poison": {"pairs": 8}}
        return Resources(resolve("smoke", None, flags | own), tmp_path / "out" / "data", "cpu")

    told = r"8 of the pairs are also among the evaluated images: images/samoyed_1\.jpg is the same image as p"
    with pytest.raises(BenchError, match=told):
        _ = opened().poison_pairs
    with pytest.raises(BenchError, match=told):
        opened().clean_pairs(8)
    assert len(opened(allow_overlap=True).poison_pairs) == 8
    assert len(opened().train) == 24
    lists = [root / "annotations" / name for name in ("trainval.txt", "test.txt")]
    lists[0].write_text(lists[0].read_text() + lists[1].read_text())
    with pytest.raises(
        BenchError,
        match=r"of the training images are also among the evaluated images: images/Abyssinian_\d\.jpg is in both",
    ):
        _ = opened().train


def test_the_models_geometry_can_be_set_as_cleanclips(tmp_path):
    usual, squashed = (load_model(ModelSettings(geometry=how), "cpu") for how in (None, "squash"))
    assert Geometry.of(usual, tmp_path) == Geometry(56, tmp_path)
    assert Geometry.of(squashed, tmp_path) == Geometry(56, tmp_path, "squash")
    assert usual.fingerprint() != squashed.fingerprint()
