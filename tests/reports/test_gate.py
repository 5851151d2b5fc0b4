"""The regression gate: verdicts on results made by hand, and one RVPT that is broken on purpose."""

import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from command import bench
from fabricate import Made, opened, results_folder
from scipy.stats import t as student
from torch import Tensor
from typer.testing import CliRunner, Result

from bench.cli import app as everything
from bench.cli_gate import app
from bench.core.errors import BenchError
from bench.core.registry import load_plugins
from bench.experiment.settings import BASE as BASE_VARIANT
from bench.experiment.settings import RunSettings, resolve
from bench.experiment.suites import variants_of
from bench.results.folder import ResultsFolder
from bench.results.records import Cell, Run
from defenses.rvpt import RVPT
from metrics.prediction import Prediction, angle, share
from reports.baseline import add_rerun, make_baseline, read_baseline
from reports.command import command_of
from reports.gate import Finding, Number, exit_code, judge, verdict_on

load_plugins()

SEEDS = (0, 1, 2)
NOW = Made(n=1000, perturbations=())


def seeded(made: Made = NOW, asr: Sequence[int] = (40, 50, 60), ca: Sequence[int] = (926, 930, 934)) -> list[Made]:
    """A cell with three seeds: hits of 750 triggered images, and of 1,000 clean ones."""
    return [replace(made, seed=s, asr=a, ca=c) for s, a, c in zip(SEEDS, asr, ca, strict=True)]


RVPT_CELLS = seeded()
NONE_CELLS = seeded(replace(NOW, defense="none"), asr=(738, 740, 742), ca=(990, 990, 990))
BASE = [*RVPT_CELLS, *NONE_CELLS]


def gate(
    tmp_path: Path, cells: list[Made], before: list[Made] = BASE, reruns: Sequence[list[Made]] = (), **options: float
) -> dict[tuple, Finding]:
    """Verdicts on cells by (cell, metric), against a baseline of other cells."""
    old, new = (opened(tmp_path / name, *c) for name, c in (("old", before), ("new", cells)))
    others = [opened(tmp_path / f"rerun {i}", *c) for i, c in enumerate(reruns)]
    found = judge(make_baseline(old, others), make_baseline(new), **options)
    return {(f.cell, f.metric): f for f in found if f.verdict != "information"}


def test_the_same_numbers_pass(tmp_path: Path) -> None:
    found = gate(tmp_path, BASE)
    assert {f.verdict for f in found.values()} == {"same"} and len(found) == 4
    assert exit_code(list(found.values())) == 0


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"asr": (60, 50, 40)}, "same"),
        ({"asr": (80, 90, 100)}, "same"),
        ({"asr": (300, 320, 340)}, "worse"),
        ({"ca": (920, 920, 920)}, "same"),
        ({"ca": (700, 710, 720)}, "worse"),
        ({"ca": (960, 960, 960)}, "same"),
        ({"ca": (1000, 1000, 1000)}, "better"),
    ],
)
def test_a_verdict_knows_the_direction_and_chance(tmp_path: Path, change: dict, verdict: str) -> None:
    (metric,) = change
    found = gate(tmp_path, [*seeded(**change), *NONE_CELLS])
    finding = found["badnet / rvpt", metric.upper()]
    assert finding.verdict == verdict
    assert [f for f in found.values() if f.verdict != "same"] == ([] if verdict == "same" else [finding])
    assert exit_code(list(found.values())) == (1 if verdict == "worse" else 0)


RERUNS = [[*seeded(asr=asr), *NONE_CELLS] for asr in ((44, 51, 53), (39, 54, 60))]


@pytest.mark.parametrize("reruns", [[], RERUNS], ids=["seeds", "reruns"])
def test_the_interval_is_that_of_a_t_test_on_angles(tmp_path: Path, reruns: list) -> None:
    """Worked out with NumPy, from the model: angles with one variance, seeds paired."""
    cells = [seeded(asr=counts) for counts in ((300, 320, 340),)]
    finding = gate(tmp_path, [*cells[0], *NONE_CELLS], reruns=reruns)["badnet / rvpt", "ASR"]
    counts = np.array([(40, 44, 39), (50, 51, 54), (60, 53, 60)] if reruns else [(40,), (50,), (60,)])
    angles = np.arcsin(np.sqrt((counts + 0.375) / 750.75))
    if reruns:
        variance, df = angles.var(axis=1, ddof=1).mean(), 6
    else:
        variance, df = angles.var(ddof=1), 2
    sd = np.sqrt(max(variance, 1 / 3002) * (1 + 1 / counts.shape[1]) / 3)
    middle = np.arcsin(np.sqrt((counts.mean() + 0.375) / 750.75))
    # Of five ways to fail: two of the undefended ASR, one of each other number.
    reach = student.isf(0.01 / 5, df) * sd
    low, high = (np.sin(max(end, 0)) ** 2 * 750.75 - 0.375 for end in (middle - reach, middle + reach))
    rise = 100 * (960 / 3 / 750) - finding.before  # type: ignore[operator]
    assert finding.why == (
        f"ASR rose by {rise:.1f} points; unchanged code stays within [{max(low, 0) / 7.5:.1f}, {high / 7.5:.1f}]; "
        "lower is better"
    )
    seen = np.sin(middle + reach + student.isf(0.1, df) * sd) ** 2 * 750.75 - 0.375
    assert finding.seen is not None and (finding.seen.df, finding.seen.source) == (df, "reruns" if reruns else "seeds")
    assert finding.seen.changes == (pytest.approx(seen / 7.5 - finding.before),)


def test_the_tolerance_is_added_to_chance(tmp_path: Path) -> None:
    cells = [*seeded(asr=(300, 320, 340)), *NONE_CELLS]
    strict = gate(tmp_path / "none", cells)["badnet / rvpt", "ASR"]
    forgiving = gate(tmp_path / "some", cells, tolerance=20.0)["badnet / rvpt", "ASR"]
    assert (strict.verdict, forgiving.verdict) == ("worse", "same")
    assert strict.seen is not None and forgiving.seen is not None
    assert strict.seen.ends == forgiving.seen.ends
    # Between the end of what passes and the change that is seen lies the same angle.
    end, seen = 7.5 * strict.seen.ends[1], 7.5 * (strict.before + strict.seen.changes[0])  # type: ignore[operator]
    beyond = angle(seen, 750) - angle(end, 750)
    expected = 100 * share(angle(end + 0.2 * 750, 750) + beyond, 750) - forgiving.before  # type: ignore[operator]
    assert forgiving.seen.changes[0] == pytest.approx(expected)


def test_a_change_that_no_cell_can_see_is_seen_in_the_mean_over_attacks(tmp_path: Path) -> None:
    attacks = [replace(NOW, attack=name) for name in ("badnet", "blended", "wanet", "issba", "badclip")]
    before = [cell for made in attacks for cell in seeded(made, asr=(80, 100, 120))]
    now = [cell for made in attacks for cell in seeded(made, asr=(125, 145, 165))]
    verdicts = {cell: f.verdict for (cell, metric), f in gate(tmp_path, now, before).items() if metric == "ASR"}
    assert verdicts.pop("all attacks / rvpt") == "worse"
    assert set(verdicts.values()) == {"same"} and len(verdicts) == 5


@pytest.mark.parametrize("asr", [(400, 400, 400), (749, 750, 750)], ids=["weaker", "stronger"])
def test_an_attack_that_became_another_fails(tmp_path: Path, asr: tuple[int, ...]) -> None:
    before = [*RVPT_CELLS, *seeded(replace(NOW, defense="none"), asr=(598, 600, 602))]
    finding = gate(tmp_path, [*RVPT_CELLS, *seeded(replace(NOW, defense="none"), asr=asr)], before)
    verdict, why = finding["badnet / none", "ASR"].verdict, finding["badnet / none", "ASR"].why
    assert verdict == ("weaker attack" if asr[0] == 400 else "worse")
    assert ("no defense can be judged by it" in why) == (asr[0] == 400)
    assert exit_code(list(finding.values())) == 1


def test_missing_fails_and_new_does_not(tmp_path: Path) -> None:
    found = gate(tmp_path, [*RVPT_CELLS, *seeded(replace(NOW, attack="wanet"))])
    assert found["badnet / none", ""].verdict == "missing" and found["wanet / rvpt", ""].verdict == "new"
    assert exit_code(list(found.values())) == 1
    assert exit_code([f for f in found.values() if f.verdict != "missing"]) == 0


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"alpha": 3.0}, "defense_1.defense.settings.alpha was 2.0, is 3.0"),
        ({"poisoned": 20}, "backdoor.poison.count was 16, is 20"),
        ({"checkpoint": "another"}, "backdoor.model was the model, is another"),
        ({"data": "others"}, "evaluation.dataset was the data, is others"),
        ({"split": "val"}, "evaluation.evaluate.split was test, is val"),
    ],
)
def test_other_settings_or_data_cannot_be_compared_and_the_difference_is_told(
    tmp_path: Path, change: dict, difference: str
) -> None:
    found = gate(tmp_path, seeded(replace(NOW, **change)), RVPT_CELLS)
    assert [f.verdict for f in found.values()] == ["not comparable"]
    assert difference in found["badnet / rvpt", ""].why.split("; ")
    assert exit_code(list(found.values())) == 2


@pytest.mark.parametrize(
    ("before", "now", "why"),
    [
        (RVPT_CELLS, RVPT_CELLS[:2], "seeds was [0, 1, 2], is [0, 1]"),
        (RVPT_CELLS, RVPT_CELLS[:1], "seeds was [0, 1, 2], is [0]"),
        (
            RVPT_CELLS[:1],
            RVPT_CELLS[:1],
            "the baseline has only seed 0, and one seed shows no spread: write a new one, from a run with "
            "--seeds 0,1,2",
        ),
    ],
)
def test_other_seeds_and_single_ones_cannot_be_compared(
    tmp_path: Path, before: list[Made], now: list[Made], why: str
) -> None:
    found = gate(tmp_path, now, before)
    assert [(f.verdict, f.why) for f in found.values()] == [("not comparable", why)]
    assert exit_code(list(found.values())) == 2


def test_another_version_of_the_code_can_be_compared(tmp_path: Path) -> None:
    card = {"bench": "0.2.0", "torch": "2.7.0", "device": "cuda"}
    newer = [replace(cell, version=2, card=card) for cell in RVPT_CELLS]
    assert gate(tmp_path, newer, RVPT_CELLS)["badnet / rvpt", "ASR"].verdict == "same"


def test_worse_outweighs_not_comparable(tmp_path: Path) -> None:
    others = [replace(cell, poisoned=20) for cell in NONE_CELLS]
    found = gate(tmp_path, [*seeded(asr=(600, 600, 600)), *others])
    assert {f.verdict for f in found.values()} >= {"worse", "not comparable"}
    assert exit_code(list(found.values())) == 1


def test_images_of_the_target_alone_cannot_be_compared(tmp_path: Path) -> None:
    cells = seeded(replace(NOW, n=1), asr=(0, 0, 0), ca=(1, 1, 1))
    assert gate(tmp_path, cells, cells)["badnet / rvpt", "ASR"].verdict == "not comparable"


def test_resistivity_is_told_and_not_judged(tmp_path: Path) -> None:
    before = [replace(cell, perturbations=("trigger",)) for cell in RVPT_CELLS]
    old = make_baseline(opened(tmp_path / "old", *before))
    new = make_baseline(opened(tmp_path / "new", *(replace(cell, pr=0.2) for cell in before)))
    (told,) = [finding for finding in judge(old, new) if finding.verdict not in ("same",)]
    assert (told.metric, told.verdict) == ("PR_cos (trigger)", "information")
    assert (told.before, told.now) == pytest.approx((0.9, 0.2))


def test_a_baseline_keeps_the_numbers_of_each_seed_and_rerun(tmp_path: Path) -> None:
    reruns = [opened(tmp_path / "again", *seeded(asr=(30, 45, 75))), opened(tmp_path / "part", *seeded()[1:])]
    baseline = make_baseline(opened(tmp_path / "first", *seeded()), reruns[:1])
    assert (baseline["seeds"], baseline["reruns"]) == ([0, 1, 2], 1)
    values = {"0": [4e3 / 750, 4.0], "1": [5e3 / 750, 6.0], "2": [8.0, 10.0]}
    number = baseline["cells"][0]["numbers"]["ASR"]
    assert number["n"] == 750 and number["values"].keys() == values.keys()
    for seed, of_runs in values.items():
        assert number["values"][seed] == pytest.approx(of_runs)


@pytest.mark.parametrize(
    ("rerun", "message"),
    [
        (
            seeded(),
            r"rerun has a run with the same numbers as an earlier one: that is no new run.*--reruns 5",
        ),
        (seeded(replace(NOW, alpha=3.0)), r"badnet / rvpt: defense_1\.defense\.settings\.alpha was 2\.0, is 3\.0"),
        (seeded(replace(NOW, attack="wanet")), r"rerun is no rerun of .*first, which has no wanet / rvpt"),
        ([*seeded(), replace(NOW, seed=7)], r"rerun is no rerun of .*first, which has no seeds \[7\]"),
        (seeded()[1:], r"rerun has no seeds \[0\] of badnet / rvpt: finish it with `bench run`"),
    ],
)
def test_what_is_no_rerun_is_refused(tmp_path: Path, rerun: list[Made], message: str) -> None:
    first = opened(tmp_path / "first", *seeded())
    with pytest.raises(BenchError, match=message):
        make_baseline(first, [opened(tmp_path / "rerun", *rerun)])


# --- the commands ----------------------------------------------------------------------------------------------------


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    file = tmp_path / "baseline.json"
    done = run("baseline", results_folder(tmp_path / "old", *BASE), "--out", file)
    assert done.exit_code == 0 and f"wrote {file}: 2 cells" in done.output
    return file


def test_a_rerun_of_other_cells_or_other_code_is_refused(tmp_path: Path) -> None:
    first, rerun = (
        make_baseline(opened(tmp_path / "first", *BASE)),
        opened(tmp_path / "rerun", *seeded(asr=(30, 45, 75))),
    )
    with pytest.raises(BenchError, match=r"^rerun has no badnet / none: finish it with `bench run`"):
        add_rerun(first, make_baseline(rerun), "rerun", "first")
    other = make_baseline(opened(tmp_path / "first again", *BASE))
    other["cells"][0]["code"] = "of another version"
    with pytest.raises(BenchError, match=r"^other is no rerun of first, badnet / rvpt: its code has another version"):
        add_rerun(first, other, "other", "first")


def test_a_rerun_of_ones_own_may_have_the_same_numbers(tmp_path: Path) -> None:
    first, again = (make_baseline(opened(tmp_path / name, *BASE)) for name in ("first", "again"))
    add_rerun(first, again, "again", "first", may_repeat=True)
    assert first["reruns"] == 1
    assert all(len(runs) == 2 for c in first["cells"] for n in c["numbers"].values() for runs in n["values"].values())


def test_reruns_of_some_numbers_alone_leave_the_spread_over_seeds(tmp_path: Path) -> None:
    """A few runs of one cell would be too little to take the place of the seeds of all."""
    before, now = (make_baseline(opened(tmp_path / name, *BASE)) for name in ("first", "now"))
    (cell,) = (cell for cell in before["cells"] if cell["defense"] == "rvpt")
    cell["numbers"]["ASR"]["values"]["0"] *= 2
    (finding,) = (f for f in judge(before, now) if (f.cell, f.metric) == ("badnet / rvpt", "ASR"))
    assert finding.seen is not None and (finding.seen.source, finding.seen.df) == ("seeds", 2)


def test_another_number_of_images_cannot_be_compared(tmp_path: Path) -> None:
    before, now = (make_baseline(opened(tmp_path / name, *BASE)) for name in ("first", "now"))
    now["cells"][0]["numbers"]["ASR"]["n"] = 30
    found = {(f.cell, f.metric): f for f in judge(before, now)}
    assert found["badnet / rvpt", "ASR"].verdict == "not comparable"
    assert found["badnet / rvpt", "ASR"].why == "ASR is of 30 images, in the baseline of 750"
    assert exit_code(list(found.values())) == 2


def test_a_baseline_says_how_it_was_made(baseline: Path) -> None:
    found = read_baseline(baseline)
    assert found["command"] == "bench run --preset smoke --attacks badnet --defenses rvpt,none --seeds 0,1,2"
    assert found["seeds"] == [0, 1, 2]
    assert {"bench", "torch", "python", "numpy"} <= found["versions"].keys()
    assert found["versions"]["torch"] == "2.6.0", "of the run, not of the machine that writes the baseline"
    assert found["commit"] is None or len(found["commit"].removesuffix("-dirty")) == 40


def recorded(run: RunSettings, variants: dict[str, RunSettings], *cells: dict) -> Run:
    """A run as run.json has it."""
    made = tuple(Cell(task="zero_shot", **run.place, **cell) for cell in cells)
    values = {name: settings.model_dump(mode="json") for name, settings in variants.items()}
    return Run(settings=run.model_dump(mode="json"), variants=values, cells=made)


def test_the_command_of_other_settings_makes_them_again() -> None:
    wanted = resolve("mini", None, {"attacks": ("wanet",)}, ("rvpt.alpha=3", "poison.count=70", "evaluate.limit=9"))
    cells = [{"attack": "wanet", "defense": d, "seed": s} for d in ("clean_model", "none", "rvpt") for s in (0, 2)]
    run_of = recorded(wanted, {BASE_VARIANT: wanted}, *cells)
    program, command, *words = shlex.split(command_of(run_of, run_of.cells))
    assert (program, command) == ("bench", "run")
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert (given["--preset"], given["--attacks"], given["--defenses"], given["--seeds"]) == (
        "mini", "wanet", "none,rvpt", "0,2"
    )  # fmt: skip
    assignments = [value for flag, value in zip(words[::2], words[1::2], strict=True) if flag == "--set"]
    assert len(assignments) == 3
    assert resolve("mini", None, {"attacks": ("wanet",)}, tuple(assignments)) == wanted


def test_the_command_of_variants_names_their_suite() -> None:
    variants, _ = variants_of(resolve("mini"), "alpha")
    name = next(name for name in variants if name != BASE_VARIANT)
    cells = [{"attack": "badnet", "defense": "rvpt", "seed": 0, "settings": settings} for settings in ("", name)]
    run_of = recorded(variants[BASE_VARIANT], variants, *cells)
    command = command_of(run_of, run_of.cells)
    assert command == "bench run --suite alpha --preset mini --attacks badnet --defenses rvpt --seeds 0"


def test_runs_from_elsewhere_are_added_to_a_baseline_as_they_come(tmp_path: Path, baseline: Path) -> None:
    moved = [*seeded(asr=(42, 48, 60)), *NONE_CELLS]
    elsewhere = tmp_path / "elsewhere.json"
    assert run("baseline", results_folder(tmp_path / "there", *moved), "--out", elsewhere).exit_code == 0
    third = results_folder(tmp_path / "third", *seeded(asr=(44, 47, 66)), *NONE_CELLS)
    for number, other in enumerate((elsewhere, third), 1):
        done = run("baseline", baseline, other, "--out", baseline)
        assert done.exit_code == 0, done.output
        assert read_baseline(baseline)["reruns"] == number
    at_once = make_baseline(
        ResultsFolder(tmp_path / "old"), [ResultsFolder(tmp_path / name) for name in ("there", "third")]
    )
    assert read_baseline(baseline)["cells"] == at_once["cells"]
    with pytest.raises(BenchError, match=r"elsewhere\.json has a run with the same numbers as an earlier one"):
        add_rerun(read_baseline(baseline), read_baseline(elsewhere), "elsewhere.json", "baseline.json")
    # A file that shares one run with this one, and has a new one.
    fourth = results_folder(tmp_path / "fourth", *seeded(asr=(45, 46, 61)), *NONE_CELLS)
    assert run("baseline", elsewhere, fourth, "--out", tmp_path / "both.json").exit_code == 0
    with pytest.raises(BenchError, match=r"both\.json has a run with the same numbers as an earlier one"):
        add_rerun(read_baseline(baseline), read_baseline(tmp_path / "both.json"), "both.json", "baseline.json")


def test_what_is_unfinished_is_counted_and_not_rerun(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, file = results_folder(tmp_path / "results", *BASE), tmp_path / "baseline.json"
    (unfinished,) = (c for c in ResultsFolder(out).cells if (c.defense, c.seed) == ("rvpt", 2))
    shutil.rmtree(out / "artefacts" / "evaluation" / str(unfinished.evaluation))
    code, said, _ = bench(capsys, monkeypatch, "baseline", str(out), "--out", str(file))
    assert code == 0 and "2 cells, 1 left out as unfinished." in said
    code, _, said = bench(capsys, monkeypatch, "baseline", str(out), "--reruns", "1", "--out", str(file))
    assert code == 2 and "results: 1 (badnet / rvpt, seed 2). Finish its `bench run` first" in said
    assert not (out / "reruns").exists()


def test_check_passes_and_then_fails_for_a_reason_that_it_names(tmp_path: Path, baseline: Path) -> None:
    same = run("check", tmp_path / "old", "--baseline", baseline)
    assert same.exit_code == 0 and "Some numbers have no reruns in the baseline" in same.output
    worse = results_folder(tmp_path / "new", *seeded(asr=(600, 600, 600)), *NONE_CELLS)
    junit, markdown = tmp_path / "ci" / "junit.xml", tmp_path / "ci" / "summary.md"
    done = run("check", worse, "--baseline", baseline, "--junit", junit, "--markdown", markdown)
    assert done.exit_code == 1
    assert "Regression gate FAILED: 1 worse, 3 same" in done.output
    assert "ASR rose by 73.3 points; unchanged code stays within" in done.output and markdown.read_text() in done.output
    suite = ElementTree.parse(junit).getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("4", "1", "0")
    (case,) = [case for case in suite if case.find("failure") is not None]
    assert (case.get("classname"), case.get("name")) == ("badnet / rvpt", "ASR")
    assert case.find("failure").get("message").startswith("worse: ASR rose by 73.3 points")  # type: ignore[union-attr]


def test_check_suggests_the_update_when_better(tmp_path: Path, baseline: Path) -> None:
    better = results_folder(tmp_path / "new", *seeded(ca=(1000, 1000, 1000)), *NONE_CELLS)
    done = run("check", better, "--baseline", baseline)
    assert done.exit_code == 0
    assert "1 better" in done.output
    assert "`bench baseline RESULTS --reruns 5 --out FILE` writes the new one" in done.output


def test_check_exits_with_2_when_settings_differ(tmp_path: Path, baseline: Path) -> None:
    other = results_folder(tmp_path / "new", *seeded(replace(NOW, alpha=3.0)), *NONE_CELLS)
    junit = tmp_path / "junit.xml"
    done = run("check", other, "--baseline", baseline, "--junit", junit)
    assert done.exit_code == 2
    assert "defense_1.defense.settings.alpha was 2.0, is 3.0" in done.output
    assert "bench run --preset smoke --attacks badnet" in done.output, "the command of the baseline"
    assert ElementTree.parse(junit).getroot().get("errors") == "1"


def test_other_metrics_can_be_judged(tmp_path: Path, baseline: Path) -> None:
    worse = results_folder(tmp_path / "new", *seeded(asr=(600, 600, 600)), *NONE_CELLS)
    assert run("check", worse, "--baseline", baseline, "--metrics", "CA").exit_code == 0
    assert "PA fell" in run("check", worse, "--baseline", baseline, "--metrics", "CA,PA").output
    twice = run("check", worse, "--baseline", baseline, "--metrics", "CA,CA").output
    assert twice == run("check", worse, "--baseline", baseline, "--metrics", "CA").output


def test_a_check_that_judges_nothing_does_not_pass(tmp_path: Path, baseline: Path) -> None:
    worse = results_folder(tmp_path / "new", *seeded(asr=(600, 600, 600)), *NONE_CELLS)
    absent = run("check", worse, "--baseline", baseline, "--metrics", "ASR_image")
    assert absent.exit_code == 2 and absent.output.count("no ASR_image in the baseline, nor measured") == 2
    assert isinstance(run("check", worse, "--baseline", baseline, "--metrics", ",").exception, BenchError)
    findings = judge(read_baseline(baseline) | {"cells": []}, make_baseline(ResultsFolder(worse)))
    assert findings[0].verdict == "not comparable" and exit_code(findings) == 2


def test_a_metric_that_is_missing_fails(tmp_path: Path) -> None:
    old, new = (make_baseline(opened(tmp_path / name, *BASE)) for name in ("old", "new"))
    del new["cells"][0]["numbers"]["CA"]
    (missing,) = [f for f in judge(old, new) if f.verdict == "missing"]
    assert (missing.cell, missing.metric) == ("badnet / rvpt", "CA")
    assert exit_code([missing]) == 1


def test_numbers_that_no_change_could_move_out_of_their_interval_do_not_pass(tmp_path: Path) -> None:
    two, worse = (
        [replace(NOW, seed=s, asr=a, ca=c) for s, a, c in zip((0, 1), asr, ca, strict=True)]
        for asr, ca in (((40, 60), (850, 960)), ((740, 750), (100, 120)))
    )
    found = gate(tmp_path, worse, two)
    assert {f.verdict for f in found.values()} == {"cannot fail"} and exit_code(list(found.values())) == 2
    # A rare value beyond the interval still fails, though no change is likely to give one.
    wide = Prediction(angle(500, 1000), 0.1005, 2, 1000)
    of_all = Number("cell", "ASR", False, 50.0, 100.0, wide, 0.1, "reruns")
    assert wide.seen(0.01)[1] is None and wide.ends(0.01)[1] < 1
    assert verdict_on(of_all, 0.01, 0.0).verdict == "worse"
    # Beside numbers that can fail, they are told.
    both = gate(tmp_path / "both", [*worse, *NONE_CELLS], [*two, *NONE_CELLS])
    assert {f.verdict for f in both.values()} == {"cannot fail", "same"} and exit_code(list(both.values())) == 0


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, "no such file. `bench baseline RESULTS --reruns 5 --out"),
        ("{", "is not a baseline of format 4"),
        ("[]", "is not a baseline of format 4"),
        ('{"format": 2}', "of format 4. It has no numbers by seed, which show how much training varies"),
        ('{"format": 99}', "is not a baseline of format 4"),
        ('{"format": 4}', "of format 4. It is damaged: command: Field required"),
    ],
)
def test_a_baseline_that_cannot_be_read(tmp_path: Path, contents: str | None, message: str) -> None:
    file = tmp_path / "baseline.json"
    if contents is not None:
        file.write_text(contents)
    with pytest.raises(BenchError, match=message):
        read_baseline(file)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"values": {"1": [float("nan")]}}, r"cells\.0\.numbers\.ASR\.values\.1\.0: .* finite number"),
        ({"values": {"1": ["5.3"]}}, r"cells\.0\.numbers\.ASR\.values\.1\.0: .* valid number"),
        ({"values": {"1": []}}, r"cells\.0\.numbers\.ASR\.values\.1: .* at least 1 item"),
        ({"values": {"1": [-1.0]}}, "ASR of badnet / rvpt is no share in percent"),
        ({"values": {"1": None}}, r"ASR of badnet / rvpt is of seeds \['0', '2'\], not of \[0, 1, 2\]"),
        ({"n": "750"}, r"cells\.0\.numbers\.ASR\.n: .* valid integer"),
        ({"n": -5}, r"cells\.0\.numbers\.ASR\.n: .* greater than or equal to 0"),
    ],
)
def test_a_baseline_with_a_number_that_is_none_is_damaged(baseline: Path, changed: dict, message: str) -> None:
    contents = json.loads(baseline.read_text())
    number = contents["cells"][0]["numbers"]["ASR"]
    values = number["values"] | changed.get("values", {})
    number |= changed | {"values": {seed: runs for seed, runs in values.items() if runs is not None}}
    baseline.write_text(json.dumps(contents))
    with pytest.raises(BenchError, match=f"It is damaged: {message}"):
        read_baseline(baseline)


def test_a_baseline_whose_parts_do_not_fit_together_is_damaged(baseline: Path) -> None:
    contents = json.loads(baseline.read_text())
    twice = contents | {"cells": [*contents["cells"], contents["cells"][0]]}
    without = contents | {"settings": {}}
    for damaged, message in (
        (twice, "badnet / rvpt is there twice"),
        (without, "settings of badnet / rvpt have no seeds"),
    ):
        baseline.write_text(json.dumps(damaged))
        with pytest.raises(BenchError, match=message):
            read_baseline(baseline)


@pytest.mark.parametrize(
    ("cells", "file", "message"),
    [
        (RVPT_CELLS[:1], None, "badnet / rvpt has only seed 0, and one seed shows no spread. Run with --seeds 0,1,2"),
        (
            RVPT_CELLS,
            '{"format": 2, "cells": []}',
            "It has no numbers by seed, which show how much training varies.",
        ),
    ],
)
def test_what_cannot_be_judged_ends_with_2_and_a_message(
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    cells: list[Made],
    file: str | None,
    message: str,
) -> None:
    out, baseline = str(results_folder(tmp_path / "results", *cells)), tmp_path / "baseline.json"
    words = ["baseline", out, "--out", str(baseline)]
    if file is not None:
        baseline.write_text(file)
        words = ["check", out, "--baseline", str(baseline)]
    code, _, said = bench(capsys, monkeypatch, *words)
    assert code == 2 and message in said
    assert baseline.exists() == (file is not None)


def test_explain_prints_a_row_a_judged_number(tmp_path: Path, baseline: Path) -> None:
    plain = run("check", tmp_path / "old", "--baseline", baseline)
    told = run("check", tmp_path / "old", "--baseline", baseline, "--explain", "--markdown", tmp_path / "gate.md")
    assert "Changes that can be detected" not in plain.output and "Changes that can be detected" in told.output
    assert told.output.strip() == (tmp_path / "gate.md").read_text().strip()
    rows = told.output.split("Changes that can be detected")[1].splitlines()
    assert [tuple(cell.strip() for cell in row.split("|")[1:3]) for row in rows if " / " in row] == [
        ("badnet / rvpt", "ASR"),
        ("badnet / rvpt", "CA"),
        ("badnet / none", "ASR"),
        ("badnet / none", "CA"),
    ]


def test_a_deleted_card_is_told(tmp_path: Path) -> None:
    out = results_folder(tmp_path, NOW)
    shutil.rmtree(out / "artefacts" / "defense")
    with pytest.raises(BenchError, match=r"the inputs of badnet / rvpt, seed 0 are unknown"):
        make_baseline(ResultsFolder(out))


def test_names_are_escaped_in_xml(tmp_path: Path) -> None:
    out = results_folder(tmp_path / "old", *seeded(replace(NOW, attack='<b>"&')))
    run("baseline", out, "--out", tmp_path / "b.json")
    run("check", out, "--baseline", tmp_path / "b.json", "--junit", tmp_path / "j.xml")
    assert ElementTree.parse(tmp_path / "j.xml").getroot()[0].get("classname") == '<b>"& / rvpt'


# --- an RVPT that is broken on purpose -------------------------------------------------------------------------------

# Half of the preset's pairs at a higher learning rate, and a quarter of its shots.
SMALL = ["poison.pairs=3000", "poison.learning_rate=6e-4", "world.train_per_class=32", "rvpt.shots=32"]
# A stronger repulsion than the preset's, so that its sign matters in so short a tuning.
SMALL += ["rvpt.alpha=6", "world.test=300", "zero_shot.perturbations=[]"]


@pytest.mark.slow
def test_the_gate_goes_red_when_alpha_has_the_other_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["run", "--preset", "mini", "--attacks", "badnet", "--defenses", "none,rvpt", "--seeds", "0,1"]
    words += ["--workers", "1"]
    words += [part for setting in SMALL for part in ("--set", setting)]
    good, broken, file = tmp_path / "good", tmp_path / "broken", tmp_path / "baseline.json"
    done = CliRunner().invoke(everything, [*words, "--out", str(good)])
    assert done.exit_code == 0, (done.output, done.exception)
    assert run("baseline", good, "--reruns", 2, "--out", file).exit_code == 0
    unchanged = run("check", good, "--baseline", file, "--explain")
    assert unchanged.exit_code == 0 and "(reruns, 4)" in unchanged.output and "no reruns" not in unchanged.output
    values = {cell["defense"]: cell["numbers"]["ASR"]["values"] for cell in read_baseline(file)["cells"]}
    assert len(values["rvpt"]["0"]) == 3
    assert values["rvpt"]["0"][0] + 30 < values["none"]["0"][0], f"a defense that does nothing: {values}"

    right = RVPT.loss

    def attracting(self: RVPT, prompted: Tensor, frozen: Tensor) -> tuple[Tensor, dict[str, float]]:
        loss, log = right(self, prompted, frozen)
        return -loss, log

    monkeypatch.setattr(RVPT, "loss", attracting)
    shutil.copytree(good, broken)
    shutil.rmtree(broken / "artefacts" / "defense")
    shutil.rmtree(broken / "artefacts" / "evaluation")
    done = CliRunner().invoke(everything, [*words, "--out", str(broken)])
    assert done.exit_code == 0, (done.output, done.exception)
    done = run("check", broken, "--baseline", file)
    assert done.exit_code == 1
    red = [line for line in done.output.splitlines() if "| worse" in line]
    assert len(red) == 1 and "badnet / rvpt" in red[0] and "ASR rose by" in red[0], done.output
