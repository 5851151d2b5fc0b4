"""Intervals and tests of shares against statsmodels, a second implementation, over a grid of counts."""

import pytest
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from metrics.intervals import mcnemar, newcombe_independent, wilson

SIZES = (1, 2, 7, 38, 950, 9_500)
SHARES = [(count, n) for n in SIZES for count in sorted({0, 1, n // 3, n - 1, n})]


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize(("count", "n"), SHARES)
def test_wilson_is_that_of_statsmodels(count: int, n: int, confidence: float) -> None:
    expected = proportion_confint(count, n, alpha=1 - confidence, method="wilson")
    assert wilson(count, n, confidence) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("first", SHARES, ids=str)
def test_newcombe_of_independent_shares_is_that_of_statsmodels(first: tuple[int, int], confidence: float) -> None:
    for second in SHARES:
        expected = confint_proportions_2indep(*first, *second, alpha=1 - confidence, method="newcomb")
        assert newcombe_independent(*first, *second, confidence) == pytest.approx(expected, abs=1e-12), second


@pytest.mark.parametrize("concordant", [0, 500])
def test_mcnemar_is_the_exact_test_of_statsmodels(concordant: int) -> None:
    """Of the discordant images alone, however many are hits under both conditions, or under none."""
    counts = (0, 1, 2, 5, 6, 31, 200)
    for first in counts:
        for second in counts:
            table = [[concordant, first], [second, concordant]]
            expected = statsmodels_mcnemar(table, exact=True).pvalue
            assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9), (first, second)
