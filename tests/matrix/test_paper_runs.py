"""The runs that measure a whole paper on the embedded world: which cells they have, in which order, for how long."""

import itertools
import re
from pathlib import Path

import pandas as pd
import pytest
from command import bench
from fabricate import Made, results_folder

from bench.core.errors import BenchError
from bench.core.registry import load_plugins
from bench.experiment.settings import BASE, resolve
from bench.matrix.forecast import LikeTimes
from bench.matrix.paper_runs import PaperRun, paper_runs
from bench.matrix.plan import Fingerprints, Node, Plan, make_plan
from bench.matrix.runner import cells_of
from bench.models import ModelSettings, sizes
from bench.papers import papers
from bench.results.tidy import COLUMNS
from reports.paper.tables import fill

load_plugins()
PAPER = papers["rvpt"]


@pytest.fixture(scope="module")
def runs() -> list[PaperRun]:
    return paper_runs(PAPER, (0, 1), (0,))


def plan_of(run: PaperRun) -> Plan:
    """A plan where fingerprints are names."""
    prints = {
        name: Fingerprints(v.model.label, "pairs", v.dataset, v.tuned_on or v.dataset, v.tested_on)
        for name, v in run.variants.items()
    }
    return make_plan(run.variants, prints)


@pytest.mark.parametrize("name", PAPER.tables)
def test_the_runs_have_every_cell_of_every_table(name: str, runs: list[PaperRun]) -> None:
    made = {
        (cell.model, cell.dataset, cell.target, cell.defense, cell.variant, cell.attack)
        for run in runs
        for cell in cells_of(plan_of(run), run.variants)
        if cell.evaluation
    }
    # All attacks leave these variants' model as it is, so one attack is enough.
    clean = {name for run in runs for name, settings in run.variants.items() if not settings.poison.epochs}
    table = fill(PAPER, name, pd.DataFrame(columns=COLUMNS), runs[-1].variants[BASE])
    assert table.lacking and not table.without_counterpart
    for cell in table.lacking:
        attacks = [cell.attack] if cell.attack else ["badnet", "blended"][: 1 if cell.method.variant in clean else 2]
        wanted = {(*cell.place.key, cell.method.defense, cell.method.variant, attack) for attack in attacks}
        assert wanted <= made, cell


def test_runs_at_one_preset_have_the_same_settings_so_that_their_cells_stand_in_one_folder(
    runs: list[PaperRun],
) -> None:
    for preset, group in itertools.groupby(runs, key=lambda run: run.preset):
        experiments = [run.variants[BASE].experiment for run in group]
        assert all(experiment == experiments[0] for experiment in experiments), preset
    presets = [preset for preset, _ in itertools.groupby(run.preset for run in runs)]
    assert sorted(presets) == ["mini", "mini-flowers", "mini-objects"], "each in one go"
    assert (presets[-1], runs[-1].suite) == ("mini", ""), "main table and figures are of the last run"


def test_every_suite_is_run_and_what_it_asks_for_is_measured(runs: list[PaperRun]) -> None:
    assert {run.suite for run in runs} == {"", *PAPER.suites}
    perturbations = PAPER.suites["pr"].settings["zero_shot"]["perturbations"]
    assert runs[-1].variants[BASE].method("zero_shot")["perturbations"] == perturbations
    assert set(runs[-1].variants[BASE].attacks) == set(PAPER.tables["table-1"].attacks)


def test_ablations_may_have_fewer_seeds_and_settings_reach_all_runs() -> None:
    few = paper_runs(PAPER, (0, 1), (0,), ("poison.count=7",), ("margin", "main"))
    assert {run.suite: run.variants[BASE].seeds for run in few} == {"": (0, 1), "main": (0, 1), "margin": (0,)}
    assert {run.variants[name].poison.count for run in few for name in run.variants} == {7}
    narrow = paper_runs(PAPER, (0,), (0,), (), ("emerging-target", "margin"), ("badclip", "wanet"))
    asked = {(run.preset, run.suite): run.variants[BASE].attacks for run in narrow}
    assert asked == {
        **{(preset, "emerging-target"): ("wanet",) for preset in ("mini-flowers", "mini-objects", "mini")},
        ("mini", "margin"): ("badclip",),
        ("mini", ""): ("wanet", "badclip"),
    }


def test_a_suite_or_counterparts_that_are_not_there_are_told() -> None:
    with pytest.raises(BenchError, match=r"unknown suite 'margins'. Did you mean 'margin'"):
        paper_runs(PAPER, (0,), (0,), (), ("margins",))
    with pytest.raises(BenchError, match="unknown attack 'badnett'"):
        paper_runs(PAPER, (0,), (0,), (), (), ("badnett",))
    bare = {name: place.model_copy(update={"embedded": None}) for name, place in PAPER.places.items()}
    with pytest.raises(BenchError, match="rvpt names no counterparts on the embedded world"):
        paper_runs(PAPER.model_copy(update={"places": bare}), (0,), (0,))


def test_a_forecast_is_the_mean_of_like_artefacts_scaled_to_the_model(tmp_path: Path) -> None:
    cards = {"badnet": 30.0, "blended": 50.0}
    for attack, seconds in cards.items():
        made = Made(attack=attack, card={"label": f"defense {attack} / rvpt, seed 0", "seconds": seconds})
        results_folder(tmp_path / attack, made)
    mini = ModelSettings()
    known = LikeTimes([tmp_path / attack for attack in cards], mini)

    def seconds(attack: str, defense: str, model: str = "mini", variant: str = BASE) -> float | None:
        node = Node("id", "defense", attack, 1, (defense,), variant=variant)
        return known.of(node, resolve("mini", None, {"model": {"name": model}}))

    assert seconds("badnet", "rvpt") == 30
    assert seconds("badnet", "rvpt", variant="alpha=3") == 30
    assert seconds("wanet", "rvpt") == 40
    small, large = sizes(mini), sizes(ModelSettings(name="mini-deep"))
    assert small is not None and large is not None
    assert seconds("badnet", "rvpt", "mini-deep", "mini-deep") == pytest.approx(30 * large.work / small.work)
    assert seconds("wanet", "vpt") is None, "no time of another defense"
    assert known.of(Node("id", "backdoor", "badnet", 0), resolve("mini")) is None


def test_a_dry_run_tells_each_run_and_what_it_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["paper", "rvpt", "--dry-run", "--suites", "margin", "--seeds", "0", "--out", str(tmp_path / "out")]
    code, out, err = bench(capsys, monkeypatch, *words)
    told = " ".join(out.split())
    assert code == 0, err
    assert "mini: margin" in told
    assert re.search(r"(\d+) artefacts to make; .*: unknown For \1 of them there is no like artefact in", told), told
    assert not (tmp_path / "out").exists()
    code, _, err = bench(capsys, monkeypatch, "paper", "rvtp")
    assert code == 2 and "unknown paper 'rvtp'. Did you mean 'rvpt'" in err
