"""The whole chain by the command line: checkpoint file, poisoning, defense, evaluation, table; at ViT-B/32's size.

On 20 photos a class in the layouts as published. Of ImageNet's 1,000 classes ten are there, and scored alone. Two
attacks share a table there; one is made on the other data sets, whose many classes take long to embed.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import pandas as pd
import pytest
import torch
from command import bench
from layouts import caltech, imagenet_kit, pets, photo, photos
from open_clip import IMAGENET_CLASSNAMES
from PIL import Image
from safetensors import safe_open
from torch import nn

from bench.data.imagenet import wordnet_ids
from bench.results.folder import ResultsFolder
from bench.results.tidy import NUMBERS
from reports.files import read_table

pytestmark = pytest.mark.slow

LABELS = (0, 100, 207, 258, 401, 504, 637, 751, 849, 954)
CALTECH = """
    Faces Leopards Motorbikes accordion airplanes anchor ant barrel bass beaver binocular bonsai brain brontosaurus
    buddha butterfly camera cannon car_side ceiling_fan cellphone chair chandelier cougar_body cougar_face crab
    crayfish crocodile crocodile_head cup dalmatian dollar_bill dolphin dragonfly electric_guitar elephant emu
    euphonium ewer ferry flamingo flamingo_head garfield gerenuk gramophone grand_piano hawksbill headphone hedgehog
    helicopter ibis inline_skate joshua_tree kangaroo ketch lamp laptop llama lobster lotus mandolin mayfly menorah
    metronome minaret nautilus octopus okapi pagoda panda pigeon pizza platypus pyramid revolver rhino rooster
    saxophone schooner scissors scorpion sea_horse snoopy soccer_ball stapler starfish stegosaurus stop_sign
    strawberry sunflower tick trilobite umbrella watch water_lilly wheelchair wild_cat windsor_chair wrench yin_yang
"""
SINGULAR = {"Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike", "airplanes": "airplane"}
PETS = """
    Abyssinian american_bulldog american_pit_bull_terrier basset_hound beagle Bengal Birman Bombay boxer
    British_Shorthair chihuahua Egyptian_Mau english_cocker_spaniel english_setter german_shorthaired great_pyrenees
    havanese japanese_chin keeshond leonberger Maine_Coon miniature_pinscher newfoundland Persian pomeranian pug Ragdoll
    Russian_Blue saint_bernard samoyed scottish_terrier shiba_inu Siamese Sphynx staffordshire_bull_terrier
    wheaten_terrier yorkshire_terrier
"""

PER_CLASS, EVALUATED, RATE = 20, 16, 1e-5
NONE = {"count": 0, "reasons": {}}
ROWS = ("clean_model", "none", "rvpt")
SETTINGS = [
    "poison.pairs=4", "poison.count=1", "poison.batch_size=4", "poison.epochs=1", f"poison.learning_rate={RATE}",
    "rvpt.shots=1", "rvpt.epochs=1", "rvpt.warmup_epochs=0", "rvpt.prompts=4", "rvpt.depth=11",
    f"evaluate.limit={EVALUATED}", "zero_shot.perturbations=[trigger]",
]  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """A data set on disk: its classes in the order of the labels, and the class of a photo by its id."""

    dataset: str
    target: str
    classes: tuple[str, ...]
    truth: Callable[[str], str]
    prompt: str = "a photo of a {}."
    settings: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ("badnet",)


def imagenet(root: Path) -> Layout:
    """As published: a folder a class in train, val flat with its development kit."""
    ids = [wordnet_ids()[label] for label in LABELS]
    for id in ids:
        photos(root / "train" / id, 16, f"{id}_")
    names = {id: IMAGENET_CLASSNAMES[label] for id, label in zip(ids, LABELS, strict=True)}
    order = [*ids, *reversed(ids)] * 2
    imagenet_kit(root, order)

    def truth(id: str) -> str:
        return names[id.split("/")[1] if id.startswith("train/") else order[int(id[-13:-5]) - 1]]

    return Layout(
        "imagenet",
        "banana",
        tuple(names.values()),
        truth,
        settings=("imagenet.subset=true",),
        attacks=("badnet", "blended"),
    )


def caltech101(root: Path) -> Layout:
    """The 100 classes in CoOp's split, half of the photos for training, 30 % for the test."""
    names = {folder: SINGULAR.get(folder, folder) for folder in CALTECH.split()}
    caltech(root / "caltech-101", tuple(names.items()), train=10, val=4, test=6)
    classes = tuple(name.replace("_", " ") for name in names.values())
    return Layout("caltech101", "motorbike", classes, lambda id: names[Path(id).parent.name].replace("_", " "))


def oxfordpets(root: Path) -> Layout:
    """The 37 breeds in the official lists, which are of one length."""
    pets(root, trainval=10, test=10, breeds=PETS.split())
    names = {breed: breed.lower().replace("_", " ") for breed in PETS.split()}
    prompt = "a photo of a {}, a type of pet."
    classes = tuple(names.values())
    return Layout("oxfordpets", "birman", classes, lambda id: names[Path(id).stem.rpartition("_")[0]], prompt)


@pytest.fixture(scope="module")
def clip() -> nn.Module:
    """OpenAI's ViT-B/32 with random weights. Tokens start from the patches alone, so that images differ enough."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = open_clip.create_model("ViT-B-32-quickgelu")
    with torch.no_grad():
        model.visual.class_embedding.zero_()
        model.visual.positional_embedding.zero_()
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(clip: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    file = tmp_path_factory.mktemp("training") / "epoch_3.pt"
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": w for name, w in clip.state_dict().items()}}, file)
    yield file
    file.unlink()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CleanCLIP's columns: 16 pairs, and a line without a caption."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = [f"images/{i}.jpg,a dog by the river on day {i}" for i in range(16)]
    for i in range(17):
        photo(folder / f"images/{i}.jpg")
    (folder / "train.csv").write_text("\n".join(["image,caption", *rows, "images/16.jpg,"]) + "\n")
    return folder / "train.csv"


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "results"
    # Each backdoored model is 600 MB, and pytest keeps its folders.
    shutil.rmtree(tmp_path / "results", ignore_errors=True)


@pytest.mark.parametrize("make", [imagenet, caltech101, oxfordpets])
def test_the_chain_ends_in_a_table(make, tmp_path, out, clip, checkpoint, pairs, capsys, monkeypatch) -> None:
    layout: Layout = make(tmp_path / "data")
    where = ["--data-root", str(tmp_path / "data"), *flags(layout.settings)]
    code, said, _ = bench(capsys, monkeypatch, "data", "check", layout.dataset, *where)
    assert code == 0
    assert photos_told(said, len(layout.classes)) == PER_CLASS * len(layout.classes)

    words = ["run", "--preset", "vit-b-32", "--model", "ViT-B-32", "--pretrained", "openai"]
    words += ["--checkpoint", str(checkpoint), "--dataset", layout.dataset, *where, "--target", layout.target]
    words += ["--pairs", str(pairs), "--attacks", ",".join(layout.attacks), "--defenses", "none,rvpt", *flags(SETTINGS)]
    words += ["--workers", "1", "--device", "cpu", "--out", str(out)]
    code, said, error = bench(capsys, monkeypatch, *words)
    assert code == 0, said + error
    check_results(out, layout)
    check_table(out, layout)
    check_cards(out, layout, clip)
    check_clean_predictions(out, layout, clip, tmp_path / "data")


def flags(settings) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def photos_told(said: str, classes: int) -> int:
    """How many photos `bench data check` finds in the three splits, all classes in each."""
    splits = [line for line in said.splitlines() if f", {classes} of {classes} classes, " in line]
    assert [line.partition(":")[0] for line in splits] == ["train", "val", "test"]
    return sum(int(line.split()[1].replace(",", "")) for line in splits)


def check_results(out: Path, layout: Layout) -> None:
    """Every planned cell has its numbers, counted over the images that they are defined on."""
    results = read_table(out / "results.csv", NUMBERS)
    cells = [(attack, defense) for attack in layout.attacks for defense in ROWS]
    planned = ResultsFolder(out).run.cells
    assert [(cell.attack, cell.defense) for cell in planned] == cells
    seen = pd.read_parquet(out / "predictions.parquet")
    for attack, defense in cells:
        shown = results[(results["attack"] == attack) & (results["defense"] == defense)].set_index("metric")
        rows = seen[(seen["attack"] == attack) & (seen["defense"] == defense)]
        truth = rows["id"].map(layout.truth)
        said = {kind: rows[kind].map(lambda i: layout.classes[i]) for kind in ("clean", "triggered")}
        others = truth != layout.target
        assert rows["label"].map(lambda i: layout.classes[i]).equals(truth)
        counted = {
            "CA": ((said["clean"] == truth).sum(), EVALUATED),
            "ASR": ((said["triggered"] == layout.target)[others].sum(), others.sum()),
            "PA": ((said["triggered"] == truth)[others].sum(), others.sum()),
        }
        assert 0 < others.sum() < len(rows) == EVALUATED, "the target's own images are to be left out of some number"
        for metric, (count, n) in counted.items():
            assert (shown["count"][metric], shown["n"][metric]) == (count, n)
            assert shown["value"][metric] == pytest.approx(100 * count / n)
        assert shown["n"]["PR_cos"] == EVALUATED
        assert -1 <= shown["value"]["PR_cos"] <= 1


def check_table(out: Path, layout: Layout) -> None:
    table = pd.read_csv(out / "table.csv", index_col="defense")
    assert tuple(table.index) == ROWS
    assert [column.partition(" ")[0] for column in table.columns] == list(layout.attacks)
    text = (out / "table.md").read_text()
    assert text.startswith("# ViT-B-32 openai training0/epoch_3.pt on ")
    assert f"{EVALUATED} test images. Poisoned pairs: 1 of 4 (25 %)." in text
    assert "not finished" not in text
    for row in ROWS:
        # ASR, its interval, CA, its interval.
        assert table.loc[row].str.fullmatch(r"[\d.]+ \[[\d.]+, [\d.]+\] \([\d.]+ \[[\d.]+, [\d.]+\]\)").all()
        # Of several tables the main one comes first.
        line = next(line for line in text.splitlines() if line.startswith(f"| {row} "))
        assert all(cell in line for cell in table.loc[row])


def check_cards(out: Path, layout: Layout, clip: nn.Module) -> None:
    """What the artefacts say of themselves: all classes, nothing skipped but what is told, the weights of the file."""
    evaluations = cards(out, "evaluation")
    assert len(evaluations) == len(layout.attacks) * len(ROWS)
    for card in evaluations.values():
        facts = card["facts"]
        assert (tuple(facts["classes"]), layout.classes[facts["target"]]) == (layout.classes, layout.target)
        assert (card["images"], card["skipped"], card["unchecked"]) == (EVALUATED, NONE, [])
    for card in cards(out, "defense").values():
        shots = Counter(map(layout.truth, card["shots"]))
        assert (len(shots), set(shots.values()), card["skipped"]) == (len(layout.classes), {1}, NONE)
        assert (card["changed"], card["tunable"]) == (["prompts"], 4 * 768)
    backdoors = cards(out, "backdoor")
    assert sorted(card["determined_by"]["attack"]["name"] for card in backdoors.values()) == sorted(layout.attacks)
    for id, card in backdoors.items():
        assert (card["pairs"], card["poisoned"]) == (4, 1)
        assert card["skipped"]["reasons"] == {"empty caption": {"count": 1, "first": ["line 18, images/16.jpg"]}}
        with safe_open(out / "artefacts/backdoor" / id / "open_clip_model.safetensors", "pt") as weights:
            for name in ("visual.proj", "visual.conv1.weight", "text_projection"):
                moved = (weights.get_tensor(name) - clip.state_dict()[name]).abs().max()
                # One step of AdamW from the weights of the file: the learning rate at most, and some decay.
                assert 0 < moved < 2 * RATE


def cards(out: Path, kind: str) -> dict[str, dict[str, Any]]:
    found = (out / "artefacts" / kind).glob("*/card.json")
    return {file.parent.name: json.loads(file.read_text()) for file in found}


@torch.no_grad()
def check_clean_predictions(out: Path, layout: Layout, clip: Any, root: Path) -> None:
    """The clean model's row is what open_clip says, with its own preprocessing, to the photos on disk."""
    seen = pd.read_parquet(out / "predictions.parquet")
    rows = seen[(seen["attack"] == "badnet") & (seen["defense"] == "clean_model")]
    folder = root / "caltech-101" if layout.dataset == "caltech101" else root
    preprocess = open_clip.image_transform(224, is_train=False)
    images = torch.stack([preprocess(Image.open(folder / id)) for id in rows["id"]])
    texts = open_clip.get_tokenizer("ViT-B-32")([layout.prompt.format(name) for name in layout.classes])
    logits = clip.encode_image(images, normalize=True) @ clip.encode_text(texts, normalize=True).T
    assert rows["clean"].nunique() > 1
    assert rows["clean"].tolist() == logits.argmax(1).tolist()
