"""What the gate promises, on simulated matrices of known spread: how often it is wrong, and what it sees."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from bench.core.registry import load_plugins
from metrics.prediction import spreads
from reports import gate
from reports.gate import Finding, exit_code, judge

load_plugins()

ATTACKS, SEEDS, IMAGES = ("badnet", "blended", "wanet"), ("0", "1", "2"), {"ASR": 950, "CA": 1000}
# True shares of ASR and CA, with the standard deviations of a run as angles; those of trained models are of the order
# of docs/results/table.md's over seeds. Near 0, near 1, between; steady and not.
TRUTH = {
    "clean_model": ((0.001, 0.0), (0.998, 0.0)),
    "none": ((0.95, 0.01), (0.99, 0.01)),
    "rvpt": ((0.1, 0.05), (0.95, 0.02)),
    "vpt": ((0.5, 0.1), (0.99, 0.02)),
}
PLACE = {"task": "zero_shot", "model": "mini", "target": "banana", "dataset": "world", "variant": "", "settings": "one"}
Changes = Mapping[tuple[str, str, str], float]


def matrix(
    rng: np.random.Generator,
    runs: int,
    moved: Changes | None = None,
    unlike: Sequence[float] = (1, 1, 1),
    seeds: Sequence[float] = (1, 1, 1),
) -> dict[str, Any]:
    """A baseline with `runs` of each seed, whose true angles are moved by the changes of (attack, defense, metric).

    `unlike` and `seeds` are factors of the spreads of the three attacks and seeds.
    """
    cells = []
    for (attack, factor), (defense, truths) in product(zip(ATTACKS, unlike, strict=True), TRUTH.items()):
        numbers = {}
        for metric, (truth, sd) in zip(IMAGES, truths, strict=True):
            n, middle = IMAGES[metric], np.arcsin(np.sqrt(truth)) + (moved or {}).get((attack, defense, metric), 0.0)
            sds = factor * sd * np.array(seeds)[:, None]
            angles = middle + sds * rng.standard_normal((len(SEEDS), runs))
            shares = 100 * np.round(np.sin(np.clip(angles, 0, np.pi / 2)) ** 2 * n) / n
            numbers[metric] = {"n": n, "values": dict(zip(SEEDS, shares.tolist(), strict=True))}
        cells.append(PLACE | {"attack": attack, "defense": defense, "numbers": numbers})
    return {"cells": cells, "settings": {"one": {"seeds": [0, 1, 2]}}}


def judged(times: int, runs: int, **unlike: Sequence[float]) -> Iterator[list[Finding]]:
    """Verdicts on unchanged code, again and again."""
    rng = np.random.default_rng(0)
    for _ in range(times):
        yield judge(matrix(rng, runs, **unlike), matrix(rng, 1, **unlike))


@pytest.mark.parametrize("runs", [1, 3], ids=["seeds alone", "two reruns"])
@pytest.mark.parametrize(("nominal", "times"), [(0.01, 500), (0.2, 200)])
def test_unchanged_code_fails_no_more_often_than_is_said(
    nominal: float, times: int, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "FALSE_ALARMS", nominal)
    red = sum(exit_code(findings) for findings in judged(times, runs))
    # More than that has a probability below one in a thousand if the promise holds.
    assert red <= binom.isf(1e-3, times, nominal)
    # Nor is it kept by intervals that nothing leaves; half of the cells here are steadier than their floor.
    if nominal > 0.1:
        assert red > 0.1 * nominal * times


@pytest.mark.parametrize("runs", [1, 3], ids=["seeds alone", "two reruns"])
def test_attacks_whose_spreads_differ_threefold_cost_a_few_more_false_alarms(
    runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "FALSE_ALARMS", 0.1)
    red = sum(exit_code(findings) for findings in judged(200, runs, unlike=(0.6, 1, 1.8)))
    assert red <= binom.isf(1e-3, 200, 0.15)


def test_seeds_whose_spreads_differ_tenfold_cost_a_few_more_false_alarms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "FALSE_ALARMS", 0.1)
    red = sum(exit_code(findings) for findings in judged(200, 5, seeds=(1, 0.1, 0.1)))
    assert red <= binom.isf(1e-3, 200, 0.15)


def test_a_spread_is_the_largest_of_pooled_own_and_floor() -> None:
    calm, wild = [[0.1, 0.2], [0.3, 0.4]], [[0.0, 1.0], [0.0, 1.0]]
    # Variances .005, .5; pooled .2525.
    assert spreads([calm, wild], 0.0) == (pytest.approx([0.2525**0.5, 0.5**0.5]), 4)
    assert spreads([calm], 0.3) == ([0.3], 2)
    assert spreads([calm], 0.0) == (pytest.approx([0.005**0.5]), 2)
    assert spreads([[[0.1], [0.2]]], 0.3) == ([0.3], 0)


@pytest.mark.parametrize(
    ("attack", "defense", "metric", "sign", "tolerance"),
    [
        ("badnet", "rvpt", "ASR", 1, 0.0),
        ("badnet", "vpt", "CA", -1, 0.0),
        ("badnet", "vpt", "CA", -1, 10.0),
        ("all attacks", "vpt", "ASR", 1, 0.0),
        ("all attacks", "rvpt", "CA", -1, 0.0),
    ],
)
def test_a_change_as_large_as_is_said_is_seen_as_often_as_is_said(
    attack: str, defense: str, metric: str, sign: int, tolerance: float
) -> None:
    """Each baseline says which change it would see; that change is then made."""
    rng, seen, times = np.random.default_rng(1), 0, 200
    for _ in range(times):
        before = matrix(rng, 3)
        finding = next(
            f
            for f in judge(before, matrix(rng, 1), None, tolerance)
            if (f.cell, f.metric) == (f"{attack} / {defense}", metric)
        )
        assert finding.seen is not None
        (change,) = finding.seen.changes
        assert change is not None and change * sign > 0
        # From the baseline's mean, as an angle, to the value that is said to be seen.
        was, is_ = (np.arcsin(np.sqrt(value / 100)) for value in (finding.before, finding.before + change))
        moved = [name for name in ATTACKS if attack in (name, "all attacks")]
        after = matrix(rng, 1, {(name, defense, metric): is_ - was for name in moved})
        verdicts = {(f.cell, f.metric): f.verdict for f in judge(before, after, None, tolerance)}
        seen += verdicts[finding.cell, metric] == "worse"
    assert 0.9 * times - 4 * np.sqrt(0.09 * times) <= seen < times
