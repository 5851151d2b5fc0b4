"""The matrix: same numbers in any order and after a kill, shared artefacts, failures that lose nothing."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from reports.results import collect
from rich.console import Console
from tiny import TINY

from bench.core.errors import BenchError
from bench.core.registry import load_plugins
from bench.experiment.settings import BASE, Variants, resolve
from bench.matrix.plan import Fingerprints, make_plan
from bench.matrix.runner import prepare, run_matrix
from bench.results.store import Store

QUIET = Console(quiet=True)


def settings(*assignments: str, **flags) -> Variants:
    load_plugins()
    flags = {"attacks": ("badnet", "blended"), "defenses": ("none", "rvpt"), **flags}
    return {BASE: resolve("smoke", None, flags, (*TINY, *assignments))}


def numbers(out: Path) -> pd.DataFrame:
    results = collect(out)
    keys = ["attack", "defense", "seed", "metric", "perturbation"]
    return results.set_index(keys).sort_index()[["value", "count", "n", "low", "high"]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    assert run_matrix(settings(), out, (), QUIET).failures == {}
    return out


def test_results_have_a_row_per_cell_and_metric(finished: Path) -> None:
    results = collect(finished)
    columns = ["model", "attack", "target", "defense", "dataset", "seed", "variant", "metric", "perturbation"]
    assert list(results.columns)[:14] == [*columns, "value", "count", "n", "low", "high"]
    assert set(results["defense"]) == {"clean_model", "none", "rvpt"}
    assert {"CA", "ASR", "ASR_all", "PA", "PR_ratio", "PR_cos"} <= set(results["metric"])
    asr = results[results["metric"] == "ASR"]
    assert (asr["n"] == 38).all(), "the two bananas of 40 images are not in the denominator"
    assert (results[results["metric"] == "ASR_all"]["n"] == 40).all()


def test_order_and_processes_do_not_change_numbers(finished: Path, tmp_path: Path) -> None:
    other = settings("workers=2", attacks=("blended", "badnet"), defenses=("rvpt", "none"))
    assert run_matrix(other, tmp_path, (), QUIET).failures == {}
    pd.testing.assert_frame_equal(numbers(finished), numbers(tmp_path), check_exact=True)


def test_a_killed_run_goes_on_with_the_same_numbers(finished: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.cli", "run", "--preset", "smoke", "--out", str(tmp_path)]
    command += ["--attacks", "badnet,blended", "--defenses", "none,rvpt"]
    command += [part for assignment in TINY for part in ("--set", assignment)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    store = Store(tmp_path)
    deadline = time.monotonic() + 600
    while not list(store.root.glob("defense/[!.]*/card.json")) and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    made_before = {p: p.stat().st_mtime_ns for p in store.root.glob("*/[!.]*/card.json")}
    assert made_before

    report = run_matrix(settings(), tmp_path, (), QUIET)

    assert report.found == len(made_before) and report.made > 0
    assert {p: p.stat().st_mtime_ns for p in made_before} == made_before, "finished work was done again"
    assert not list(store.root.glob("*/.*")), "half-written artefacts were left"
    pd.testing.assert_frame_equal(numbers(finished), numbers(tmp_path), check_exact=True)


def test_a_second_run_makes_nothing(finished: Path) -> None:
    report = run_matrix(settings(), finished, (), QUIET)
    assert (report.made, report.failures) == (0, {})


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
        ("workers=2", set()),
    ],
)
def test_a_changed_setting_remakes_what_depends_on_it(finished: Path, assignment: str, remade: set[str]) -> None:
    _, _, todo = prepare(settings(assignment), finished)
    assert {node.kind for node in todo} == remade


def test_node_ids_are_pinned() -> None:
    # An id that changes without a raised version would silently orphan, or silently reuse, stored results.
    chains = ("none", "linear_probe", "vpt", "rvpt", "cleanclip+rvpt")
    run = resolve("smoke", None, {"attacks": ("badnet",), "defenses": chains})
    plan = make_plan({BASE: run}, {BASE: Fingerprints("model", "pairs", "words", "dataset", "dataset")})
    assert {node.label: node.id for node in plan.nodes.values() if node.kind != "trigger"} == PINNED


PINNED = {
    "backdoor badnet, seed 0": "e39a6794eea55497",
    "evaluation badnet / clean_model, seed 0": "819913029d35e384",
    "evaluation badnet / none, seed 0": "86542ca0014043ef",
    "defense badnet / linear_probe, seed 0": "90486c9c05682546",
    "evaluation badnet / linear_probe, seed 0": "9e6107beadbeea2d",
    "defense badnet / vpt, seed 0": "5b6f44d558a573ce",
    "evaluation badnet / vpt, seed 0": "faaec3de2602de89",
    "defense badnet / rvpt, seed 0": "4d0f67de8a99bd34",
    "evaluation badnet / rvpt, seed 0": "8c350ec97976a1aa",
    "defense badnet / cleanclip, seed 0": "18dd1bd2a55066bb",
    "defense badnet / cleanclip+rvpt, seed 0": "c1c158f38c64fa08",
    "evaluation badnet / cleanclip+rvpt, seed 0": "6529210750636315",
}


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    with Store(tmp_path).locked(), pytest.raises(BenchError, match=r"another run is at work in .* --out"):
        run_matrix(settings(), tmp_path, (), QUIET)


def test_a_full_disk_loses_nothing(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bench.matrix.stages.save_file", full)
    before = sorted(Store(finished).root.glob("*/*/card.json"))
    report = run_matrix(settings("rvpt.alpha=4"), finished, (), QUIET)
    assert any("disk of" in reason and "is full" in reason for reason in report.failures.values())
    assert sorted(Store(finished).root.glob("*/*/card.json")) == before
    assert not list(Store(finished).root.glob("*/.*"))


def test_a_failing_node_stops_only_what_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from attacks.badnet import BadNet

    def broken(*_: object) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(BadNet, "prepare", broken)
    report = run_matrix(settings("zero_shot.perturbations=[flip]"), tmp_path, (), QUIET)
    assert report.failures["trigger badnet, seed 0"] == "RuntimeError: broken on purpose"
    assert report.failures["evaluation badnet / rvpt, seed 0"] == "not tried, since what it is made from failed"
    assert set(collect(tmp_path)["attack"]) == {"blended"}


def test_a_run_that_fails_leaves_the_tables_as_they_were(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "out")
    before = (tmp_path / "out/run.json").read_bytes()
    report = run_matrix(settings("badnet.size=99", attacks=("badnet",)), tmp_path / "out", (), QUIET)
    assert not report.shown
    assert "does not fit into images" in report.failures["backdoor badnet, seed 0"]
    assert (tmp_path / "out/run.json").read_bytes() == before
    assert run_matrix(settings(attacks=("badnet",)), tmp_path / "out", (), QUIET).shown
