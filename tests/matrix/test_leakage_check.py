"""What was trained on must not be evaluated on, whoever made it when; and what its card says of dead pairs."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from layouts import pets, photos
from rich.console import Console

from bench.core.errors import BenchError
from bench.core.registry import load_plugins
from bench.experiment.resources import Resources
from bench.experiment.settings import BASE, resolve
from bench.matrix.cards import NAMES, REASONS, counted
from bench.matrix.runner import Report, run_matrix
from bench.results.store import CACHE

SMALL = {
    "poison": {"pairs": 8, "count": 2, "batch_size": 4},
    "cleanclip": {"pairs": 8, "batch_size": 4},
    "zero_shot": {"perturbations": []},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a finished run in it, whose models the tests evaluate on pets."""
    load_plugins()
    root = tmp_path_factory.mktemp("trained")
    for name in ("samoyed", "cat"):
        photos(root / f"own/train/{name}", 5)
        photos(root / f"own/test/{name}", 2)
    photos(root / "pairs", 24, "p")
    rows = [f"p{i}.JPEG,a photo of a {('samoyed', 'cat')[i % 2]}" for i in range(24)]
    (root / "pairs/pairs.csv").write_text("\n".join(["image,caption", *rows, *["p0.JPEG,"] * 12]) + "\n")
    assert run(root) == Report(8, 0, {}, shown=True)
    return root


@pytest.fixture
def there(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, where file times and sizes, and so ids, stay."""
    return Path(shutil.copytree(trained, tmp_path / "there"))


def run(root: Path, pets_root: Path | None = None, console: Console | None = None, **settings: object) -> Report:
    """The run, or the same evaluated on pets; table of pairs and data of the first run count wherever they are."""
    flags = {"dataset": "folder", "target": "samoyed", "pairs": root / "pairs/pairs.csv", **SMALL}
    flags |= {"attacks": ("badnet",), "defenses": ("none", "cleanclip", "vpt")}
    flags |= {"execution": {"device": "cpu", "workers": 1}}
    flags |= {"folder": {"root": root / "own"}} | settings
    if pets_root:
        flags |= {"evaluate": {"dataset": "oxfordpets"}}
        flags["oxfordpets"] = {"root": pets_root, **flags.get("oxfordpets", {})}  # type: ignore[dict-item]
    return run_matrix({BASE: resolve("smoke", None, flags)}, root / "out", (), console or Console(quiet=True))


def cards(root: Path, kind: str) -> dict[str, dict]:
    """Cards by the last part of their label: badnet, or the defense's name."""
    found = [json.loads(file.read_text()) for file in (root / f"out/artefacts/{kind}").glob("*/card.json")]
    return {card["label"].partition(",")[0].split()[-1]: card for card in found}


def pairs_used(root: Path) -> list[str]:
    id = cards(root, "backdoor")["badnet"]["id"]
    return list(pd.read_csv(root / f"out/artefacts/backdoor/{id}/manifest.csv")["id"])


def test_stored_models_are_evaluated_on_other_images_and_nothing_is_remade(there: Path, tmp_path: Path) -> None:
    console = Console(record=True, width=1000, file=(tmp_path / "said").open("w"))
    # The clean model, none, cleanclip, vpt.
    assert run(there, pets(tmp_path / "pets"), console) == Report(4, 4, {}, shown=True)
    assert "whether it was trained" not in console.export_text()


def test_a_probe_is_not_evaluated_on_other_classes(there: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="linear_probe learns the classes of folder, and oxfordpets has others"):
        run(there, pets(tmp_path / "pets"), defenses=("none", "cleanclip+linear_probe"))


def test_an_evaluated_image_among_the_pairs_of_a_stored_backdoor_is_refused(there: Path, tmp_path: Path) -> None:
    root = pets(tmp_path / "pets")
    shutil.copy(there / "pairs" / pairs_used(there)[0], root / "images/samoyed_1.jpg")
    failures = run(there, root).failures
    assert len(failures) == 4
    assert all(
        "of the pairs are also among the evaluated images: images/samoyed_1.jpg is the same" in why
        for why in failures.values()
    )
    assert run(there, root, oxfordpets={"allow_overlap": True}).failures == {}


def test_an_evaluated_image_among_the_shots_of_a_stored_defense_stops_that_cell_alone(
    there: Path, tmp_path: Path
) -> None:
    root = pets(tmp_path / "pets")
    shutil.copy(there / "own" / cards(there, "defense")["vpt"]["shots"][-1], root / "images/samoyed_1.jpg")
    failures = run(there, root).failures
    assert list(failures) == ["evaluation badnet / vpt, seed 0"]
    assert "1 of the training images are also among the evaluated images" in failures["evaluation badnet / vpt, seed 0"]


def test_an_evaluated_image_among_the_clean_pairs_of_a_stored_defense_stops_that_cell_alone(
    there: Path, tmp_path: Path
) -> None:
    root = pets(tmp_path / "pets")
    flags = {"dataset": "folder", "pairs": there / "pairs/pairs.csv", "folder": {"root": there / "own"}}
    resources = Resources(resolve("smoke", None, {**flags, **SMALL, "target": "samoyed"}), there / "out" / CACHE, "cpu")
    shutil.copy(there / "pairs" / resources.clean_pairs(8).ids[0], root / "images/samoyed_1.jpg")
    assert list(run(there, root).failures) == ["evaluation badnet / cleanclip, seed 0"]


def test_what_cannot_be_compared_is_said(there: Path, tmp_path: Path) -> None:
    told = cards(there, "defense")["vpt"]
    card = there / f"out/artefacts/defense/{told['id']}/card.json"
    card.write_text(json.dumps(told | {"shots": ["train/samoyed/gone.JPEG"]}))
    line = the_only_doubt(there, tmp_path)
    assert "evaluation badnet / vpt" in line and "some of its training images no longer exist" in line


def test_a_deleted_card_of_a_defense_cannot_be_compared(there: Path, tmp_path: Path) -> None:
    deleted = cards(there, "defense")["cleanclip"]["id"]
    assert run(there, defenses=("cleanclip+vpt",)).failures == {}
    shutil.rmtree(there / "out/artefacts/defense" / deleted)
    line = the_only_doubt(there, tmp_path, defenses=("cleanclip+vpt",))
    assert "evaluation badnet / cleanclip+vpt" in line and f"the card of defense {deleted} was deleted" in line


def the_only_doubt(there: Path, tmp_path: Path, **settings: object) -> str:
    """Evaluate on pets; the one line of the console that says what cannot be told, and that one card keeps."""
    console = Console(record=True, width=1000, file=(tmp_path / "said").open("w"))
    assert run(there, pets(tmp_path / "pets"), console, **settings).failures == {}
    [line] = [line for line in console.export_text().splitlines() if "whether it was trained" in line]
    evaluations = (there / "out/artefacts/evaluation").glob("*/card.json")
    assert sum(len(json.loads(file.read_text())["unchecked"]) for file in evaluations) == 1
    return line


def test_only_a_defense_without_the_target_needs_it_where_it_is_tuned(there: Path, tmp_path: Path) -> None:
    others = pets(tmp_path / "others", breeds=("Abyssinian", "american_bulldog"))
    tuned = {"tuned_on": "oxfordpets", "oxfordpets": {"root": others}}
    assert run(there, **tuned, defenses=("vpt",)).failures == {}
    assert len(cards(there, "defense")["vpt"]["shots"]) == 4
    with pytest.raises(BenchError, match="unknown target class 'samoyed'"):
        run(there, **tuned, defenses=("vpt",), vpt={"without_target": True})
    with pytest.raises(BenchError, match="unknown target class 'samoyed'"):
        run(there, evaluate={"dataset": "oxfordpets"}, oxfordpets={"root": others})


# --- dead pairs


def test_dead_pairs_are_counted_by_reason_with_the_first_names(trained: Path) -> None:
    skipped = cards(trained, "backdoor")["badnet"]["skipped"]
    assert skipped["count"] == 12
    [(reason, told)] = skipped["reasons"].items()
    assert (reason, told["count"]) == ("empty caption", 12)
    # A header and 24 pairs stand before them.
    assert told["first"] == [f"line {26 + i}, p0.JPEG" for i in range(NAMES)]


def test_a_card_stays_small_whatever_is_dead() -> None:
    many = [f"line {i}: broken at byte {i}" for i in range(5000)] + ["line 1, a: b: empty caption"]
    found = counted(many)
    assert found.count == 5001 == sum(told.count for told in found.reasons.values())
    assert len(found.reasons) == REASONS + 1 and found.reasons["other reasons"].count == 5001 - REASONS
    assert len(found.model_dump_json()) < 5000
