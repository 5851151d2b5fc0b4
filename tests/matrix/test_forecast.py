"""How long a run takes: by like artefacts, by declared work at a measured pace, and corrected by what was made."""

import io
import re
from pathlib import Path

import pytest
import torch
from fabricate import Made, results_folder
from rich.console import Console
from tiny import TINY

from bench.core.clip import Clip
from bench.core.registry import load_plugins
from bench.experiment.settings import BASE, RunSettings, resolve
from bench.matrix.estimate import work_of
from bench.matrix.forecast import Forecast, Pace, measured_pace
from bench.matrix.plan import Fingerprints, Node, make_plan
from bench.matrix.runner import run_matrix
from bench.models import ModelSettings, sizes

load_plugins()
PACE = Pace(forward=0.25, contrasted=2.0)


def run(*assignments: str) -> RunSettings:
    return resolve("mini", None, {"attacks": ("badnet", "blended"), "defenses": ("none", "rvpt")}, assignments)


def nodes_of(settings: RunSettings, kind: str) -> list[Node]:
    plan = make_plan({BASE: settings}, {BASE: Fingerprints("model", "pairs", "words", "tuned", "tested")})
    return [node for node in plan.nodes.values() if node.kind == kind]


def forecast(nodes: list[Node], settings: RunSettings, *folders: Path, processes: int = 1) -> Forecast:
    return Forecast(nodes, {BASE: settings}, PACE, "cpu", folders, processes)


def test_without_earlier_artefacts_it_is_declared_work_at_the_machines_pace() -> None:
    settings = run("poison.pairs=100", "poison.epochs=3")
    backdoors = nodes_of(settings, "backdoor")
    assert forecast(backdoors, settings).seconds == pytest.approx(2 * 100 * 3 * 2.0)
    assert forecast(backdoors, settings, processes=2).seconds == pytest.approx(100 * 3 * 2.0)
    assert forecast(backdoors, settings, processes=9).seconds == pytest.approx(100 * 3 * 2.0), "two are at work"
    defenses = nodes_of(settings, "defense")
    work = [work_of(node, settings) for node in defenses]
    expected = sum(0.25 * part.forward + 4 * 0.25 * part.tuned for part in work)
    assert expected > 0 and forecast(defenses, settings).seconds == pytest.approx(expected)
    said = str(forecast(backdoors, settings))
    assert said.startswith("estimate: about 20 min in all (backdoors 20 min). Of 2 artefacts, 2 by declared work and")
    assert "(250.00 ms a forward pass, 2000.00 ms a pair of fine-tuning), which may be wrong by a factor of two" in said
    assert said.endswith("Not counted: reading images, ISSBA's encoder, methods of plug-ins.")


def test_another_tower_takes_as_much_longer_as_it_multiplies_more() -> None:
    small, large = run(), run().model_copy(update={"model": ModelSettings(name="mini-deep")})
    [node] = [n for n in nodes_of(large, "backdoor") if n.attack == "badnet"]
    of_small, of_large = sizes(small.model), sizes(large.model)
    assert of_small is not None and of_large is not None
    alone = Forecast([node], {BASE: small}, PACE, "cpu", (), 1).seconds
    node = Node(**{**vars(node), "variant": "deep"})
    there = Forecast([node], {BASE: small, "deep": large}, PACE, "cpu", (), 1).seconds
    assert there == pytest.approx(alone * of_large.work / of_small.work)


def test_like_artefacts_of_the_same_device_tell_their_time(tmp_path: Path) -> None:
    card = {"label": "defense badnet / rvpt, seed 5", "seconds": 30.0, "device": "cpu"}
    results_folder(tmp_path / "cpu", Made(card=card))
    results_folder(tmp_path / "gpu", Made(card=card | {"device": "cuda:0"}))
    settings = run()
    [one] = [node for node in nodes_of(settings, "defense") if node.attack == "badnet"]
    assert forecast([one], settings, tmp_path / "cpu").seconds == 30
    assert "Of 1 artefacts, 1 by like ones in the results folder." in str(forecast([one], settings, tmp_path / "cpu"))
    assert forecast([one], settings, tmp_path / "gpu").seconds == forecast([one], settings).seconds != 30
    other = nodes_of(run("poison.pairs=100"), "trigger")[0]
    assert forecast([other], settings, tmp_path / "cpu").seconds == forecast([other], settings).seconds


def test_what_was_made_corrects_what_is_left() -> None:
    settings = run("poison.pairs=100", "poison.epochs=3")
    first, second = nodes_of(settings, "backdoor")
    defense, other = nodes_of(settings, "defense")
    left = forecast([first, second, defense], settings)
    before = forecast([defense], settings).seconds
    assert left.seconds == pytest.approx(2 * 600 + before)
    left.made(first, 90.0)
    assert left.seconds == pytest.approx(90 + before), "the other backdoor takes as long as this one"
    left.made(second, 110.0)
    left.failed(defense)
    assert left.seconds == 0
    # A defense of another kind than those made: its own work, and the kind's pace so far.
    probes = resolve("mini", None, {"attacks": ("badnet",), "defenses": ("linear_probe",)})
    [probe] = nodes_of(probes, "defense")
    both = Forecast([other, probe], {BASE: settings}, PACE, "cpu", (), 1)
    alone = Forecast([probe], {BASE: settings}, PACE, "cpu", (), 1).seconds
    both.made(other, 3 * forecast([other], settings).seconds)
    assert both.seconds == pytest.approx(3 * alone)


def test_a_run_tells_its_time_before_the_first_artefact_and_what_is_left_after_each(tmp_path: Path) -> None:
    settings = resolve("smoke", None, {"attacks": ("badnet",), "defenses": ("none",)}, TINY)
    console = Console(file=io.StringIO(), width=200)
    assert run_matrix({BASE: settings}, tmp_path, (), console).failures == {}
    told = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    first = next(i for i, line in enumerate(told) if line.startswith("[1/4]"))
    assert any(line.startswith("estimate: about") and "Of 4 artefacts" in line for line in told[:first])
    made = [line for line in told[first:] if line.startswith("[")]
    assert len(made) == 4 and all(re.search(r"; about \d+ s left$", line) for line in made[:3])
    assert "left" not in made[3]


def test_timing_a_step_changes_nothing(tiny_clip: Clip) -> None:
    before = {name: value.clone() for name, value in tiny_clip.model.state_dict().items()}
    tiny_clip.model.logit_scale.requires_grad_(False)
    trained = [weight.requires_grad for weight in tiny_clip.model.parameters()]
    pace = measured_pace(tiny_clip, torch.get_num_threads())
    assert pace.forward > 0 and pace.contrasted > 0
    assert all(torch.equal(before[name], value) for name, value in tiny_clip.model.state_dict().items())
    assert [weight.requires_grad for weight in tiny_clip.model.parameters()] == trained
    assert all(weight.grad is None for weight in tiny_clip.model.parameters())
