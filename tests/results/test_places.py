"""Runs on several data sets into one folder: all of their cells are in its tables, and none are mixed."""

from pathlib import Path

import pytest
from fabricate import Made, predictions, similarities, write_artefact
from rich.console import Console

from bench.core.errors import BenchError
from bench.core.registry import load_plugins
from bench.experiment.settings import BASE, resolve
from bench.matrix.plan import Fingerprints, make_plan
from bench.matrix.runner import cells_of, run_matrix
from bench.results.folder import ResultsFolder
from bench.results.run_file import write_run
from bench.results.store import Store
from reports.baseline import make_baseline
from reports.paper.write import write_paper_tables
from reports.report import write_report

FLAGS = {"attacks": ("badnet",), "defenses": ("none", "rvpt")}


def run(out: Path, preset: str, *assignments: str, asr: int = 10, card: dict | None = None) -> str:
    """Record a run and fabricate its artefacts; triggers hit `asr` of 75 images. What the run says."""
    load_plugins()
    variants = {BASE: resolve(preset, None, FLAGS, assignments)}
    settings = variants[BASE]
    said: list[str] = []
    plan = make_plan(
        variants, {BASE: Fingerprints("weights", "pairs", settings.dataset, settings.dataset, settings.dataset)}
    )
    write_run(variants, cells_of(plan, variants), out, (), said.append)
    store, made = Store(out), Made(asr=asr)
    tables = {"predictions.parquet": predictions(made), "similarities.parquet": similarities(made)}
    for node in plan.nodes.values():
        write_artefact(store, node.inputs, card or {}, tables if node.kind == "evaluation" else {})
    return "\n".join(said)


def asr(out: Path) -> dict[tuple[str, str], float]:
    results = ResultsFolder(out).results
    rows = results[(results["metric"] == "ASR") & (results["defense"] == "rvpt")]
    return dict(zip(zip(rows["dataset"], rows["target"], strict=True), rows["value"], strict=True))


def test_table_2_has_all_the_data_sets_that_were_run_into_one_folder(tmp_path: Path) -> None:
    assert run(tmp_path, "paper-caltech101", asr=15) == ""
    assert run(tmp_path, "paper-oxfordpets", asr=30) == ""
    said = run(tmp_path, "paper-imagenet", asr=45)
    # Said where they stand in one table: ImageNet's preset has a pool, and cleans two attacks more gently.
    assert said.count("These other settings differ, too: poison, against.") == 2
    assert "3 cells on caltech101, target accordion, ViT-B-32 openai stay in the tables." in said
    assert asr(tmp_path) == {("caltech101", "accordion"): 20, ("oxfordpets", "samoyed"): 40, ("imagenet", "banana"): 60}

    _, lacking = write_paper_tables(ResultsFolder(tmp_path), None)
    [rvpt] = [line for line in (tmp_path / "tables/table-2.md").read_text().splitlines() if line.startswith("| RVPT")]
    assert "20.0" in rvpt and "40.0" in rvpt and "60.0" not in rvpt
    assert "60.0" in (tmp_path / "tables/table-1.md").read_text()
    assert f"`bench run --preset paper-oxfordpets --suite cross-dataset --out {tmp_path}`" in "\n".join(lacking)


def test_a_run_replaces_the_cells_of_its_own_place_alone(tmp_path: Path) -> None:
    run(tmp_path, "paper-caltech101", asr=15)
    run(tmp_path, "paper-oxfordpets", asr=30)
    assert run(tmp_path, "paper-caltech101") == ""
    assert asr(tmp_path) == {("caltech101", "accordion"): 20, ("oxfordpets", "samoyed"): 40}
    assert {cell.dataset for cell in ResultsFolder(tmp_path).run.cells} == {"caltech101"}
    said = run(tmp_path, "paper-caltech101", "seeds=[1]", "rvpt.alpha=3", asr=60)
    assert "3 cells of earlier runs" in said and "had other settings and leave its tables" in said
    assert asr(tmp_path) == {("caltech101", "accordion"): 80, ("oxfordpets", "samoyed"): 40}
    assert len(ResultsFolder(tmp_path).cells) == 6


def test_a_baseline_names_the_command_of_each_place(tmp_path: Path) -> None:
    run(tmp_path, "paper-caltech101")
    run(tmp_path, "paper-oxfordpets")
    flags = "--attacks badnet --defenses none,rvpt --seeds 0"
    commands = [f"bench run --preset paper-{name} {flags}" for name in ("oxfordpets", "caltech101")]
    assert make_baseline(ResultsFolder(tmp_path))["command"] == " && ".join(commands)


@pytest.mark.parametrize(
    ("assignments", "card", "message"),
    [
        ((), {"bench": "0.2.0"}, "mixes versions of bench"),
        (("evaluate.split=val",), {}, "mixes splits"),
    ],
)
def test_places_of_other_versions_and_splits_are_refused(
    assignments: tuple, card: dict, message: str, tmp_path: Path
) -> None:
    run(tmp_path, "paper-caltech101")
    run(tmp_path, "paper-oxfordpets", *assignments, card=card)
    with pytest.raises(BenchError, match=message):
        _ = ResultsFolder(tmp_path).results


def test_the_main_table_and_the_triggers_are_of_the_last_runs_place_alone(tmp_path: Path) -> None:
    load_plugins()
    small = ("world.test=40", "world.train_per_class=2", "poison.pairs=32", "execution.workers=1")
    for target, attacks in {"banana": ("badnet", "blended"), "key": ("badnet",)}.items():
        flags = {"target": target, "attacks": attacks, "defenses": ("none",), "zero_shot": {"perturbations": []}}
        variants = {BASE: resolve("smoke", None, flags, (*small, f"poison.count={len(attacks) + 3}"))}
        assert run_matrix(variants, tmp_path, (), Console(quiet=True)).failures == {}
    text = write_report(ResultsFolder(tmp_path))
    assert "target key" in text and "blended" not in text and "Poisoned pairs: 4 of 32" in text
    assert [file.name for file in (tmp_path / "triggers").iterdir()] == ["badnet.png"]
    assert set(ResultsFolder(tmp_path).results["target"]) == {"banana", "key"}
