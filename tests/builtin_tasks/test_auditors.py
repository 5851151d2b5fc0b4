"""The auditors as tasks: a planted backdoor scores higher than none; what they need and cannot look at."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import CLASSES, TARGET, dark_images, planted
from rich.console import Console
from scipy import stats
from tiny import TINY

from attacks.badnet import BadNet
from bench import BenchError, Case, Clip, Labelled, Observations, Task, Trigger, Victim, defenses, metrics, tasks
from bench.builtin_tasks.auditor import Auditor
from bench.builtin_tasks.collapse import CollapseAuditor
from bench.builtin_tasks.decree import Decree
from bench.builtin_tasks.mm_bd import MMBD, p_largest
from bench.builtin_tasks.neural_cleanse import NeuralCleanse
from bench.builtin_tasks.weights import WeightsAuditor
from bench.core.registry import load_plugins
from bench.data.world import World
from bench.experiment.settings import BASE, resolve
from bench.matrix.plan import unsuited
from bench.matrix.runner import run_matrix
from bench.results.folder import ResultsFolder
from reports.report import write_report
from reports.verify import verify

load_plugins()
SMALL: dict[str, Auditor] = {
    "collapse": CollapseAuditor(images=40, made_on=16, steps=30, batch_size=8, restarts=1, families=("square",)),
    "weights": WeightsAuditor(images=40),
    "neural_cleanse": NeuralCleanse(images=40, checks=12, steps=4, batch_size=8),
    "decree": Decree(images=40, epochs=40, batch_size=8, wanted=0.9),
    "mm_bd": MMBD(images=40, starts=2, steps=20, rate=1.0),
}


def case(clip: Clip) -> Case:
    images = dark_images()
    labels = torch.arange(len(images)) % len(CLASSES)
    evaluated = Labelled([str(i) for i in range(len(images))], images, "images", labels=labels, classes=CLASSES)
    trigger = Trigger(0, {"patch": torch.ones(3, 6, 6)})
    attack = BadNet(size=6, pattern="fixed", place="lower_right")
    return Case(World(), evaluated, attack, trigger, TARGET, 0, 16, open_base=lambda: clip)


def seen(task: Task, victim: Victim) -> Observations:
    [found] = task.observe([victim], case(victim.clip))
    assert isinstance(found, Observations)
    return found


def score(task: Task, victim: Victim) -> float:
    return float(seen(task, victim)["findings"]["score"].iloc[0])


@pytest.mark.parametrize("name", ["collapse", "decree"])
def test_a_planted_backdoor_scores_above_none(name: str, tiny_clip: Clip) -> None:
    assert score(SMALL[name], planted(tiny_clip)) > score(SMALL[name], planted(tiny_clip, strength=0))


@pytest.mark.parametrize("name", ["collapse", "neural_cleanse"])
def test_the_target_of_a_planted_backdoor_is_named(name: str, tiny_clip: Clip) -> None:
    found = seen(SMALL[name], planted(tiny_clip))
    assert found["findings"]["named"].iloc[0] == TARGET
    assert metrics[f"{name}_target"].measure(found)[""].value == 100


@pytest.mark.parametrize("name", SMALL)
def test_every_auditor_gives_one_row_the_same_each_time(name: str, tiny_clip: Clip) -> None:
    first, second = (seen(SMALL[name], planted(tiny_clip)) for _ in range(2))
    assert len(first["findings"]) == 1
    assert first["findings"].equals(second["findings"])
    assert np.isfinite(first["findings"]["score"]).all()
    assert sum(first.facts["success"]) <= 40
    assert metrics[f"{name}_score"].measure(first)[""].value == first["findings"]["score"].iloc[0]
    assert (metrics[f"{name}_target"].measure(first) == {}) == (name == "decree")


def test_collapse_scores_the_family_that_does_most_and_needs_no_clean_model(tiny_clip: Clip) -> None:
    method = CollapseAuditor(images=40, made_on=16, steps=3, restarts=1)
    [found] = method.observe([planted(tiny_clip)], replace(case(tiny_clip), open_base=None))
    assert isinstance(found, Observations)
    details = found.facts["details"]
    assert set(details) == set(method.families)
    assert found["findings"]["score"].iloc[0] == max(details.values()) == details["square"]


def test_the_weights_of_an_unchanged_model_score_nothing(tiny_clip: Clip) -> None:
    assert score(SMALL["weights"], Victim(tiny_clip)) == 0


def test_weights_need_the_clean_model(tiny_clip: Clip) -> None:
    [failed] = SMALL["weights"].observe([Victim(tiny_clip)], replace(case(tiny_clip), open_base=None))
    assert isinstance(failed, BenchError) and "none is declared" in str(failed)


def test_weights_of_a_resnet_fail_alone(tiny_clip: Clip, resnet: Clip) -> None:
    given = replace(case(tiny_clip), open_base=lambda: tiny_clip)
    seen = SMALL["weights"].observe([Victim(resnet), Victim(tiny_clip)], given)
    assert isinstance(seen[0], BenchError) and not isinstance(seen[1], BenchError)


def test_mm_bd_s_p_is_the_authors_formula() -> None:
    margins = np.array([1.0, 1.2, 0.8, 1.1, 0.9, 1.05, 3.0])
    shape, place, scale = stats.gamma.fit(margins[:-1])
    expected = 1 - stats.gamma.cdf(3.0, a=shape, loc=place, scale=scale) ** len(margins)
    assert p_largest(margins) == pytest.approx(expected, abs=1e-9)
    assert p_largest(np.ones(5)) == 1


def test_published_settings_are_the_authors() -> None:
    cleanse, decree, margin = NeuralCleanse(), Decree(), MMBD()
    assert (cleanse.rate, cleanse.batch_size, cleanse.cost, cleanse.wanted) == (0.1, 32, 1e-3, 0.99)
    assert (cleanse.cost_factor, cleanse.patience, cleanse.steps, cleanse.checks) == (2, 5, 1000 // 32, 1000)
    assert (decree.rate, decree.epochs, decree.batch_size, decree.cost_factor, decree.wanted) == (
        0.5,
        1000,
        32,
        5,
        0.99,
    )
    assert [decree.rate_at(epoch) for epoch in (0, 199, 200, 499, 500, 999)] == [0.5, 0.5, 0.1, 0.1, 0.05, 0.05]
    assert (margin.starts, margin.steps, margin.rate, margin.momentum) == (30, 300, 0.01, 0.2)


def test_auditors_are_asked_for_by_name_and_have_no_row_of_the_clean_model() -> None:
    assert not set(SMALL) & set(resolve("smoke", None, {"tasks": ("all",)}).tasks)
    assert not any(tasks[name].clean_model_row for name in SMALL)


def test_a_model_with_a_head_is_not_audited() -> None:
    run = resolve("smoke")
    assert "this model has a head" in unsuited(run, "collapse", "badnet", ("linear_probe",))
    assert unsuited(run, "collapse", "badnet", ("rvpt",)) == ""
    assert "linear_probe" in defenses


def test_a_run_with_auditors_is_reported_and_verified(tiny_clip: Clip, tmp_path: Path) -> None:
    tiny_clip.save(tmp_path / "model")
    flags = {"attacks": ("badnet", "benign"), "defenses": ("none",), "tasks": ("zero_shot", "weights")}
    settings = (*TINY, f"model.name=local-dir:{tmp_path / 'model'}", "zero_shot.perturbations=[]")
    run = resolve("smoke", None, flags, settings)
    assert run_matrix({BASE: run}, tmp_path / "out", (), Console(quiet=True)).failures == {}
    text = write_report(ResultsFolder(tmp_path / "out"))
    assert "weights_score (weights_target), a number per model; 1 seed(s)" in text
    assert "weights_detection (AUROC): no number. 0 backdoored and 1 clean models." in text
    assert verify(ResultsFolder(tmp_path / "out")).problems == []
