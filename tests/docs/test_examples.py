"""Every example does what its page says: planned, stored, restored, reported, verified, compared, judged."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny import TINY

EXAMPLES = Path(__file__).parents[2] / "examples"
# Enough images for some captions to be the target's.
SMALL = [part for value in (*TINY, "world.test=60", "zero_shot.perturbations=[]") for part in ("--set", value)]


def bench(*words: str | Path, cwd: Path, code: int = 0) -> str:
    command = [sys.executable, "-m", "bench.cli", *map(str, words)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all three examples into one folder."""
    out = tmp_path_factory.mktemp("examples")
    plugins = [part for file in sorted(EXAMPLES.glob("*.py")) for part in ("--plugin", file)]
    words = ["--attacks", "badnet,trojvqa", "--defenses", "none,median_filter,linear_probe", "--tasks", "all"]
    words += ["--seeds", "0,1"]
    bench("run", "--preset", "smoke", *words, *SMALL, *plugins, cwd=out)
    return out


def test_the_page_names_every_example() -> None:
    page = (EXAMPLES / "README.md").read_text()
    assert all(f"`{file.name}`" in page for file in EXAMPLES.glob("*.py"))


def test_a_task_of_a_plugin_is_listed(tmp_path: Path) -> None:
    listed = bench("list", "tasks", "--plugin", EXAMPLES / "retrieval.py", cwd=tmp_path)
    assert "retrieval" in listed and "zero_shot" in listed


def test_all_tasks_and_metrics_over_cells_are_in_the_report(finished: Path) -> None:
    table = (finished / "results/table.md").read_text()
    assert "## Task: retrieval" in table and "retrieval_ASR (R@1) in percent" in table
    assert "median_filter" in table and "worst_attack (none):" in table
    assert "badnet: linear_probe: a head of classes retrieves no captions" in table
    assert (finished / "results/retrieved.parquet").is_file()


def test_a_finished_run_makes_nothing_again(finished: Path) -> None:
    plugins = [part for file in sorted(EXAMPLES.glob("*.py")) for part in ("--plugin", file)]
    words = ["--attacks", "badnet,trojvqa", "--defenses", "none,median_filter,linear_probe", "--tasks", "all"]
    words += ["--seeds", "0,1"]
    assert ", 0 to make" in bench("run", "--preset", "smoke", *words, *SMALL, *plugins, cwd=finished)


def test_a_task_of_a_plugin_is_verified_compared_and_judged(finished: Path) -> None:
    verified = bench("verify", "results", cwd=finished)
    assert "retrieved" in verified and "all as computed again" in verified
    compared = bench("compare", "results", "none", "median_filter", cwd=finished)
    assert "retrieval_ASR" in compared and "R@1" in compared and "ASR" in compared
    bench("baseline", "results", "--out", "baseline.json", cwd=finished)
    # Two seeds are too few to judge by, and the check says so.
    judged = bench("check", "results", "--baseline", "baseline.json", cwd=finished, code=2)
    assert "badnet / none, retrieval" in judged and "R@1" in judged and "cannot fail" in judged


def test_a_defense_with_a_part_of_its_own_is_evaluated_as_what_it_is(finished: Path) -> None:
    """The filter changes every image, so features of the filtered model differ from those of the undefended one."""
    code = (
        "import bench, torch\n"
        "folder = bench.open('results')\n"
        "cells = {c.defense: c for c in folder.cells if c.attack == 'badnet' and c.task == 'zero_shot'}\n"
        "images = folder.resources.test.load([0, 1, 2])\n"
        "plain, filtered = (folder.victim(cells[n]).encode(images).embedding for n in ('none', 'median_filter'))\n"
        "print(folder.victim(cells['median_filter']).parts[0].side, torch.equal(plain, filtered))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=finished, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["3", "False"], done.stderr
