"""AUROC and detection over models, against another library; which models count."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from metrics.detection import auroc, auroc_estimate, detection, threshold
from metrics.intervals import auroc_interval


def test_auroc_is_scikit_learn_s() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, kinds = rng.integers(0, 6, 30), np.r_[np.ones(12), np.zeros(18)]
        assert auroc(scores, kinds) == pytest.approx(roc_auc_score(kinds, scores))


def test_auroc_of_one_kind_is_not_defined() -> None:
    assert math.isnan(auroc(np.arange(9.0), np.ones(9)))
    assert math.isnan(auroc_estimate([0.5], []).value)


def test_the_interval_of_auroc_holds_the_true_one() -> None:
    rng, held = np.random.default_rng(0), 0
    true = norm.cdf(1.5 / np.sqrt(2))
    for _ in range(400):
        found = auroc_estimate(rng.normal(1.5, 1, 12), rng.normal(0, 1, 30))
        assert found.low <= found.value <= found.high
        held += found.low <= true <= found.high
    assert 0.92 <= held / 400 <= 0.99


def test_the_interval_of_auroc_has_a_width_where_all_are_told_apart() -> None:
    low, high = auroc_interval(1.0, 5, 5)
    assert 0.5 < low < 0.8 and high == 1.0
    assert auroc_interval(0.0, 5, 5) == pytest.approx((1 - high, 1 - low))
    assert auroc_interval(1.0, 50, 50)[0] > 0.95


@pytest.mark.parametrize("n", [3, 19, 20, 60])
def test_at_most_five_percent_of_clean_models_exceed_the_threshold(n: int) -> None:
    clean = np.random.default_rng(n).random(n)
    assert (clean > threshold(clean)).mean() <= 0.05


def results(*models: tuple[str, float, float, float], defense: str = "none") -> pd.DataFrame:
    """Models: attack, score, success in percent, and whether the target was named, in percent."""
    rows = []
    for seed, (attack, *values) in enumerate(models):
        for name, value in zip(("a_score", "a_success", "a_target"), values, strict=True):
            place = {"model": "mini", "dataset": "world", "attack": attack, "target": "banana", "seed": seed}
            place |= {"variant": "", "defense": defense}
            rows.append(place | {"metric": name, "value": value})
    return pd.DataFrame(rows)


def test_detection_is_of_backdoors_that_took_against_controls() -> None:
    models = [("benign", score, 0.0, 0.0) for score in (0.0, 0.1, 0.2, 0.3)]
    models += [("badnet", 0.9, 99.0, 100.0), ("wanet", 0.25, 80.0, 100.0), ("blended", 0.1, 20.0, 0.0)]
    defended = results(("badnet", 0.0, 99.0, 0.0), defense="rvpt")
    area, caught, named = detection(pd.concat([results(*models), defended]), "a")
    assert area.estimate is not None
    assert area.estimate.value == pytest.approx(7 / 8)
    assert "2 backdoored and 4 clean models. 1 whose attack did not take are left out." in area.note
    assert caught.estimate is not None
    assert (caught.estimate.value, caught.estimate.n) == (0.5, 2)
    assert named.estimate is not None
    assert (named.estimate.value, named.estimate.n) == (1.0, 1)


def test_without_controls_there_is_no_number_but_the_way_to_one() -> None:
    [number] = detection(results(("badnet", 0.9, 99.0, 100.0)), "a")
    assert number.estimate is None
    assert "--attacks benign" in number.note


def test_models_of_two_data_sets_are_two_models() -> None:
    one = results(("benign", 0.1, 0.0, 0.0), ("badnet", 0.9, 99.0, 100.0))
    area, *_ = detection(pd.concat([one, one.assign(dataset="other")]), "a")
    assert "2 backdoored and 2 clean models" in area.note


def test_without_undefended_models_there_is_no_number_but_the_way_to_one() -> None:
    [number] = detection(results(("badnet", 0.9, 99.0, 100.0), defense="rvpt"), "a")
    assert number.estimate is None
    assert "add `none` to --defenses" in number.note
