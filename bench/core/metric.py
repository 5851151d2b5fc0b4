"""The contract of a metric: a pure function of what was observed, with counts and an interval."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import pandas as pd

from bench.core.registry import Registry

Better = Literal["higher", "lower"]


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
    """All that a task saw of one model, from which every metric of the task is computed.

    `tables` by name, such as a row per test image; `facts` that JSON can write, such as the index of the target class.
    """

    tables: Mapping[str, pd.DataFrame]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, table: str) -> pd.DataFrame:
        return self.tables[table]

    @property
    def target(self) -> int:
        """The index of the target class."""
        return self.facts["target"]


Measure = Callable[[Observations], dict[str, Estimate]]
Hits = Callable[[Observations], "pd.Series | None"]
MeasureFunction = TypeVar("MeasureFunction", bound=Measure)


@dataclass(frozen=True)
class Metric:
    """A named measure of a task: gives one estimate per perturbation, under the key "" where there is none.

    `hits`, where the metric is a share, says which rows count: booleans, for comparisons of two models on the same
    images; None where the model has no such number.
    """

    name: str
    better: Better
    measure: Measure
    task: str = "zero_shot"
    hits: Hits | None = None


metrics: Registry[Metric] = Registry("metric", Metric)


def metric(
    name: str, better: Better, task: str = "zero_shot", hits: Hits | None = None
) -> Callable[[MeasureFunction], MeasureFunction]:
    """Register a function of `Observations` as a metric of a task."""

    def add(measure: MeasureFunction) -> MeasureFunction:
        metrics.register(name)(Metric(name, better, measure, task, hits))
        return measure

    return add


@dataclass(frozen=True)
class OverCells:
    """A number of many cells together. `what` it is of; `note`: what a reader must know, or why there is no number."""

    what: str
    estimate: Estimate | None
    note: str = ""


MeasureCells = Callable[[pd.DataFrame], list[OverCells]]


@dataclass(frozen=True)
class CellMetric:
    """A measure over the cells of a results folder, such as a correlation or an AUROC."""

    name: str
    measure: MeasureCells
    task: str = "zero_shot"


cell_metrics: Registry[CellMetric] = Registry("cell metric", CellMetric)


def cell_metric(name: str, task: str = "zero_shot") -> Callable[[MeasureCells], MeasureCells]:
    """Register a function of the tidy results of a task (`ResultsFolder.results`) as a metric over cells."""

    def add(measure: MeasureCells) -> MeasureCells:
        cell_metrics.register(name)(CellMetric(name, measure, task))
        return measure

    return add
