"""The scripts that measure the gate, on simulated measurements and tiny models."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from bench.core.registry import load_plugins
from bench.experiment.settings import overlay, resolve
from benchmarks.gate.measured import append, known
from benchmarks.gate.power import LEVELS, UNCHANGED, baseline_of, cells_of, deal, draw, measure, play, table, whole
from benchmarks.gate.rounding import RECIPES, Steps

load_plugins()
ATTACKS, SEEDS, N = ("badnet", "blended", "wanet"), (0, 1, 2), 1000


def measured(
    level: str, numbers: range, rng: np.random.Generator, moved: float = 0.0, sd: float = 0.03
) -> pd.DataFrame:
    """Runs of a matrix whose angles vary by `sd`, RVPT's ASR moved by an angle."""
    rows = []
    for number in numbers:
        for attack in ATTACKS:
            for seed in SEEDS:
                for defense, asr, ca, spread in (("none", 0.95, 0.99, 0.005), ("rvpt", 0.1, 0.95, sd)):
                    for metric, share in (("ASR", asr), ("CA", ca)):
                        by = moved if (defense, metric) == ("rvpt", "ASR") else 0.0
                        angle = np.arcsin(np.sqrt(share)) + by + spread * rng.standard_normal()
                        value = round(N * np.sin(angle) ** 2) / N * 100
                        rows.append((attack, defense, seed, metric, value, N, level, number))
    return pd.DataFrame(rows, columns=["attack", "defense", "seed", "metric", "value", "n", "level", "number"])


@pytest.fixture(scope="module")
def unchanged() -> pd.DataFrame:
    return measured(UNCHANGED, range(12), np.random.default_rng(0))


def test_a_gate_shares_no_run_between_baseline_and_new_run(unchanged: pd.DataFrame) -> None:
    cells = cells_of(unchanged)
    assert len(cells) == 18 and all(len(there) == 12 for there in cells.values())
    before, now = deal(cells, {}, 3, np.random.default_rng(0))
    taken = []
    for place, there in cells.items():
        # A run is told by what it measured: ASR and CA of a run stay together.
        (drawn,) = (number for number, run in there.items() if run is now[place][0])
        kept = [number for number, run in there.items() if any(run is other for other in before[place])]
        assert len(kept) == 3 and drawn not in kept
        taken.append(drawn)
    assert len(set(taken)) > 1, "each cell draws its own"


@pytest.mark.parametrize("kind", LEVELS)
def test_each_level_is_a_change_of_what_the_gate_has(kind: str) -> None:
    gate = resolve("gate")
    for level, settings in LEVELS[kind].items():
        assert overlay(gate, {"rvpt": settings}).method("rvpt") != gate.method("rvpt"), level


@pytest.mark.parametrize("method", RECIPES)
def test_each_recipe_is_one_that_the_method_takes(method: str) -> None:
    gate = resolve("gate")
    for recipe, settings in RECIPES[method].items():
        changed = overlay(gate, {method: settings}).method(method) != gate.method(method)
        assert changed == (recipe != "preset"), recipe


def test_recipes_called_half_are_half_of_the_preset() -> None:
    preset = resolve("mini")
    for method, key in (("vpt", "learning_rate"), ("rvpt", "learning_rate"), ("cleanclip", "learning_rate")):
        assert RECIPES[method]["half rate"][key] == preset.method(method)[key] / 2
    assert RECIPES["rvpt"]["half alpha"]["alpha"] == preset.method("rvpt")["alpha"] / 2


def test_red_gates_are_rare_without_a_change_and_grow_with_it(unchanged: pd.DataFrame) -> None:
    rng = np.random.default_rng(1)
    cells = cells_of(unchanged)
    shares = [play(cells, {}, 3, 200, rng)["red"] / 200]
    for moved in (0.05, 0.1, 0.2):
        worse = measured("worse", range(1, 4), rng, moved)
        shares.append(play(cells, cells_of(worse), 3, 60, rng)["red by rvpt"] / 60)
    assert shares[0] <= 0.05 and shares == sorted(shares) and shares[-1] == 1


def test_whole_runs_are_each_judged_once(unchanged: pd.DataFrame) -> None:
    assert whole(cells_of(unchanged), 3) == {"gates": 9, "red": 0}


def test_the_table_has_the_true_change_and_the_plot_is_drawn(unchanged: pd.DataFrame, tmp_path: Path) -> None:
    worse = measured("alpha 2.0", range(1, 4), np.random.default_rng(2), 0.1)
    found = table(pd.concat([unchanged, worse]), 3, 20).set_index("level")
    assert list(found.index) == [UNCHANGED, "alpha 2.0"]
    mean = 100 * np.sin(np.arcsin(np.sqrt(0.1)) + 0.1) ** 2
    assert found.loc["alpha 2.0", "change of ASR"] == pytest.approx(mean - 10, abs=1)
    assert found.loc[UNCHANGED, "change of ASR"] == 0
    draw(found.reset_index(), tmp_path / "power.png")
    assert (tmp_path / "power.png").stat().st_size > 1000


def test_what_is_measured_is_not_measured_again(tmp_path: Path, unchanged: pd.DataFrame) -> None:
    append(tmp_path / "measured.csv", unchanged[unchanged["number"] == 0])
    append(tmp_path / "measured.csv", unchanged[unchanged["number"] == 1])
    assert known(tmp_path / "measured.csv", ["level", "number"]) == {(UNCHANGED, 0), (UNCHANGED, 1)}
    # There is no such folder; nothing of it is opened.
    measure(None, tmp_path, UNCHANGED, {}, 1)  # type: ignore[arg-type]
    runs = {place: list(there.values()) for place, there in cells_of(pd.read_csv(tmp_path / "measured.csv")).items()}
    baseline = baseline_of(runs)
    assert baseline["settings"]["one"]["seeds"] == [0, 1, 2]
    (cell,) = (cell for cell in baseline["cells"] if (cell["attack"], cell["defense"]) == ("wanet", "rvpt"))
    (of_seed,) = unchanged.query(
        "attack == 'wanet' and defense == 'rvpt' and metric == 'ASR' and seed == 2 and number == 1"
    )["value"]
    assert cell["numbers"]["ASR"]["values"]["2"][1] == of_seed and cell["numbers"]["ASR"]["n"] == N


def test_steps_keep_the_trained_numbers_and_let_go_of_the_optimiser() -> None:
    trained = torch.zeros(3, requires_grad=True)
    optimiser, steps = torch.optim.SGD([trained], lr=1.0), Steps()

    def step() -> None:
        trained.grad = torch.ones(3)
        optimiser.step()

    with steps.watching():
        for _ in range(10):
            step()
    step()
    assert steps.done == 10 and {1, 2, 3} <= steps.taken.keys() <= set(range(1, 11))
    assert all(torch.equal(numbers, torch.full((3,), -float(at))) for at, numbers in steps.taken.items())
