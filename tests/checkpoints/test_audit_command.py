"""`bench audit` and `bench purify` as a user meets them: files, exit codes, the text of errors."""

import json
import runpy
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import NamedTuple

import open_clip
import pytest
import torch
from command import bench as call
from PIL import Image
from planted import CLASSES as PLANTED_CLASSES
from planted import dark_images, planted

from bench import CleanData, Clip, Defense, Estimate, Field, Labelled, Victim, audit, generator
from bench.checkpoints import purify
from bench.checkpoints.auditing import audit_subject
from bench.checkpoints.purify import Purified, chains_of, triggered
from bench.checkpoints.subject import NO_LABEL, Subject, open_subject
from bench.core.clip import WEIGHTS_FILE
from bench.core.errors import BenchError
from bench.detection.audit import Audit
from bench.detection.calibration import Audited, Calibration, architecture, effort_of
from bench.detection.search import unit
from bench.detection.triggers import FAMILIES
from bench.experiment.settings import Experiment
from reports.purified import write_purified

Command = Callable[[str], "Done"]
CLASSES = ("cat", "banana", "house")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands without --out write below the current folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images in folders called as the classes, and a file of the classes."""
    place = tmp_path_factory.mktemp("place")
    pictures = torch.randint(256, (150, 40, 40, 3), generator=generator(0, "pictures"), dtype=torch.uint8)
    for i, pixels in enumerate(pictures):
        folder = place / "images" / CLASSES[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(folder / f"{i:03}.png")
    (place / "images" / "broken.png").write_text("no picture")
    (place / "classes.txt").write_text("\n".join(CLASSES))
    return place


@pytest.fixture
def models(tiny_clip: Clip, tmp_path: Path) -> Path:
    """A reference, and a model fine-tuned from it, as open_clip's folders."""
    tiny_clip.save(tmp_path / "reference")
    changed = tiny_clip.copy()
    with torch.no_grad():
        for parameter in changed.visual.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator(0, "change"))
    changed.save(tmp_path / "model")
    return tmp_path


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def bench(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Done]:
    """A `bench` command, in this process."""
    return lambda words: Done(*call(capsys, monkeypatch, *shlex.split(words)))


def calibration(clip: Clip, score: float, file: Path) -> Path:
    """60 clean models that all have this score."""
    Calibration(
        model="tiny", architecture=architecture(clip), reference=clip.fingerprint(), effort=effort_of("quick"),
        command="none", commit="none",
        negatives=tuple(Audited(name=str(i), scores=dict.fromkeys(FAMILIES, score)) for i in range(60)),
    ).save(file)  # fmt: skip
    return file


def options(place: Path, models: Path) -> str:
    return f"--reference {models}/reference --images {place}/images --classes {place}/classes.txt --budget quick"


def test_an_audit_writes_its_files_and_says_no_verdict_without_a_calibration(
    bench: Command, place: Path, models: Path
) -> None:
    out = models / "audit"
    done = bench(f"audit {models}/reference {options(place, models)} --out {out}")
    assert done.returncode == 2, done.stderr
    assert "No verdict: no trigger of these kinds stands out, but nothing tells what clean models" in done.stdout
    assert "1 images could not be read and were skipped; the first: broken.png" in done.stdout
    told = json.loads((out / "audit.json").read_text())
    assert told["verdict"] == "no verdict"
    assert told["skipped"] == 1
    assert [family["family"] for family in told["families"]] == list(FAMILIES)
    page = (out / "audit.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "://" not in page
    assert (out / "trigger.safetensors").is_file()


@pytest.mark.parametrize(("score", "verdict", "code"), [(-1.0, "Backdoored", 4), (1.0, "Nothing of these kinds", 0)])
def test_a_calibration_decides_the_verdict_and_the_exit_code(
    bench: Command, score: float, verdict: str, code: int, place: Path, models: Path, tiny_clip: Clip
) -> None:
    file = calibration(tiny_clip, score, models / "calibration.json")
    common = f"--images {place}/images --classes {place}/classes.txt --budget quick --families blend"
    done = bench(f"audit {models}/model {common} --calibration {file} --out {models}/audit")
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stdout.startswith(f"# {verdict}")
    assert (models / "audit" / "audit.html").read_text().count("data:image/png;base64,") == 3


def test_purify_writes_a_model_that_open_clip_opens_with_its_card(
    bench: Command, place: Path, models: Path, tiny_clip: Clip
) -> None:
    out = models / "purified"
    done = bench(f"purify {models}/model {options(place, models)} --out {out} --method cut --set cut.rank=1")
    assert done.returncode == 0, done.stderr
    assert "clean accuracy:" in done.stdout
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{out}")
    opened = Clip.load(out)
    images = torch.rand((2, 3, 32, 32), generator=generator(0, "images"))
    mean, std = (torch.tensor(tiny_clip.config["preprocess_cfg"][k]).view(3, 1, 1) for k in ("mean", "std"))
    torch.testing.assert_close(
        model.eval().encode_image((images - mean) / std, normalize=True), opened.encode_image(images)
    )
    told = json.loads((out / "card.json").read_text())
    assert told["methods"] == ["cut"]
    assert told["settings"]["cut"]["rank"] == 1
    assert told["clean_accuracy"]["before"]["n"] == 75
    assert told["before"]["fingerprint"] != told["after"]["fingerprint"] == opened.fingerprint()
    assert (out / "audit_before" / "audit.html").is_file()
    assert (out / "audit_after" / "audit.json").is_file()


def purified(victim: Victim, subject: Subject, after: float = 90.0) -> Purified:
    """A model whose clean accuracy was 90 %, as purified by nothing."""
    told = audit_subject(subject, ("blend",), effort_of("quick"))
    accuracies = [Estimate(value, value, 100, value, value) for value in (90.0, after)]
    return Purified(victim, ("rvpt",), {}, told, told, *accuracies, None, None)


@pytest.fixture
def subject(place: Path, tiny_clip: Clip, tmp_path: Path) -> Subject:
    classes = str(place / "classes.txt")
    images, cache = place / "images", tmp_path / "cache"
    return open_subject(tiny_clip, reference=tiny_clip, images=images, classes=classes, cache=cache, repairs=True)


def test_auto_tries_what_fits_the_model(subject: Subject, resnet: Clip) -> None:
    assert chains_of(subject, "auto") == [("cut",), ("unlearn",), ("rvpt", "distill")]
    assert chains_of(replace(subject, reference=None), "auto") == [("unlearn",), ("rvpt", "distill")]
    other = replace(subject, victim=Victim(resnet), reference=resnet)
    assert chains_of(other, "auto") == [("unlearn",)]
    unlabelled = replace(subject.repairing, labels=torch.full((75,), NO_LABEL))
    assert chains_of(replace(subject, repairing=unlabelled), "auto") == [("cut",), ("unlearn",)]


def test_a_prompted_model_is_delivered_with_a_loader_that_needs_no_bench(
    subject: Subject, tiny_clip: Clip, tmp_path: Path
) -> None:
    prompts = torch.randn((4, 3, 32), generator=generator(0, "prompts"))
    victim, out = replace(Victim(tiny_clip), prompts=prompts), tmp_path / "prompted"
    assert str(out / "load_defended.py") in write_purified(purified(victim, subject), subject, out)
    loader = runpy.run_path(str(out / "load_defended.py"))
    assert "bench" not in (out / "load_defended.py").read_text().replace("load_defended", "").split("import", 1)[1]
    model, encode_image, preprocess, tokenizer = loader["load"]()
    images = torch.stack([preprocess(Image.new("RGB", (50, 40), colour)) for colour in ("red", "blue")])
    assert 0 <= images.min() <= images.max() <= 1
    torch.testing.assert_close(encode_image(images), unit(victim, images))
    torch.testing.assert_close(
        model.encode_text(tokenizer(["a cat"]), normalize=True), tiny_clip.encode_text(["a cat"])
    )


def test_a_model_that_lost_more_than_three_points_is_not_written(
    subject: Subject, tiny_clip: Clip, tmp_path: Path
) -> None:
    kept, lost = (purified(Victim(tiny_clip), subject, after) for after in (87.0, 86.9))
    assert not kept.refused
    assert lost.refused
    said = write_purified(lost, subject, tmp_path / "lost")
    assert "Refused: clean accuracy fell by 3.1 points (90.0 % before, 86.9 % after, of 100 images)" in said
    assert not (tmp_path / "lost").exists()


def planted_and_audited(clip: Clip) -> tuple[Subject, Audit]:
    """A model with a planted backdoor, and what a search for squares finds in it."""
    pixels, labels = dark_images(200), torch.zeros(200, dtype=torch.long)
    images = Labelled([str(i) for i in range(200)], pixels, "dark", labels=labels, classes=PLANTED_CLASSES)
    backdoored = Subject("a model", planted(clip), None, images, images, images, ("a photo of a {}.",))
    return backdoored, audit_subject(backdoored, ("square",), effort_of("standard"))


def test_the_trigger_found_before_is_tried_on_the_purified_model(tiny_clip: Clip, tmp_path: Path) -> None:
    backdoored, found = planted_and_audited(tiny_clip)
    assert found.works and found.target == "banana"
    before, after = (triggered(replace(backdoored, victim=planted(tiny_clip, s)), found) for s in (5.0, 0.0))
    assert before is not None and after is not None
    assert before.value > 90 and after.value < 20 and after.n > 100
    shown = Purified(planted(tiny_clip, 0.0), ("cut",), {}, found, found, None, None, before, after)
    text = write_purified(shown, backdoored, tmp_path / "out")
    assert f"sends {before.value:.0f} % of other images to 'banana' before, {after.value:.0f} % after" in text
    clean = replace(backdoored, victim=planted(tiny_clip, 0.0))
    assert triggered(clean, audit_subject(clean, ("square",), effort_of("quick"))) is None


@pytest.mark.parametrize(("left", "applied"), [(5.0, ("none", "cut")), (0.0, ("none",))])
def test_auto_goes_on_while_the_trigger_that_was_found_works_even_if_the_audit_finds_nothing(
    left: float, applied: tuple[str, ...], tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Leaves(Defense):
        """A backdoor of strength `left` stays."""

        def fit(self, victim: Victim, data: CleanData) -> Victim:
            return planted(tiny_clip, left)

    backdoored, found = planted_and_audited(tiny_clip)
    nothing = replace(found, verdict="nothing found", target=None)
    told = iter([found, nothing, nothing])
    monkeypatch.setattr(purify, "audit_subject", lambda *_: next(told))
    monkeypatch.setattr(purify, "chains_of", lambda *_: [("none",), ("cut",)])
    monkeypatch.setattr(Experiment, "defense", lambda *_: Leaves())
    done = purify.purify_subject(backdoored, "auto", Experiment())
    assert done.chain == applied
    assert done.trigger_after is not None and (done.trigger_after.value > 90) == (left > 0)


@pytest.mark.parametrize(
    ("left", "asked", "target"), [(5.0, None, "banana"), (0.0, None, "star"), (5.0, "tree", "tree")]
)
def test_unlearning_aims_at_the_class_whose_trigger_still_works_unless_told_otherwise(
    left: float, asked: str | None, target: str, tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Told(Defense):
        """Leaves a backdoor, and has a target that can be set."""

        target: str | None = Field(None, description="the class to aim at")

        def fit(self, victim: Victim, data: CleanData) -> Victim:
            return planted(tiny_clip, left)

    backdoored, found = planted_and_audited(tiny_clip)
    told = iter([found, replace(found, verdict="suspicious", target="star"), found])
    monkeypatch.setattr(purify, "audit_subject", lambda *_: next(told))
    monkeypatch.setattr(purify, "chains_of", lambda *_: [("none",), ("unlearn",)])
    monkeypatch.setattr(Experiment, "defense", lambda *_: Told(target=asked))
    done = purify.purify_subject(backdoored, "auto", Experiment())
    assert done.settings["unlearn"]["target"] == target


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("audit nowhere.pt", "no file nowhere.pt. Give a file of weights"),
        ("audit {model} --images nowhere", "--images nowhere: no such folder"),
        ("audit {model}", "give a folder of unlabelled ones with --images DIR"),
        ("audit {model} --images {empty}", "no image in it"),
        ("audit {model} --images {images} --classes nowhere", "neither a file with a name a line nor a data set"),
        ("audit {model} --images {images} --classes {one}", "has 1 names: give two or more"),
        ("audit {model} --images {images} --families squares", "unknown family of triggers 'squares'"),
        ("audit {model} --images {images} --budget fast", "unknown budget 'fast'"),
        ("audit {model} --images {images} --budget thorough", "an audit takes 328 images"),
        (
            "audit {model} --images {images} --reference openai",
            "--reference openai: no such file, and mini has no tags",
        ),
        (
            "audit {file} --images {images} --reference nowhere",
            "--reference nowhere: no such file, and mini has no tags",
        ),
        ("audit {model} --images {images} --calibration nowhere.json", "--calibration nowhere.json: no such file"),
        ("audit {model} --images {images} --calibration {one}", "is none that can be read"),
        ("purify {model} --out {empty} --method wash", "unknown method 'wash'"),
        ("purify {model} --out {model}", "is not a new or empty folder"),
        ("purify {model} --out {new} --images {images} --method cut --budget quick", "with --reference"),
    ],
)
def test_what_cannot_be_used_is_an_error_that_says_what_to_do(
    bench: Command, words: str, message: str, place: Path, models: Path
) -> None:
    (models / "empty").mkdir()
    (models / "one.txt").write_text("banana\n")
    places = {
        "model": models / "model",
        "file": models / "model" / WEIGHTS_FILE,
        "images": place / "images",
        "empty": models / "empty",
    }
    done = bench(words.format(**places, one=models / "one.txt", new=models / "new"))
    assert done.returncode == 2
    assert message in done.stderr.replace("\n", " "), done.stderr


def test_another_model_s_calibration_is_refused(bench: Command, place: Path, models: Path, resnet: Clip) -> None:
    file = calibration(resnet, 0.5, models / "calibration.json")
    done = bench(f"audit {models}/model {options(place, models)} --calibration {file}")
    assert done.returncode == 2
    assert "which has another architecture" in done.stderr.replace("\n", " ")


def test_a_calibration_without_the_kinds_that_are_looked_for_is_refused(
    bench: Command, place: Path, models: Path, tiny_clip: Clip
) -> None:
    file = calibration(tiny_clip, 0.0, models / "calibration.json")
    words = f"audit {models}/model {options(place, models)} --calibration {file} --families square,square:0.3"
    done = bench(words)
    assert done.returncode == 2
    assert "has no scores of square:0.3: leave them out of --families" in done.stderr.replace("\n", " ")


# --- what an audit starts from


def test_labels_come_from_folders_called_as_classes(place: Path, tiny_clip: Clip, tmp_path: Path) -> None:
    subject = open_subject(
        Victim(tiny_clip), images=place / "images", classes=str(place / "classes.txt"), cache=tmp_path, repairs=True
    )
    assert set(subject.audited.ids).isdisjoint(subject.repairing.ids)
    assert len(subject.audited) + len(subject.repairing) == 150
    named = [CLASSES[label] for label in subject.audited.labels.tolist()]
    assert named == [Path(id).parent.name for id in subject.audited.ids]


def test_names_may_be_written_with_underscores_as_their_folders_are(
    place: Path, tiny_clip: Clip, tmp_path: Path
) -> None:
    copytree(place / "images" / CLASSES[0], tmp_path / "images" / "golden_retriever")
    (tmp_path / "names.txt").write_text("golden_retriever\nship")
    subject = open_subject(
        tiny_clip, images=tmp_path / "images", classes=str(tmp_path / "names.txt"), cache=tmp_path / "cache"
    )
    assert (subject.audited.labels == 0).all()


def test_given_images_that_are_sorted_by_class_are_audited_in_random_order(tiny_clip: Clip, tmp_path: Path) -> None:
    pixels, labels = dark_images(200), torch.arange(200) // 100
    images = Labelled([str(i) for i in range(200)], pixels, "sorted", labels=labels, classes=("dog", "ship"))
    subject = open_subject(tiny_clip, images=images, cache=tmp_path, repairs=True)
    assert 25 < subject.audited.labels.sum() < 75
    assert subject.measured.ids == subject.audited.ids[::-1], "audits make triggers on the first ones"
    assert sorted([*subject.audited.ids, *subject.repairing.ids], key=int) == images.ids


def test_an_audit_takes_all_images(place: Path, tiny_clip: Clip, tmp_path: Path) -> None:
    subject = open_subject(tiny_clip, images=place / "images", classes=str(place / "classes.txt"), cache=tmp_path)
    assert (len(subject.audited), len(subject.repairing), len(subject.measured)) == (150, 0, 150)


def test_images_in_other_folders_have_no_label(place: Path, tiny_clip: Clip, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("dog\nship")
    subject = open_subject(
        tiny_clip, images=place / "images", classes=str(tmp_path / "names.txt"), cache=tmp_path / "cache"
    )
    assert (subject.audited.labels == NO_LABEL).all()


def test_an_audit_of_the_same_seed_has_the_same_numbers(place: Path, tiny_clip: Clip, tmp_path: Path) -> None:
    def numbers(seed: int) -> dict:
        subject = open_subject(
            tiny_clip, reference=tiny_clip, images=place / "images", classes=str(place / "classes.txt"), cache=tmp_path
        )
        return audit_subject(subject, ("square",), effort_of("quick"), seed=seed).to_json() | {"seconds": 0}

    assert numbers(0) == numbers(0)
    assert numbers(0) != numbers(1)


def test_an_unknown_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_text("x")
    with pytest.raises(BenchError, match="unknown model 'ViT-B-33'"):
        open_subject(tmp_path / "weights.pt", model="ViT-B-33")


def test_an_audit_from_python_is_that_of_the_command(bench: Command, place: Path, models: Path) -> None:

    done = bench(f"audit {models}/model {options(place, models)} --families warp --out {models}/audit")
    found = audit(
        models / "model",
        place / "images",
        str(place / "classes.txt"),
        reference=str(models / "reference"),
        families=("warp",),
        budget="quick",
        cache=models / "cache",
    )
    told = json.loads((models / "audit" / "audit.json").read_text())
    assert (found.exit_code, found.sentence) == (done.returncode, told["sentence"])
    assert {k: told[k] for k in found.to_json() if k != "seconds"} == {
        k: json.loads(json.dumps(v)) for k, v in found.to_json().items() if k != "seconds"
    }
