"""Does resistivity go with attack success? Pearson's and Spearman's correlation of the two over cells."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from bench import BenchError, Estimate
from metrics.intervals import bootstrap_interval


@dataclass(frozen=True)
class Correlation:
    """Correlations over the same n cells, in [-1, 1]; NaN where one side is constant."""

    pearson: Estimate
    spearman: Estimate

    @property
    def n(self) -> int:
        return self.pearson.n


def pr_asr_correlation(pr: ArrayLike, asr: ArrayLike) -> Correlation:
    """How Perturbation Resistivity (n,) and ASR (n,) of the same n cells correlate, with bootstrap intervals.

    Cells are resampled as pairs. Those of one backdoored model are not independent, and then the intervals are too
    narrow.

    Raises:
        BenchError: fewer than 3 cells, not as many PR as ASR, or a value that is not finite.
    """
    x, y = np.asarray(pr, dtype=float), np.asarray(asr, dtype=float)
    if len(x) != len(y):
        raise BenchError(f"{len(x)} values of PR and {len(y)} of ASR: give one of each per cell")
    if len(x) < 3:
        raise BenchError(
            f"a correlation of PR and ASR needs 3 cells, and there are {len(x)}. "
            "Run more: --attacks all, --defenses all"
        )
    broken = int((~np.isfinite(x) | ~np.isfinite(y)).sum())
    if broken:
        raise BenchError(f"PR or ASR is not finite in {broken} of {len(x)} cells: leave them out, and say so")
    return Correlation(pearson=_estimate(pearson, x, y), spearman=_estimate(spearman, x, y))


def pearson(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    """Pearson's correlation along an axis; NaN where x or y is constant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        return stats.pearsonr(x, y, axis=axis).statistic


def spearman(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    """Spearman's correlation along an axis: Pearson's of ranks, where equal values share their mean rank."""
    return pearson(stats.rankdata(x, axis=axis), stats.rankdata(y, axis=axis), axis)


def _estimate(correlate: Callable[..., np.ndarray], x: np.ndarray, y: np.ndarray) -> Estimate:
    return Estimate(float(correlate(x, y)), math.nan, len(x), *bootstrap_interval(correlate, x, y))
