"""Reruns with other rounding errors, on tiny models."""

import shutil
from pathlib import Path

import pytest
import torch
from command import bench as command

import bench
from bench import BenchError, Clip
from bench.core.clip import NUDGE
from bench.matrix.rerun import rerun
from bench.results.folder import ResultsFolder
from benchmarks.gate.processors import table
from reports.baseline import make_baseline, read_baseline

METHODS = {"rvpt": {"epochs": 2}, "zero_shot": {"perturbations": ["trigger"], "perturbation_images": 8}}
SIZES = {"world": {"train_per_class": 2}, "poison": {"pairs": 32, "count": 8}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ResultsFolder:
    out = tmp_path_factory.mktemp("base")
    return bench.run("badnet", ["none", "rvpt"], preset="smoke", seeds=[0, 1], out=out, quiet=True, **METHODS, **SIZES)


def test_a_rerun_has_the_settings_and_backdoors_of_its_run_and_other_last_bits(
    tmp_path: Path, base: ResultsFolder
) -> None:
    again = rerun(base, tmp_path / "again", 1)
    assert {cell.backdoor for cell in again.cells} == {cell.backdoor for cell in base.cells}
    baseline = make_baseline(base, [again])
    (resistivity,) = [cell["numbers"]["PR_cos (trigger)"] for cell in baseline["cells"] if cell["defense"] == "rvpt"]
    first, second = resistivity["values"]["0"]
    assert first != second and first == pytest.approx(second, abs=1e-3)
    worse = rerun(base, tmp_path / "worse", 1, {"rvpt": {"alpha": 0.5}, "defenses": ("rvpt",)})
    with pytest.raises(BenchError, match=r"defense_1\.defense\.settings\.alpha was 2\.0, is 0\.5"):
        make_baseline(base, [worse])


def test_each_weight_of_a_nudged_model_is_off_by_a_share_of_its_size(tiny_clip: Clip) -> None:
    def weights(clip: Clip) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in clip.model.parameters()])

    as_it_is, one, again, other = (weights(clip) for clip in (tiny_clip, *map(tiny_clip.nudged, (1, 1, 2))))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(one[as_it_is == 0], as_it_is[as_it_is == 0])
    there = as_it_is != 0
    shares = one[there].double() / as_it_is[there].double() - 1
    assert shares.std() == pytest.approx(NUDGE, rel=0.05) and abs(shares.mean()) < NUDGE / 20
    assert shares.abs().max() < 7 * NUDGE


def test_a_folder_of_another_state_of_the_code_is_refused_before_anything_is_made(
    tmp_path: Path, base: ResultsFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.matrix.rerun.sources", lambda: "of another commit")
    with pytest.raises(BenchError, match="was made by another state of the code"):
        rerun(base, tmp_path / "again", 1)
    assert not (tmp_path / "again").exists()


def test_the_script_that_compares_processors_shows_how_far_their_models_lie_apart(
    tmp_path: Path, base: ResultsFolder
) -> None:
    other = shutil.copytree(base.out, tmp_path / "other")
    first, second = sorted({cell.backdoor: cell.seed for cell in base.cells}.items(), key=lambda each: each[1])
    base.store.clip(second[0]).nudged(7).save(other / "artefacts" / "backdoor" / second[0])
    rows = table(base, ResultsFolder(other), images=8).set_index("seed")
    assert rows.loc[first[1], "elsewhere"] == 0
    assert 1e-7 < rows.loc[second[1], "elsewhere"] == pytest.approx(rows.loc[second[1], "nudged"], rel=0.5)


def test_a_baseline_with_reruns_is_one_command(
    tmp_path: Path, base: ResultsFolder, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "baseline.json"
    code, out, err = command(capsys, monkeypatch, "baseline", str(base.out), "--reruns", "1", "--out", str(file))
    assert code == 0, out + err
    cells = {cell["defense"]: cell["numbers"] for cell in read_baseline(file)["cells"]}
    assert [len(values) for values in cells["rvpt"]["ASR"]["values"].values()] == [2, 2]
    # Poisoning is not repeated.
    assert {cell.backdoor for cell in bench.open(base.out / "reruns" / "1").cells} == {c.backdoor for c in base.cells}
    code, out, err = command(capsys, monkeypatch, "baseline", str(file), "--reruns", "1", "--out", str(file))
    assert code == 2 and "bench baseline RESULTS --reruns 1" in err
