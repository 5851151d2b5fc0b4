"""The regression gate: verdicts on results made by hand, and one RVPT that is broken on purpose."""

import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from fabricate import Made, opened, results_folder
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
from reports.baseline import make_baseline, read_baseline
from reports.command import command_of
from reports.gate import Finding, exit_code, judge

load_plugins()

NOW = Made(n=1000, asr=50, ca=930, perturbations=())
BASE = [NOW, replace(NOW, defense="none", asr=740, ca=990)]


def gate(tmp_path: Path, cells: list[Made], before: list[Made] = BASE, **options: float) -> dict[tuple, Finding]:
    """Verdicts on cells by (cell, metric), against a baseline of other cells."""
    old, new = (opened(tmp_path / name, *c) for name, c in (("old", before), ("new", cells)))
    found = judge(make_baseline(old), make_baseline(new), **options)
    return {(f.cell, f.metric): f for f in found if f.verdict != "information"}


def test_the_same_numbers_pass(tmp_path: Path) -> None:
    found = gate(tmp_path, BASE)
    assert {f.verdict for f in found.values()} == {"same"} and len(found) == 4
    assert exit_code(list(found.values())) == 0


@pytest.mark.parametrize(
    ("metric", "count", "verdict"),
    [
        # Of 750 triggered images, 50 before. Two shares of 6.7 % and 10 % differ beyond 99 % chance from about 81 on.
        ("asr", 60, "same"),
        ("asr", 120, "worse"),
        ("asr", 40, "same"),
        ("asr", 5, "better"),
        # Of 1,000 clean images, 930 before.
        ("ca", 915, "same"),
        ("ca", 850, "worse"),
        ("ca", 980, "better"),
    ],
)
def test_a_verdict_knows_the_direction_and_chance(tmp_path: Path, metric: str, count: int, verdict: str) -> None:
    found = gate(tmp_path, [replace(NOW, **{metric: count}), BASE[1]])
    finding = found["badnet / rvpt", metric.upper()]
    assert finding.verdict == verdict
    assert [f for f in found.values() if f.verdict != "same"] == ([] if verdict == "same" else [finding])
    assert exit_code(list(found.values())) == (1 if verdict == "worse" else 0)


def test_the_reason_names_numbers_and_interval(tmp_path: Path) -> None:
    why = gate(tmp_path, [replace(NOW, asr=600), BASE[1]])["badnet / rvpt", "ASR"].why
    # 50 and 600 of 750. Wilson's ends at 99 % by hand, combined as Newcombe's method 10 does.
    z, n = 2.5758293035489004, 750

    def ends(p: float) -> tuple[float, float]:
        middle, half = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
        return (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)

    before, now = 50 / n, 600 / n
    low = now - before - ((now - ends(now)[0]) ** 2 + (ends(before)[1] - before) ** 2) ** 0.5
    high = now - before + ((ends(now)[1] - now) ** 2 + (before - ends(before)[0]) ** 2) ** 0.5
    assert why == (
        f"ASR rose by 73.3 points, 99% interval of the change [{100 * low:+.1f}, {100 * high:+.1f}], "
        "50 of 750 before and 600 of 750 now; lower is better"
    )


def test_the_tolerance_is_added_to_chance(tmp_path: Path) -> None:
    cells = [replace(NOW, asr=120), BASE[1]]
    assert gate(tmp_path / "none", cells)["badnet / rvpt", "ASR"].verdict == "worse"
    assert gate(tmp_path / "ten", cells, tolerance=10.0)["badnet / rvpt", "ASR"].verdict == "same"


def test_an_attack_that_grew_weaker_is_no_progress(tmp_path: Path) -> None:
    found = gate(tmp_path, [NOW, replace(BASE[1], asr=400)])
    assert found["badnet / none", "ASR"].verdict == "weaker attack"
    assert "no defense can be judged by it" in found["badnet / none", "ASR"].why
    assert exit_code(list(found.values())) == 1


def test_missing_fails_and_new_does_not(tmp_path: Path) -> None:
    found = gate(tmp_path, [NOW, Made(attack="wanet", n=1000)])
    assert found["badnet / none", ""].verdict == "missing" and found["wanet / rvpt", ""].verdict == "new"
    assert exit_code(list(found.values())) == 1
    assert exit_code([f for f in found.values() if f.verdict != "missing"]) == 0


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"alpha": 3.0}, "defense_1.defense.settings.alpha was 2.0, is 3.0"),
        ({"poisoned": 20}, "backdoor.poison.count was 16, is 20"),
        ({"checkpoint": "another"}, "backdoor.model was the model, is another"),
        ({"split": "val"}, "evaluation.evaluate.split was test, is val"),
        ({"seed": 1}, "seeds was [0], is [1]"),
    ],
)
def test_other_settings_cannot_be_compared_and_the_difference_is_told(
    tmp_path: Path, change: dict, difference: str
) -> None:
    found = gate(tmp_path, [replace(NOW, **change)], [NOW])
    assert [(f.verdict, f.why) for f in found.values()] == [("not comparable", difference)]
    assert exit_code(list(found.values())) == 2


def test_another_version_of_the_code_can_be_compared(tmp_path: Path) -> None:
    newer = replace(NOW, version=2, card={"bench": "0.2.0", "torch": "2.7.0", "device": "cuda"})
    assert gate(tmp_path, [newer], [NOW])["badnet / rvpt", "ASR"].verdict == "same"


def test_worse_outweighs_not_comparable(tmp_path: Path) -> None:
    found = gate(tmp_path, [replace(NOW, asr=600), replace(BASE[1], poisoned=20)])
    assert {f.verdict for f in found.values()} >= {"worse", "not comparable"}
    assert exit_code(list(found.values())) == 1


def test_images_of_the_target_alone_cannot_be_compared(tmp_path: Path) -> None:
    found = gate(tmp_path, [replace(NOW, n=1, asr=0, ca=1)], [replace(NOW, n=1, asr=0, ca=1)])
    assert found["badnet / rvpt", "ASR"].verdict == "not comparable"


def test_resistivity_is_told_and_not_judged(tmp_path: Path) -> None:
    before, now = replace(NOW, perturbations=("trigger",)), replace(NOW, perturbations=("trigger",), pr=0.2)
    old, new = (make_baseline(opened(tmp_path / name, made)) for name, made in (("old", before), ("new", now)))
    (told,) = [finding for finding in judge(old, new) if finding.verdict not in ("same",)]
    assert (told.metric, told.verdict) == ("PR_cos (trigger)", "information")
    assert (told.before, told.now) == pytest.approx((0.9, 0.2))


def test_seeds_are_pooled_without_counting_images_twice(tmp_path: Path) -> None:
    baseline = make_baseline(opened(tmp_path, NOW, replace(NOW, seed=1, asr=70)))
    assert baseline["seeds"] == [0, 1]
    assert [cell["numbers"]["ASR"] for cell in baseline["cells"]] == [{"value": 8.0, "count": 60.0, "n": 750}]


# --- the commands ----------------------------------------------------------------------------------------------------


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    file = tmp_path / "baseline.json"
    done = run("baseline", results_folder(tmp_path / "old", *BASE), "--out", file)
    assert done.exit_code == 0 and f"wrote {file}: 2 cells" in done.output
    return file


def test_a_baseline_says_how_it_was_made(baseline: Path) -> None:
    found = read_baseline(baseline)
    assert found["command"] == "bench run --preset smoke --attacks badnet --defenses rvpt,none --seeds 0"
    assert found["seeds"] == [0]
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


def test_check_passes_and_then_fails_for_a_reason_that_it_names(tmp_path: Path, baseline: Path) -> None:
    assert run("check", tmp_path / "old", "--baseline", baseline).exit_code == 0
    worse = results_folder(tmp_path / "new", replace(NOW, asr=600), BASE[1])
    junit, markdown = tmp_path / "ci" / "junit.xml", tmp_path / "ci" / "summary.md"
    done = run("check", worse, "--baseline", baseline, "--junit", junit, "--markdown", markdown)
    assert done.exit_code == 1
    assert "Regression gate FAILED: 1 worse, 3 same" in done.output
    assert "ASR rose by 73.3 points" in done.output and markdown.read_text() in done.output
    suite = ElementTree.parse(junit).getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("4", "1", "0")
    (case,) = [case for case in suite if case.find("failure") is not None]
    assert (case.get("classname"), case.get("name")) == ("badnet / rvpt", "ASR")
    assert case.find("failure").get("message").startswith("worse: ASR rose by 73.3 points")  # type: ignore[union-attr]


def test_check_suggests_the_update_when_better(tmp_path: Path, baseline: Path) -> None:
    better = results_folder(tmp_path / "new", replace(NOW, asr=1), BASE[1])
    done = run("check", better, "--baseline", baseline)
    assert done.exit_code == 0
    assert "1 better" in done.output and "`bench baseline RESULTS --out FILE` writes the new one" in done.output


def test_check_exits_with_2_when_settings_differ(tmp_path: Path, baseline: Path) -> None:
    other = results_folder(tmp_path / "new", replace(NOW, alpha=3.0), BASE[1])
    junit = tmp_path / "junit.xml"
    done = run("check", other, "--baseline", baseline, "--junit", junit)
    assert done.exit_code == 2
    assert "defense_1.defense.settings.alpha was 2.0, is 3.0" in done.output
    assert "bench run --preset smoke --attacks badnet" in done.output, "the command of the baseline"
    assert ElementTree.parse(junit).getroot().get("errors") == "1"


def test_other_metrics_can_be_judged(tmp_path: Path, baseline: Path) -> None:
    worse = results_folder(tmp_path / "new", replace(NOW, asr=600), BASE[1])
    assert run("check", worse, "--baseline", baseline, "--metrics", "CA").exit_code == 0
    assert "PA fell" in run("check", worse, "--baseline", baseline, "--metrics", "CA,PA").output


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, "no such file. `bench baseline RESULTS --out"),
        ("{", "is not a baseline of format 2"),
        ("[]", "is not a baseline of format 2"),
        ('{"format": 99}', "is not a baseline of format 2"),
    ],
)
def test_a_baseline_that_cannot_be_read(tmp_path: Path, contents: str | None, message: str) -> None:
    file = tmp_path / "baseline.json"
    if contents is not None:
        file.write_text(contents)
    with pytest.raises(BenchError, match=message):
        read_baseline(file)


def test_a_deleted_card_is_told(tmp_path: Path) -> None:
    out = results_folder(tmp_path, NOW)
    shutil.rmtree(out / "artefacts" / "defense")
    with pytest.raises(BenchError, match=r"the inputs of badnet / rvpt, seed 0 are unknown"):
        make_baseline(ResultsFolder(out))


def test_names_are_escaped_in_xml(tmp_path: Path) -> None:
    out = results_folder(tmp_path / "old", replace(NOW, attack='<b>"&'))
    run("baseline", out, "--out", tmp_path / "b.json")
    run("check", out, "--baseline", tmp_path / "b.json", "--junit", tmp_path / "j.xml")
    assert ElementTree.parse(tmp_path / "j.xml").getroot()[0].get("classname") == '<b>"& / rvpt'


# --- an RVPT that is broken on purpose -------------------------------------------------------------------------------

SMALL = ["world.test=300", "world.train_per_class=32", "rvpt.shots=32", "zero_shot.perturbations=[]"]


@pytest.mark.slow
def test_the_gate_goes_red_when_alpha_has_the_other_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["run", "--preset", "mini", "--attacks", "badnet", "--defenses", "none,rvpt", "--workers", "1"]
    words += [part for setting in SMALL for part in ("--set", setting)]
    good, broken, file = tmp_path / "good", tmp_path / "broken", tmp_path / "baseline.json"
    done = CliRunner().invoke(everything, [*words, "--out", str(good)])
    assert done.exit_code == 0, (done.output, done.exception)
    assert run("baseline", good, "--out", file).exit_code == 0
    assert run("check", good, "--baseline", file).exit_code == 0
    asr = {cell["defense"]: cell["numbers"]["ASR"]["value"] for cell in read_baseline(file)["cells"]}
    assert asr["rvpt"] + 30 < asr["none"], f"a defense that does nothing could not be broken: {asr}"

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
