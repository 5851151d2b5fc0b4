"""The contract of a metric: a pure function of a task's observations, with counts and an interval."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import pandas as pd

from bench.core.registry import Registry

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Estimate:
    """A measured value with its 95 % interval [`low`, `high`].

    A share is in percent, of `count` in `n`; for other values `count` is NaN.
    """

    value: float
    count: float
    n: int
    low: float
    high: float


@dataclass(frozen=True)
class Observations:
    """A task's observations of one model, from which all metrics of the task are computed.

    `tables` by name, such as one with a row per test image; `facts` are JSON values, such as the target's index.
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
    """A named measure of a task. `measure` returns one estimate per perturbation, or one under the key "".

    For a share, `hits` returns a boolean per counted row, so that two models can be compared on the same images; None
    if the metric is not defined for the model.
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
    """A number computed over many cells.

    `what` names the quantities; `note` is a caution for readers, or the reason why `estimate` is None.
    """

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
