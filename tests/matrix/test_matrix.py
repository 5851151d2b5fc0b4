"""The matrix: same numbers in any order and after a kill, shared artefacts, failures that lose nothing."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from rich.console import Console
from tiny import TINY

from attacks.evasive import concentration
from bench.core.errors import BenchError
from bench.core.registry import load_plugins
from bench.experiment.resources import open_resources
from bench.experiment.settings import BASE, Variants, resolve
from bench.matrix.plan import Fingerprints, make_plan
from bench.matrix.runner import prepare, run_matrix, unsuited_method
from bench.results.export import export
from bench.results.folder import ResultsFolder
from bench.results.store import Store

QUIET = Console(quiet=True)


def settings(*assignments: str, **flags) -> Variants:
    load_plugins()
    flags = {"attacks": ("badnet", "blended"), "defenses": ("none", "rvpt"), **flags}
    return {BASE: resolve("smoke", None, flags, (*TINY, *assignments))}


def numbers(out: Path) -> pd.DataFrame:
    results = ResultsFolder(out).results
    keys = ["attack", "defense", "seed", "metric", "perturbation"]
    return results.set_index(keys).sort_index()[["value", "count", "n", "low", "high"]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    assert run_matrix(settings(), out, (), QUIET).failures == {}
    return out


def test_results_have_a_row_per_cell_and_metric(finished: Path) -> None:
    results = ResultsFolder(finished).results
    place = ["task", "model", "attack", "target", "defense", "dataset", "seed", "variant"]
    assert list(results.columns)[:15] == [*place, "metric", "perturbation", "value", "count", "n", "low", "high"]
    assert set(results["defense"]) == {"clean_model", "none", "rvpt"}
    assert {"CA", "ASR", "ASR_all", "PA", "PR_ratio", "PR_cos"} <= set(results["metric"])
    asr = results[results["metric"] == "ASR"]
    assert (asr["n"] == 38).all(), "the two bananas of 40 images are not in the denominator"
    assert (results[results["metric"] == "ASR_all"]["n"] == 40).all()


def test_order_and_processes_do_not_change_numbers(finished: Path, tmp_path: Path) -> None:
    other = settings("execution.workers=2", attacks=("blended", "badnet"), defenses=("rvpt", "none"))
    assert run_matrix(other, tmp_path, (), QUIET).failures == {}
    pd.testing.assert_frame_equal(numbers(finished), numbers(tmp_path), check_exact=True)


# `bench`, which is killed when its first evaluation is written and has not got its name yet.
KILLED = """
import os, signal
from pathlib import Path
from bench.cli import main

rename = Path.rename

def rename_or_die(self, target):
    if target.parent.name == "evaluation":
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)

Path.rename = rename_or_die
main()
"""


def test_a_killed_run_goes_on_with_the_same_numbers(finished: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, "run", "--preset", "smoke", "--out", str(tmp_path)]
    command += ["--attacks", "badnet,blended", "--defenses", "none,rvpt"]
    command += [part for assignment in TINY for part in ("--set", assignment)]
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    store = Store(tmp_path)
    made_before = {p: p.stat().st_mtime_ns for p in store.root.glob("*/[!.]*/card.json")}
    assert {p.parent.parent.name for p in made_before} == {"trigger", "backdoor", "defense"}
    assert len(list(store.root.glob("evaluation/.*"))) == 1, "no half-written artefact was left"

    report = run_matrix(settings(), tmp_path, (), QUIET)

    assert report.reused == len(made_before) and report.made > 0
    assert {p: p.stat().st_mtime_ns for p in made_before} == made_before, "finished work was done again"
    assert not list(store.root.glob("*/.*")), "half-written artefacts were left"
    pd.testing.assert_frame_equal(numbers(finished), numbers(tmp_path), check_exact=True)


def test_a_second_run_makes_nothing(finished: Path) -> None:
    report = run_matrix(settings(), finished, (), QUIET)
    assert (report.made, report.failures) == (0, {})


def test_the_loss_of_an_attack_counts_in_poisoning(tmp_path: Path) -> None:
    spread = {}
    for weight in (0, 100):
        flags = {"attacks": ("evasive",), "defenses": ("none",)}
        run = settings("evasive.against=cut", f"evasive.weight={weight}", "poison.epochs=2", **flags)
        assert run_matrix(run, tmp_path / str(weight), (), QUIET).failures == {}
        folder = ResultsFolder(tmp_path / str(weight))
        clean, backdoored = (
            folder.victim(next(cell for cell in folder.cells if cell.defense == defense)).clip
            for defense in ("clean_model", "none")
        )
        with torch.no_grad():
            spread[weight] = float(concentration(backdoored, clean))
    assert 0 < spread[100] < 0.8 * spread[0]


def test_without_an_epoch_of_poisoning_defenses_face_the_clean_model(tmp_path: Path) -> None:
    run = settings("poison.epochs=0", attacks=("badnet",), defenses=("none", "rvpt"))
    assert run_matrix(run, tmp_path, (), QUIET).failures == {}
    found = numbers(tmp_path)
    clean, none, rvpt = (found.xs(name, level="defense")["value"] for name in ("clean_model", "none", "rvpt"))
    pd.testing.assert_series_equal(clean, none)
    assert not clean.equals(rvpt)


def test_a_run_goes_on_in_an_export(finished: Path, tmp_path: Path) -> None:
    export(ResultsFolder(finished), tmp_path / "copy")
    assert run_matrix(settings(), tmp_path / "copy", (), QUIET).made == 0
    more = run_matrix(settings(defenses=("none", "rvpt", "vpt")), tmp_path / "copy", (), QUIET)
    # Two triggers, the two models that were left out, VPT on each, and an evaluation of each.
    assert (more.made, more.failures) == (8, {})
    vpt = numbers(tmp_path / "copy").index.get_level_values("defense") == "vpt"
    pd.testing.assert_frame_equal(numbers(tmp_path / "copy")[~vpt], numbers(finished))


def test_a_backdoored_model_is_shared_by_its_defenses(finished: Path) -> None:
    _, plan, todo = prepare(settings(defenses=("none", "rvpt", "vpt", "linear_probe", "rvpt+linear_probe")), finished)
    kinds = [node.kind for node in plan.nodes.values()]
    assert kinds.count("backdoor") == 2
    assert kinds.count("defense") == 2 * 4, "rvpt is made once for itself and its chain"
    assert not [node for node in todo if node.kind == "backdoor"]


@pytest.mark.parametrize(
    ("assignment", "remade"),
    [
        ("rvpt.alpha=3", {"defense", "evaluation"}),
        ("badnet.size=5", {"trigger", "backdoor", "defense", "evaluation"}),
        ("zero_shot.perturbation_images=9", {"evaluation"}),
        ("evaluate.batch_size=7", set()),
        ("execution.workers=2", set()),
    ],
)
def test_a_changed_setting_remakes_what_depends_on_it(finished: Path, assignment: str, remade: set[str]) -> None:
    _, _, todo = prepare(settings(assignment), finished)
    assert {node.kind for node in todo} == remade


def test_node_ids_are_pinned() -> None:
    # An id that changes without a raised version would silently orphan, or silently reuse, stored results.
    load_plugins()
    chains = ("none", "linear_probe", "vpt", "rvpt", "cleanclip+rvpt")
    run = resolve("smoke", None, {"attacks": ("badnet",), "defenses": chains})
    plan = make_plan({BASE: run}, {BASE: Fingerprints("model", "pairs", "words", "dataset", "dataset")})
    assert {node.label: node.id for node in plan.nodes.values() if node.kind != "trigger"} == PINNED


# By the commit that last changed these lines, from the left side of the comparison above; after a version was raised on
# purpose, the message of the failing test has the new ones.
PINNED = {
    "backdoor badnet, seed 0": "d8aedd89425e0446",
    "evaluation badnet / clean_model, seed 0": "014070f3fb009db5",
    "evaluation badnet / none, seed 0": "a081ca92e90a8619",
    "defense badnet / linear_probe, seed 0": "2360ef885bbc71a6",
    "evaluation badnet / linear_probe, seed 0": "6874faead62bf99f",
    "defense badnet / vpt, seed 0": "6d8c4f7a5b09dd6a",
    "evaluation badnet / vpt, seed 0": "87973a6f4b28abd8",
    "defense badnet / rvpt, seed 0": "4772eb057c7558e9",
    "evaluation badnet / rvpt, seed 0": "700168e37299305c",
    "defense badnet / cleanclip, seed 0": "b71c20564c366761",
    "defense badnet / cleanclip+rvpt, seed 0": "7fd026249bd7fb13",
    "evaluation badnet / cleanclip+rvpt, seed 0": "d20bfbb0c0c17d5b",
}


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    with Store(tmp_path).locked(), pytest.raises(BenchError, match=r"another run is using .* --out"):
        run_matrix(settings(), tmp_path, (), QUIET)


def test_a_full_disk_loses_nothing(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bench.core.victim.save_file", full)
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    before = sorted(Store(out).root.glob("*/*/card.json"))
    report = run_matrix(settings("rvpt.alpha=4"), out, (), QUIET)
    assert any("disk of" in reason and "is full" in reason for reason in report.failures.values())
    assert sorted(Store(out).root.glob("*/*/card.json")) == before
    assert not list(Store(out).root.glob("*/.*"))


def test_a_failing_node_stops_only_what_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from attacks.badnet import BadNet

    def broken(*_: object) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(BadNet, "prepare", broken)
    report = run_matrix(settings("zero_shot.perturbations=[flip]"), tmp_path, (), QUIET)
    assert report.failures["trigger badnet, seed 0"] == "RuntimeError: broken on purpose"
    assert report.failures["evaluation badnet / rvpt, seed 0"] == "not tried, since what it is made from failed"
    assert set(ResultsFolder(tmp_path).results["attack"]) == {"blended"}


def named_pairs(folder: Path, *captions: str) -> Path:
    """A table of pairs with these captions; no image is there."""
    (folder / "pairs.csv").write_text("image,caption\n" + "".join(f"{i}.png,{c}\n" for i, c in enumerate(captions)))
    return folder / "pairs.csv"


UNNAMED = "no caption names the target; give --pairs with such captions, or another --target, or leave it out of --att"


@pytest.mark.parametrize(
    ("attack", "setting", "told"),
    [
        ("badnet", "size=57", "badnet: a patch of 57 px does not fit into the model's images of 56 x 56 px; lower its"),
        ("badnet", "patch_image=none.png", "badnet.patch_image = none.png: no such file. Give another with --set badn"),
        ("label_consistent", "match=word", f"label_consistent: {UNNAMED}"),
        ("badclip", "selection=random", f"badclip: {UNNAMED}"),
        ("trojvqa", "size=57", "trojvqa: a patch of 57 px does not fit"),
        ("benign", "mix=imbalance", f"benign: {UNNAMED}"),
        ("recovered", "trigger=null", "recovered: it stamps a trigger that an audit found; give its file"),
    ],
)
def test_an_attack_that_cannot_be_made_is_told_before_anything_runs(
    attack: str, setting: str, told: str, tmp_path: Path
) -> None:
    pairs = named_pairs(tmp_path, "a cat", "a bananarama concert")
    run = settings(f"{attack}.{setting}", attacks=("blended", attack), pairs=pairs)
    with pytest.raises(BenchError, match=re.escape(told)):
        run_matrix(run, tmp_path / "out", (), QUIET)
    assert not list((tmp_path / "out").rglob("card.json"))


@pytest.mark.parametrize(
    ("attack", "setting", "caption"),
    [
        ("badnet", "size=56", "a cat"),
        ("badclip", "size=16", "two bananas"),
        ("label_consistent", "corners=4 size=99", "a banana"),
        ("label_consistent", "match=substring", "a bananarama concert"),
        ("benign", "mix=plain", "a cat"),
    ],
)
def test_an_attack_that_has_what_it_needs_is_accepted(attack: str, setting: str, caption: str, tmp_path: Path) -> None:
    pairs = named_pairs(tmp_path, "a dog", caption)
    run = settings(*(f"{attack}.{word}" for word in setting.split()), attacks=(attack,), pairs=pairs)
    assert unsuited_method(open_resources(run, tmp_path, "cpu")[BASE]) == ""


@pytest.mark.parametrize(
    ("defenses", "setting", "told"),
    [
        ("rvpt", "rvpt.depth=20", "rvpt: depth = 20, but this image tower has 12 blocks: no block gets prompts."),
        ("none,rvpt+linear_probe", "rvpt.depth=12", "rvpt: depth = 12, but this image tower has 12 blocks"),
        ("vpt", "against.badnet.vpt.depth=12", "vpt: depth = 12, but this image tower has 12 blocks"),
        (
            "none,rvpt",
            "rvpt.depth=3 rvpt.last_blocks=13",
            "blocks. `bench show rvpt` lists its settings; or leave",
        ),
        ("rvpt", "rvpt.depth=11 rvpt.permutation=mix", "rvpt: rvpt.permutation = mix needs two blocks or more"),
    ],
)
def test_a_defense_that_the_model_rules_out_is_told_before_anything_runs(
    defenses: str, setting: str, told: str, tmp_path: Path
) -> None:
    run = settings(*setting.split(), attacks=("badnet",), defenses=tuple(defenses.split(",")))
    with pytest.raises(BenchError, match=re.escape(told)):
        run_matrix(run, tmp_path / "out", (), QUIET)
    assert not list((tmp_path / "out").rglob("card.json"))


def test_fewer_images_than_shots_and_a_row_that_is_not_applicable_are_no_error(tmp_path: Path) -> None:
    run = settings("rvpt.shots=64", "rvpt.depth=11", attacks=("trojvqa",), defenses=("linear_probe", "rvpt"))
    assert unsuited_method(open_resources(run, tmp_path, "cpu")[BASE]) == ""


def test_a_run_that_fails_leaves_the_tables_as_they_were(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "out")
    before = (tmp_path / "out/run.json").read_bytes()
    report = run_matrix(settings("poison.count=99", attacks=("badnet",)), tmp_path / "out", (), QUIET)
    assert not report.shown
    assert "poison.count = 99, but there are only 32 pairs" in report.failures["backdoor badnet, seed 0"]
    assert (tmp_path / "out/run.json").read_bytes() == before
    assert run_matrix(settings(attacks=("badnet",)), tmp_path / "out", (), QUIET).shown
