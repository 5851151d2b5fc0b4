"""The contract of a metric: a pure function of what was observed, with counts and an interval."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import pandas as pd

from bench.core.registry import Registry


@dataclass(frozen=True)
class Estimate:
    """A measured value with its 95 % interval; `count` of `n` where it is a share, `count` = NaN where not."""

    value: float
    count: float
    n: int
    low: float
    high: float


@dataclass(frozen=True)
class Observations:
    """All that one cell showed, per image, from which every metric is computed.

    `predictions` has a row per test image: `index`, `label`, `clean`, `triggered` (predicted classes).
    `similarities` has a row per (perturbation, image): `perturbation`, `index`, and the cosines between the image
    and its perturbed version of `penultimate` features, `embedding`s and `logits`.
    """

    predictions: pd.DataFrame
    similarities: pd.DataFrame
    target: int


Measure = Callable[[Observations], dict[str, Estimate]]
MeasureFunction = TypeVar("MeasureFunction", bound=Measure)


@dataclass(frozen=True)
class Metric:
    """A named measure: gives one estimate per perturbation, under the key "" where there is none."""

    name: str
    better: Literal["higher", "lower"]
    measure: Measure


metrics: Registry[Metric] = Registry("metric", Metric)


def metric(name: str, better: Literal["higher", "lower"]) -> Callable[[MeasureFunction], MeasureFunction]:
    """Register a function of `Observations` as a metric."""

    def add(measure: MeasureFunction) -> MeasureFunction:
        metrics.register(name)(Metric(name, better, measure))
        return measure

    return add
