"""Prediction intervals: where a share falls when the same code is run again, though training varies from run to run.

Shares are compared as angles, asin(sqrt(share)): there the noise of training, as that of a binomial sample, depends
little on the share itself, so that cells with 2 % and with 20 % can tell about each other. The noise is estimated from
repeated runs, pooled over cells, and Student's t pays for how few they are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

# Values of one cell whose differences are noise alone: the runs of a seed, or the seeds of a cell.
Group = Sequence[float]


def angle(count: float, n: int) -> float:
    """asin(sqrt(share)) of `count` among `n`, in radians, with Anscombe's correction (1948, Biometrika 35, 246-254).

    Of a binomial count its variance is about 1 / (4 n + 2), whatever the share.

    >>> round(angle(50, 100), 4), angle(0, 100) > 0
    (0.7854, True)
    """
    return math.asin(math.sqrt((count + 3 / 8) / (n + 3 / 4)))


def share(angle: float, n: int) -> float:
    """The share in [0, 1] of an angle; those beyond the ends are the ends.

    >>> round(share(angle(7, 100), 100), 4), share(-1.0, 100), share(2.0, 100)
    (0.07, 0.0, 1.0)
    """
    within = min(max(angle, 0.0), math.pi / 2)
    return min(max((math.sin(within) ** 2 * (n + 3 / 4) - 3 / 8) / n, 0.0), 1.0)


def sampling(n: int) -> float:
    """The standard deviation, as an angle, of a share of `n` images that flip independently of each other."""
    return 1 / math.sqrt(4 * n + 2)


def spreads(cells: Sequence[Sequence[Group]], floor: float) -> tuple[list[float], int]:
    """The standard deviation of one run of each cell, and the degrees of freedom of all cells together.

    A cell's is the largest of three: that of all cells pooled; its own, since cells may differ; and the `floor`, since
    a few runs may agree by chance. Without a group of two or more values the degrees of freedom are 0.
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
    """Where the mean share of a new run falls if nothing has changed.

    `middle` is the angle of the mean share so far, `sd` the standard deviation of the difference of a new one from it,
    `df` its degrees of freedom (at least 1), `n` how many images a share is of.
    """

    middle: float
    sd: float
    df: int
    n: int

    def ends(self, level: float) -> tuple[float, float]:
        """The interval of shares that a new one leaves with probability `level` at either end."""
        reach = self.sd * _quantile(self.df, level)
        return share(self.middle - reach, self.n), share(self.middle + reach, self.n)

    def seen(self, level: float, power: float = 0.9) -> tuple[float | None, float | None]:
        """The nearest true shares, below and above, that would leave the interval of `level` with that power.

        None where even a share of 0 or 1 would not.
        """
        reach = self.sd * (_quantile(self.df, level) + _quantile(self.df, 1 - power))
        low, high = self.middle - reach, self.middle + reach
        return (
            share(low, self.n) if low >= angle(0, self.n) else None,
            share(high, self.n) if high <= angle(self.n, self.n) else None,
        )


def mean_prediction(parts: Sequence[Prediction]) -> Prediction:
    """The prediction of the mean of some shares whose noises are independent.

    An angle's change moves a share by sqrt(share (1 - share)) times as much, which weights the parts.
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
    # Here, as it takes as long to import as all else that intervals need.
    from scipy.special import stdtrit

    return float(-stdtrit(df, beyond))
