"""AUROC and detection over models, against another library; which models count."""

import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from metrics.detection import auroc, detection, threshold


def test_auroc_is_scikit_learn_s() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, kinds = rng.integers(0, 6, 30), np.r_[np.ones(12), np.zeros(18)]
        assert auroc(scores, kinds) == pytest.approx(roc_auc_score(kinds, scores))


def test_auroc_of_many_rows_is_that_of_each() -> None:
    rng = np.random.default_rng(0)
    scores, kinds = rng.random((4, 9)), np.tile([1, 1, 0, 0, 0, 1, 0, 1, 0], (4, 1))
    assert auroc(scores, kinds) == pytest.approx([float(auroc(s, k)) for s, k in zip(scores, kinds, strict=True)])
    assert math.isnan(auroc(scores[0], np.ones(9)))


@pytest.mark.parametrize("n", [3, 19, 20, 60])
def test_at_most_five_percent_of_clean_models_exceed_the_threshold(n: int) -> None:
    clean = np.random.default_rng(n).random(n)
    assert (clean > threshold(clean)).mean() <= 0.05


def results(*models: tuple[str, float, float, float], defense: str = "none") -> pd.DataFrame:
    """Models: attack, score, success in percent, and whether the target was named, in percent."""
    rows = []
    for seed, (attack, *values) in enumerate(models):
        for name, value in zip(("a_score", "a_success", "a_target"), values, strict=True):
            place = {"attack": attack, "target": "banana", "seed": seed, "variant": "", "defense": defense}
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
