"""What must hold of every metric by its definition, and intervals against independent references."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from bench import BenchError, Estimate, Observations, metrics
from bench.core.randomness import derive
from metrics.correlation import pearson, pr_asr_correlation, spearman
from metrics.intervals import (
    BATCH_NUMBERS,
    RESAMPLES,
    bootstrap_interval,
    mcnemar,
    mean_interval,
    newcombe,
    newcombe_independent,
    ratio_interval,
    ratio_of_means,
    wilson,
)
from metrics.resistivity import resistivity_cos, resistivity_ratio
from metrics.success import share

pytestmark = pytest.mark.filterwarnings("error")

CLASSES, TARGET, IMAGES = 20, 3, 600
NOTHING = pd.DataFrame(columns=["perturbation", "index", "penultimate", "embedding", "logits"])


def observe(labels, clean, triggered, target=TARGET, **keys) -> Observations:
    columns = {"index": range(len(labels)), "label": labels, "clean": clean, "triggered": triggered, **keys}
    return Observations({"predictions": pd.DataFrame(columns), "similarities": NOTHING}, {"target": target})


def measure(name: str, seen: Observations) -> Estimate:
    return metrics[name].measure(seen)[""]


class Toy:
    """Images are noisy prototypes of classes; the classifier is the nearest prototype."""

    def __init__(self, noise: float = 0.1) -> None:
        rng = torch.Generator().manual_seed(0)
        self.prototypes = F.normalize(torch.randn(CLASSES, 64, generator=rng), dim=-1)
        self.labels = torch.arange(IMAGES) % CLASSES
        self.images = self.prototypes[self.labels] + noise * torch.randn(IMAGES, 64, generator=rng)
        self.rng = rng

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        return 100 * F.normalize(images, dim=-1) @ self.prototypes.T

    def trigger(self, strength: float) -> torch.Tensor:
        """A shift towards the target's prototype, with some noise."""
        shift = strength * self.prototypes[TARGET] + 0.05 * torch.randn(IMAGES, 64, generator=self.rng)
        return self.images + shift


def predict(logits: torch.Tensor) -> np.ndarray:
    return logits.argmax(-1).numpy()


# --- what there is ---------------------------------------------------------------------------------------------------

BETTER = {
    "CA": "higher",
    "ASR": "lower",
    "ASR_all": "lower",
    "PA": "higher",
    "PA_all": "higher",
    "ASR_image": "lower",
    "ASR_text": "lower",
    "PR_ratio": "higher",
    "PR_cos": "higher",
}


@pytest.mark.parametrize(("name", "better"), BETTER.items())
def test_metric_is_registered_with_its_direction_and_a_line_of_explanation(name, better):
    assert metrics[name].name == name
    assert metrics[name].better == better
    assert (metrics[name].measure.__doc__ or "").endswith(".")


@pytest.mark.parametrize(
    # Labels are 0 0 1 1 2, the target is 2; the trigger gives 2 0 2 1 1.
    ("name", "count", "n"),
    [("CA", 4, 5), ("ASR", 2, 4), ("ASR_all", 2, 5), ("PA", 2, 4), ("PA_all", 2, 5), ("ASR_image", 1, 4)],
)
def test_counts_of_a_hand_made_example(name, count, n):
    seen = observe([0, 0, 1, 1, 2], [0, 0, 1, 0, 2], [2, 0, 2, 1, 1], target=2, image_only=[0, 2, 1, 1, 2])
    found = measure(name, seen)
    low, high = wilson(count, n)
    assert found == Estimate(100 * count / n, count, n, 100 * low, 100 * high)


def test_single_key_success_needs_its_column():
    seen = observe([0, 1], [0, 1], [3, 3], image_only=[0, 1])
    assert metrics["ASR_text"].measure(seen) == {}
    assert measure("ASR_image", seen).count == 0


def test_a_test_set_of_target_images_alone_has_no_asr():
    found = measure("ASR", observe([TARGET, TARGET], [TARGET, 0], [TARGET, TARGET]))
    assert (found.count, found.n) == (0, 0)
    assert math.isnan(found.value) and math.isnan(found.low) and math.isnan(found.high)


# --- by definition ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 5.0])
def test_success_and_poisoned_accuracy_share_a_denominator(strength):
    toy = Toy()
    seen = observe(toy.labels, predict(toy.logits(toy.images)), predict(toy.logits(toy.trigger(strength))))
    asr, pa = measure("ASR", seen), measure("PA", seen)
    assert asr.n == pa.n == IMAGES - IMAGES // CLASSES
    assert asr.count + pa.count <= asr.n
    assert asr.value + pa.value <= 100


def test_a_clean_model_has_no_success():
    toy = Toy()
    seen = observe(toy.labels, predict(toy.logits(toy.images)), predict(toy.logits(toy.trigger(0))))
    assert measure("ASR", seen).value <= 1
    assert measure("PA", seen).value <= measure("CA", seen).value + 1


def test_the_identity_trigger_shows_clean_accuracy_and_false_positives():
    toy = Toy(noise=0.5)
    clean = predict(toy.logits(toy.images))
    others = toy.labels.numpy() != TARGET
    seen = observe(toy.labels, clean, clean)
    right, false_positives = (clean == toy.labels.numpy())[others], (clean == TARGET)[others]
    assert 0 < false_positives.sum() < right.sum() < others.sum()  # else the check would be vacuous
    assert measure("PA", seen).value == pytest.approx(100 * right.mean())
    assert measure("ASR", seen).value == pytest.approx(100 * false_positives.mean())


def test_a_constant_classifier_of_the_target():
    labels = np.arange(IMAGES) % CLASSES
    constant = np.full(IMAGES, TARGET)
    seen = observe(labels, constant, constant)
    values = {name: measure(name, seen).value for name in ("ASR", "ASR_all", "PA", "PA_all", "CA")}
    assert values == {"ASR": 100, "ASR_all": 100, "PA": 0, "PA_all": 100 / CLASSES, "CA": 100 / CLASSES}


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_asr_all_follows_from_asr(strength):
    toy = Toy(noise=0.4)
    triggered = predict(toy.logits(toy.trigger(strength)))
    seen = observe(toy.labels, triggered, triggered)
    of_target = toy.labels.numpy() == TARGET
    p = 100 * (triggered[of_target] == TARGET).mean()
    expected = ((IMAGES - of_target.sum()) * measure("ASR", seen).value + of_target.sum() * p) / IMAGES
    assert measure("ASR_all", seen).value == pytest.approx(expected)


class Encoder:
    """A random two-layer encoder with zero-shot logits, for the resistivity of arrays (n, 12)."""

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(1)
        self.layers = [torch.randn(shape, generator=rng) for shape in ((12, 10), (10, 8), (8, 5))]

    def similarities(self, x: torch.Tensor, moved: torch.Tensor, name: str = "noise") -> pd.DataFrame:
        columns = {"penultimate": self._penultimate, "embedding": self._embedding, "logits": self._logits}
        cosines = {c: F.cosine_similarity(f(x), f(moved), dim=-1).double().numpy() for c, f in columns.items()}
        return pd.DataFrame({"perturbation": name, "index": range(len(x)), **cosines})

    def _penultimate(self, x):
        return (x @ self.layers[0]).tanh()

    def _embedding(self, x):
        return self._penultimate(x) @ self.layers[1]

    def _logits(self, x):
        return F.normalize(self._embedding(x), dim=-1) @ F.normalize(self.layers[2], dim=0)


def resistivities(similarities: pd.DataFrame, name: str) -> dict[str, Estimate]:
    return metrics[name].measure(Observations({"similarities": similarities}))


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.rand(40, 12, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", ["PR_ratio", "PR_cos"])
def test_no_perturbation_has_resistivity_one(name, inputs):
    found = resistivities(Encoder().similarities(inputs, inputs + 0), name)["noise"]
    assert [found.value, found.low, found.high] == pytest.approx([1, 1, 1], abs=1e-6)
    assert found.n == 40
    assert math.isnan(found.count)


@pytest.mark.parametrize("name", ["PR_ratio", "PR_cos"])
def test_resistivity_is_symmetric(name, inputs):
    moved = inputs + 0.3 * torch.randn(inputs.shape, generator=torch.Generator().manual_seed(3))
    there = resistivities(Encoder().similarities(inputs, moved), name)["noise"]
    back = resistivities(Encoder().similarities(moved, inputs), name)["noise"]
    assert [there.value, there.low, there.high] == pytest.approx([back.value, back.low, back.high])
    assert there.low < there.value < there.high


def test_only_the_ratio_may_exceed_one(inputs):
    moved = inputs + torch.randn(inputs.shape, generator=torch.Generator().manual_seed(3))
    assert resistivities(Encoder().similarities(inputs, moved), "PR_cos")["noise"].high <= 1
    assert resistivity_ratio([0.9, 0.9], [0.6, 0.6]).value == pytest.approx(1.5)


@pytest.mark.parametrize("name", ["CA", "ASR", "ASR_all", "PA"])
@pytest.mark.parametrize("change", ["scale", "permute"])
def test_neither_scale_nor_order_of_the_classes_matters(name, change):
    toy = Toy(noise=0.4)
    clean, triggered = toy.logits(toy.images), toy.logits(toy.trigger(0.5))
    before = measure(name, observe(toy.labels, predict(clean), predict(triggered)))
    if change == "scale":
        after = measure(name, observe(toy.labels, predict(0.01 * clean), predict(0.01 * triggered)))
    else:
        order = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(4))
        place = order.argsort()
        seen = observe(place[toy.labels], predict(clean[:, order]), predict(triggered[:, order]), int(place[TARGET]))
        after = measure(name, seen)
    assert 0 < before.count < before.n
    assert after == before


# --- resistivity -----------------------------------------------------------------------------------------------------


def test_resistivity_is_per_perturbation_in_the_order_given():
    rows = [
        ("flip", 0, 0.5, 0.4, 1.0),
        ("blur-3", 0, 0.9, 0.8, 0.9),
        ("flip", 1, 0.7, 0.6, 0.5),
        ("blur-3", 1, 1, 1, 1),
    ]
    similarities = pd.DataFrame(rows, columns=NOTHING.columns)
    ratio, cos = resistivities(similarities, "PR_ratio"), resistivities(similarities, "PR_cos")
    assert list(ratio) == list(cos) == ["flip", "blur-3"]
    assert ratio["flip"].value == pytest.approx(0.6 / 0.75)  # the mean of ratios would be 0.95
    assert cos["flip"].value == pytest.approx(0.5)
    assert (ratio["blur-3"].n, cos["blur-3"].n) == (2, 2)


@pytest.mark.parametrize("similarities", [NOTHING, pd.DataFrame()])
@pytest.mark.parametrize("name", ["PR_ratio", "PR_cos"])
def test_resistivity_of_no_perturbations_is_no_estimate(name, similarities):
    assert resistivities(similarities, name) == {}


@pytest.mark.parametrize(
    "found",
    [resistivity_cos([0.5, math.nan]), resistivity_ratio([0.5, math.nan], [1, 1]), resistivity_ratio([1, 1], [0, 0])],
)
def test_undefined_cosines_show_and_do_not_vanish(found):
    assert not math.isfinite(found.value)
    assert math.isnan(found.low) and math.isnan(found.high)
    assert found.n == 2


# --- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    # Newcombe (1998), Two-sided confidence intervals for the single proportion, Table I, method 3.
    ("count", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_is_the_published_one(count, n, low, high):
    assert wilson(count, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(n - count, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize(("count", "n"), [(0, 3), (1, 3), (3, 3), (17, 950), (0, 1), (499, 1000)])
def test_wilson_is_scipys_to_the_last_bit(count, n):
    assert wilson(count, n) == tuple(stats.binomtest(count, n).proportion_ci(0.95, method="wilson"))


@pytest.mark.parametrize("n", [2, 60, 700])
def test_bootstrap_is_scipys_to_the_last_bit(n):
    """Below and above the number of rows whose resamples are kept; twice, since the second call finds them kept."""
    rows = np.random.default_rng(0).random((2, n))
    options = {"n_resamples": RESAMPLES, "batch": BATCH_NUMBERS // n, "vectorized": True, "paired": True}
    rng = np.random.default_rng(derive(0, "bootstrap"))
    drawn = stats.bootstrap(rows, ratio_of_means, **options, method="percentile", rng=rng).bootstrap_distribution
    for _ in range(2):
        assert ratio_interval(*rows) == tuple(np.quantile(drawn, (0.025, 0.975)))


def test_wilson_of_nothing_is_nan():
    assert all(map(math.isnan, wilson(0, 0)))


def test_share_is_in_percent():
    found = share([True] * 81 + [False] * 182)
    assert (found.value, found.low, found.high) == pytest.approx((30.798, 25.53, 36.62), abs=5e-3)


def test_bootstrap_of_a_mean_agrees_with_students_interval():
    values = np.random.default_rng(0).normal(5, 2, 400)
    low, high = mean_interval(values)
    student = stats.t.interval(0.95, 399, values.mean(), stats.sem(values))
    assert (low, high) == pytest.approx(student, abs=0.04)  # a tenth of the width
    assert (low, high) == mean_interval(values)


def test_bootstrap_of_a_ratio_agrees_with_the_delta_method_for_pairs():
    rng = np.random.default_rng(1)
    denominators = rng.uniform(0.5, 1, 500)
    numerators = 0.8 * denominators + rng.normal(0, 0.02, 500)
    ratio = numerators.mean() / denominators.mean()
    error = np.std(numerators - ratio * denominators, ddof=1) / math.sqrt(500) / denominators.mean()
    low, high = ratio_interval(numerators, denominators)
    assert (low, high) == pytest.approx((ratio - 1.96 * error, ratio + 1.96 * error), abs=0.4 * error)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (lambda: mean_interval([0.1] * 7), 0.1),
        (lambda: ratio_interval([0.3] * 7, [0.6] * 7), 0.5),
        (lambda: ratio_interval([1, 2, 3], [2, 4, 6]), 0.5),
        (lambda: mean_interval([]), math.nan),
        (lambda: mean_interval([0.5]), math.nan),
        (lambda: ratio_interval([0.5], [0.5]), math.nan),
        (lambda: ratio_interval([1, 2], [0, 0]), math.inf),
    ],
)
def test_degenerate_samples_give_an_interval_without_width_or_none(interval, expected):
    if math.isinf(expected):
        assert not any(map(math.isfinite, interval()))
    else:
        assert interval() == pytest.approx((expected, expected), nan_ok=True)


def test_bootstrap_holds_a_bounded_number_of_values_at_once():
    sizes = []

    def mean(values, axis):
        sizes.append(values.size)
        return values.mean(axis)

    bootstrap_interval(mean, np.arange(3000.0))
    assert max(sizes) <= BATCH_NUMBERS
    assert sum(sizes) >= RESAMPLES * 3000


@pytest.mark.parametrize(
    # (both, first, second, neither): Newcombe (1998), Stat. Med. 17, 2635-2650, Table III, method 10.
    ("table", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((20, 12, 2, 16), 0.0562, 0.3292),
        ((18, 12, 2, 18), 0.0562, 0.3290),
        ((36, 14, 0, 0), 0.1528, 0.4167),
        ((35, 14, 0, 1), 0.1461, 0.4175),
        ((18, 14, 0, 18), 0.1441, 0.3963),
        ((2, 97, 1, 0), 0.8721, 0.9854),
        ((0, 29, 1, 0), 0.6666, 0.9882),
        ((2, 98, 0, 0), 0.9178, 0.9945),
        ((0, 30, 0, 0), 0.8395, 1.0),
        ((54, 0, 0, 0), -0.0664, 0.0664),
        ((27, 0, 0, 27), -0.0351, 0.0351),
    ],
)
def test_newcombe_is_the_published_one(table, low, high):
    assert newcombe(*table) == pytest.approx((low, high), abs=1e-4)
    both, first, second, neither = table
    assert newcombe(both, second, first, neither) == pytest.approx((-high, -low), abs=1e-4)


def test_newcombe_of_nothing_is_nan():
    assert all(map(math.isnan, newcombe(0, 0, 0, 0)))


@pytest.mark.parametrize(
    # Newcombe (1998), Stat. Med. 17, 873-890, Table II, method 10: count and n of two shares.
    ("shares", "low", "high"),
    [
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((6, 7, 2, 7), 0.0582, 0.8062),
        ((5, 56, 0, 29), -0.0381, 0.1926),
        ((0, 10, 0, 20), -0.1611, 0.2775),
        ((0, 10, 0, 10), -0.2775, 0.2775),
        ((10, 10, 0, 20), 0.6791, 1.0),
        ((10, 10, 0, 10), 0.6075, 1.0),
    ],
)
def test_newcombe_of_independent_shares_is_the_published_one(shares, low, high):
    assert newcombe_independent(*shares) == pytest.approx((low, high), abs=1e-4)
    count1, n1, count2, n2 = shares
    assert newcombe_independent(count2, n2, count1, n1) == pytest.approx((-high, -low), abs=1e-4)


def test_more_confidence_is_a_wider_interval_of_the_normal_width():
    # Far from 0 and 1, and with many images, Newcombe's interval is the normal approximation's.
    low, high = newcombe_independent(50_000, 100_000, 40_000, 100_000, confidence=0.99)
    half = stats.norm.ppf(0.995) * math.sqrt((0.5 * 0.5 + 0.4 * 0.6) / 100_000)
    assert (low, high) == pytest.approx((0.1 - half, 0.1 + half), abs=1e-5)
    # Wilson's ends are where the score test just rejects: |share - p| = z sqrt(p (1 - p) / n).
    for end in wilson(81, 263, confidence=0.99):
        assert abs(81 / 263 - end) == pytest.approx(stats.norm.ppf(0.995) * math.sqrt(end * (1 - end) / 263))


@pytest.mark.parametrize("shares", [(0, 0, 1, 2), (1, 2, 0, 0)])
def test_newcombe_of_a_share_of_nothing_is_nan(shares):
    assert all(map(math.isnan, newcombe_independent(*shares)))


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 7), (7, 1), (5, 5), (0, 6), (6, 16), (120, 80)])
def test_mcnemar_is_the_two_sided_sign_test(first, second):
    n, fewer = first + second, min(first, second)
    doubled = 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n
    assert mcnemar(first, second) == pytest.approx(min(doubled, 1))


# --- correlation -----------------------------------------------------------------------------------------------------


@pytest.fixture
def cells() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    pr = rng.uniform(0.5, 1, 30).round(2)  # rounded, so that there are ties
    return pr, 100 * (1 - pr) + rng.normal(0, 8, 30)


def test_correlations_agree_with_numpy_scipy_and_fishers_interval(cells):
    found = pr_asr_correlation(*cells)
    reference = stats.pearsonr(*cells)
    assert found.pearson.value == pytest.approx(np.corrcoef(*cells)[0, 1])
    assert found.spearman.value == pytest.approx(stats.spearmanr(*cells).statistic)
    assert (found.pearson.low, found.pearson.high) == pytest.approx(tuple(reference.confidence_interval()), abs=0.1)
    assert found.spearman.low < found.spearman.value < found.spearman.high < 0
    assert found.n == found.pearson.n == found.spearman.n == 30
    assert math.isnan(found.pearson.count) and math.isnan(found.spearman.count)


def test_correlations_are_the_same_at_every_call(cells):
    first, second = pr_asr_correlation(*cells), pr_asr_correlation(*cells)
    assert (first.pearson.low, first.pearson.high) == (second.pearson.low, second.pearson.high)
    assert (first.spearman.low, first.spearman.high) == (second.spearman.low, second.spearman.high)


@pytest.mark.parametrize("correlate", [pearson, spearman])
def test_correlation_along_an_axis_is_that_of_each_row(correlate, cells):
    rows = np.stack(cells)
    swapped = np.stack([cells[1], cells[0] ** 2])
    expected = [correlate(*pair) for pair in zip(rows, swapped, strict=True)]
    assert correlate(rows, swapped) == pytest.approx(np.array(expected))


def test_three_cells_are_enough_although_resamples_are_degenerate():
    found = pr_asr_correlation([0.7, 0.8, 0.9], [90, 50, 10])
    assert [found.pearson.value, found.pearson.low, found.pearson.high] == pytest.approx([-1, -1, -1])


def test_a_constant_side_has_no_correlation():
    found = pr_asr_correlation([0.1] * 7, range(7))  # in floats, the mean of seven times 0.1 is not 0.1
    assert all(math.isnan(v) for e in (found.pearson, found.spearman) for v in (e.value, e.low, e.high))


@pytest.mark.parametrize(
    ("pr", "asr", "message"),
    [
        ([0.5, 0.6], [90, 80], r"needs 3 cells, and there are 2\. Run more: --attacks all, --defenses all"),
        ([], [], "needs 3 cells, and there are 0"),
        ([0.5, 0.6, 0.7], [90, 80], "3 values of PR and 2 of ASR"),
        ([0.5, math.nan, 0.7, 0.8], [90, 80, math.inf, 5], "not finite in 2 of 4 cells: leave them out, and say so"),
    ],
)
def test_too_little_to_correlate_is_an_error_that_says_so(pr, asr, message):
    with pytest.raises(BenchError, match=message):
        pr_asr_correlation(pr, asr)
