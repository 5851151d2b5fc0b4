"""95 % intervals: Wilson's for shares, bootstrap percentiles for means, Newcombe's for differences and AUROC."""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from bench.core.randomness import derive

Interval = tuple[float, float]
UNKNOWN: Interval = (math.nan, math.nan)

# The ends are accurate to about 2 % of the interval's width; 1 % would take four times as long.
RESAMPLES = 2000
# The most numbers in an array at a time: 8 MB for any number of images.
BATCH_NUMBERS = 1_000_000


def wilson(count: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a share (Wilson, 1927): low and high in [0, 1], NaN if n = 0.

    >>> tuple(round(end, 4) for end in wilson(81, 263))
    (0.2553, 0.3662)
    """
    if n == 0:
        return UNKNOWN
    share, z = count / n, float(ndtri(0.5 + confidence / 2))
    width = 2 * (n + z**2)
    middle = (2 * n * share + z**2) / width
    reach = z / width * math.sqrt(4 * n * share * (1 - share) + z**2)
    return 0.0 if count == 0 else middle - reach, 1.0 if count == n else middle + reach


def mean_interval(values: ArrayLike) -> Interval:
    """Bootstrap interval of the mean of `values` (n,)."""
    return bootstrap_interval(np.mean, values)


def ratio_interval(numerators: ArrayLike, denominators: ArrayLike) -> Interval:
    """Bootstrap interval of mean(numerators) / mean(denominators), both (n,), resampled as pairs."""
    return bootstrap_interval(ratio_of_means, numerators, denominators)


def ratio_of_means(numerators: np.ndarray, denominators: np.ndarray, axis: int = -1) -> np.ndarray:
    """mean(numerators) / mean(denominators) along an axis; NaN or infinite where the denominator is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.mean(numerators, axis=axis) / np.mean(denominators, axis=axis)


def bootstrap_interval(statistic: Callable[..., np.ndarray], *samples: ArrayLike) -> Interval:
    """95 % percentile interval of a statistic of paired samples (n,), by resampling rows; the same at every call.

    `statistic(*samples, axis=)` is vectorised. Resamples for which it is undefined (NaN) are left out, such as those
    of a correlation that draw one row n times. The interval is NaN if there are fewer than two rows, or a value is not
    finite.
    """
    rows = [np.asarray(sample, dtype=float) for sample in samples]
    n = len(rows[0])
    if n < 2 or not all(np.isfinite(row).all() for row in rows):
        return UNKNOWN
    with np.errstate(invalid="ignore"):
        drawn = np.concatenate([statistic(*(row[index] for row in rows), axis=-1) for index in _resamples(n)])
        drawn = drawn[~np.isnan(drawn)]
        if not len(drawn):
            return UNKNOWN
        low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def _resamples(n: int) -> Iterable[np.ndarray]:
    """`RESAMPLES` draws of n rows with replacement, (draws, n), in batches; the same at every call."""
    return _cached_resamples(n) if n * RESAMPLES <= BATCH_NUMBERS else _drawn_resamples(n)


@lru_cache(maxsize=2)
def _cached_resamples(n: int) -> tuple[np.ndarray, ...]:
    """Cached, since all metrics of all cells are usually of the same number of images."""
    return tuple(_drawn_resamples(n))


def _drawn_resamples(n: int) -> Iterator[np.ndarray]:
    rng, at_once = np.random.default_rng(derive(0, "bootstrap")), max(1, BATCH_NUMBERS // n)
    for done in range(0, RESAMPLES, at_once):
        yield rng.integers(n, size=(min(at_once, RESAMPLES - done), n))


def newcombe(both: int, first: int, second: int, neither: int) -> Interval:
    """Interval of the difference of two paired shares, from the counts of a 2x2 table (Newcombe, 1998, method 10).

    Of the same n images, `both` were hits under both conditions, `first` and `second` under that condition only,
    `neither` under none. The difference is (first - second) / n; low and high are in [-1, 1], NaN if n = 0.

    Newcombe, R. G. (1998). Improved confidence intervals for the difference between binomial proportions based on
    paired data. Statistics in Medicine 17, 2635-2650.

    >>> tuple(round(end, 4) for end in newcombe(36, 12, 2, 0))
    (0.0569, 0.3404)
    """
    n = both + first + second + neither
    if n == 0:
        return UNKNOWN
    return _of_difference((both + first, n), (both + second, n), 0.95, _corrected_phi(both, first, second, neither))


def newcombe_independent(count1: int, n1: int, count2: int, n2: int, confidence: float = 0.95) -> Interval:
    """Interval of the difference of two independent shares, count1 / n1 - count2 / n2 (Newcombe, 1998, method 10).

    Low and high are in [-1, 1], NaN if n1 = 0 or n2 = 0.

    Newcombe, R. G. (1998). Interval estimation for the difference between independent proportions: comparison of
    eleven methods. Statistics in Medicine 17, 873-890.

    >>> tuple(round(end, 4) for end in newcombe_independent(56, 70, 48, 80))
    (0.0524, 0.3339)
    """
    return _of_difference((count1, n1), (count2, n2), confidence) if n1 and n2 else UNKNOWN


def auroc_interval(area: float, positives: int, negatives: int, confidence: float = 0.95) -> Interval:
    """Interval of an AUROC of so many positives and negatives (Newcombe, 2006, method 5): low and high in [0, 1].

    A bootstrap has no width where all positives are above all negatives; this one has.

    Newcombe, R. G. (2006). Confidence intervals for an effect size measure based on the Mann-Whitney statistic. Part 2:
    asymptotic methods and evaluation. Statistics in Medicine 25, 559-573.

    >>> tuple(round(end, 3) for end in auroc_interval(1.0, 11, 60))
    (0.893, 1.0)
    """
    if not positives or not negatives:
        return UNKNOWN
    # Imported late: it takes as long to import as everything else in this module.
    from scipy.optimize import brentq

    z, mean_size, tiny = float(ndtri(0.5 + confidence / 2)), (positives + negatives) / 2 - 1, 1e-12

    def reach(theta: float) -> float:
        inflated = 1 + mean_size * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return z * math.sqrt(theta * (1 - theta) * inflated / (positives * negatives))

    low = brentq(lambda theta: theta + reach(theta) - area, 0.0, min(area, 1 - tiny)) if area > 0 else 0.0
    high = brentq(lambda theta: theta - reach(theta) - area, max(area, tiny), 1.0) if area < 1 else 1.0
    return float(low), float(high)


def mcnemar(first: int, second: int) -> float:
    """Exact two-sided p-value of McNemar's test that two paired shares are equal; 1 without discordant pairs.

    `first` and `second` count the images that are hits under that condition only.

    >>> mcnemar(1, 7)
    0.0703125
    """
    if first + second == 0:
        return 1.0
    # Imported late: it takes as long to import as everything else in this module.
    from scipy.stats import binomtest

    return float(binomtest(first, first + second, 0.5).pvalue)


def _corrected_phi(both: int, first: int, second: int, neither: int) -> float:
    """Correlation phi of the two shares, corrected for continuity if positive; 0 if undefined."""
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    if margins == 0:
        return 0.0
    covariance: float = both * neither - first * second
    if covariance > 0:
        covariance = max(covariance - (both + first + second + neither) / 2, 0)
    return covariance / math.sqrt(margins)


def _of_difference(first: tuple[int, int], second: tuple[int, int], confidence: float, phi: float = 0.0) -> Interval:
    """Newcombe's combination of the Wilson intervals of two shares, each (count, n), of correlation phi."""
    share1, share2 = first[0] / first[1], second[0] / second[1]
    low1, high1 = wilson(*first, confidence)
    low2, high2 = wilson(*second, confidence)
    below1, above1 = share1 - low1, high1 - share1
    below2, above2 = share2 - low2, high2 - share2
    return (
        share1 - share2 - math.sqrt(below1**2 - 2 * phi * below1 * above2 + above2**2),
        share1 - share2 + math.sqrt(above1**2 - 2 * phi * above1 * below2 + below2**2),
    )
