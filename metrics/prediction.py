"""Prediction intervals for the share that a new run of the same code gives, as training varies from run to run.

Shares are compared as angles, asin(sqrt(share)). The variance of an angle, from training as from binomial sampling,
depends little on the share itself, so it can be pooled over cells with 2 % and with 20 %. It is estimated from repeated
runs; as these are few, quantiles are of Student's t.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

# Values that differ by noise only: the runs of one seed, or the seeds of one cell.
Group = Sequence[float]


def angle(count: float, n: int) -> float:
    """asin(sqrt(share)) of `count` among `n`, in radians, with Anscombe's correction (1948, Biometrika 35, 246-254).

    Of a binomial count its variance is about 1 / (4 n + 2), whatever the share.

    >>> round(angle(50, 100), 4), angle(0, 100) > 0
    (0.7854, True)
    """
    return math.asin(math.sqrt((count + 3 / 8) / (n + 3 / 4)))


def share(angle: float, n: int) -> float:
    """The share in [0, 1] of an angle, the inverse of `angle`; clipped at 0 and 1.

    >>> round(share(angle(7, 100), 100), 4), share(-1.0, 100), share(2.0, 100)
    (0.07, 0.0, 1.0)
    """
    within = min(max(angle, 0.0), math.pi / 2)
    return min(max((math.sin(within) ** 2 * (n + 3 / 4) - 3 / 8) / n, 0.0), 1.0)


def sampling(n: int) -> float:
    """The standard deviation, as an angle, of a share of `n` images that flip independently of each other."""
    return 1 / math.sqrt(4 * n + 2)


def spreads(cells: Sequence[Sequence[Group]], floor: float) -> tuple[list[float], int]:
    """The standard deviation of one run of each cell, and the degrees of freedom of the pooled variance.

    The standard deviation is the largest of three: of all cells pooled; of the cell itself, as cells may differ; and
    the `floor`, as a few runs may agree by chance. Without groups of two or more values, the degrees of freedom are 0.
    """
    sums = [sum(_squares(group) for group in cell) for cell in cells]
    degrees = [sum(max(len(group) - 1, 0) for group in cell) for cell in cells]
    df = sum(degrees)
    pooled = sum(sums) / df if df else 0.0
    own = (squares / of_cell if of_cell else 0.0 for squares, of_cell in zip(sums, degrees, strict=True))
    return [math.sqrt(max(pooled, variance, floor**2)) for variance in own], df


def of_difference(sd: float, runs: Sequence[int]) -> float:
    """The standard deviation of a difference: the mean over seeds of one new run minus that of `runs` old ones a seed.

    >>> of_difference(1.0, [1, 1]), of_difference(1.0, [1, 1, 1, 1, 1, 1, 1, 1])
    (1.0, 0.5)
    """
    return sd * math.sqrt(sum(1 + 1 / n for n in runs)) / len(runs)


@dataclass(frozen=True)
class Prediction:
    """The mean share of a new run, if nothing has changed.

    `middle` is the angle of the mean share so far, `sd` the standard deviation of a new one's difference from it, with
    `df` degrees of freedom (at least 1), `n` the number of images of a share.
    """

    middle: float
    sd: float
    df: int
    n: int

    def ends(self, level: float) -> tuple[float, float]:
        """The prediction interval, in shares; a new share lies beyond each of its ends with probability `level`."""
        reach = self.sd * _quantile(self.df, level)
        return share(self.middle - reach, self.n), share(self.middle + reach, self.n)

    def seen(self, level: float, power: float = 0.9, beyond: float = 0.0) -> tuple[float | None, float | None]:
        """The true shares, below and above, from which on a run lies outside the interval with probability `power`.

        Outside is by more than `beyond`, a share. None if even a true share of 0 or 1 is not detected.
        """
        reach = self.sd * _quantile(self.df, 1 - power)
        below, above = self.ends(level)
        low, high = (angle(self.n * min(max(end, 0.0), 1.0), self.n) for end in (below - beyond, above + beyond))
        return (
            share(low - reach, self.n) if low - reach >= angle(0, self.n) else None,
            share(high + reach, self.n) if high + reach <= angle(self.n, self.n) else None,
        )


def mean_prediction(parts: Sequence[Prediction]) -> Prediction:
    """The prediction for the mean of shares with independent noise.

    Variances are weighted by share (1 - share), the squared derivative of a share by its angle, up to a factor.
    """
    shares = [math.sin(part.middle) ** 2 for part in parts]
    mean = sum(shares) / len(shares)
    variance = sum(s * (1 - s) * part.sd**2 for s, part in zip(shares, parts, strict=True)) / (mean * (1 - mean))
    df, n = min(part.df for part in parts), min(part.n for part in parts)
    return Prediction(math.asin(math.sqrt(mean)), math.sqrt(variance) / len(parts), df, n)


def _squares(group: Group) -> float:
    mean = sum(group) / len(group)
    return sum((value - mean) ** 2 for value in group)


@lru_cache
def _quantile(df: int, beyond: float) -> float:
    """The value that Student's t exceeds with probability `beyond`."""
    # Imported here, as it takes long.
    from scipy.special import stdtrit

    return float(-stdtrit(df, beyond))
