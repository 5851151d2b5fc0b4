"""Pearson's and Spearman's correlation of Perturbation Resistivity and attack success rate over cells."""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from bench.core.defense import with_head
from bench.core.errors import BenchError
from bench.core.metric import Estimate, OverCells, cell_metric
from bench.core.names import CELL_COLUMNS, CLEAN_MODEL, OWN_TRIGGER, UNDEFENDED
from metrics.intervals import bootstrap_interval
from metrics.success import TOOK

RESISTIVITIES = ("PR_cos", "PR_ratio")
# The columns that identify a backdoored model.
BACKDOOR = ["model", "attack", "target", "seed"]
# Where an attack takes or does not.
ATTACKED = ["model", "attack", "target", "dataset"]
FEWEST = 3


@dataclass(frozen=True)
class Correlation:
    """Correlations over the same n cells, in [-1, 1]; NaN if one of the two quantities is constant."""

    pearson: Estimate
    spearman: Estimate

    @property
    def n(self) -> int:
        return self.pearson.n


@cell_metric("PR_ASR")
def pr_asr(results: pd.DataFrame) -> list[OverCells]:
    """Correlation of PR on the cell's own trigger with ASR; one point per backdoored cell and seed.

    Attacks that did not take are left out: their cells have a low ASR for want of a backdoor, not because a model
    resists it. The note gives the correlation with them. Models with a head are left out, too (`has_head`). Intervals
    are 95 % bootstrap intervals over cells.
    """
    return [number for name in RESISTIVITIES for number in _correlations(name, correlation_points(results, name))]


@cell_metric("PR_ASR_generic")
def pr_asr_generic(results: pd.DataFrame) -> list[OverCells]:
    """Correlation of ASR with the mean PR on all perturbations but the cell's own trigger, as far as measured.

    These are noise, blur, jitter, flip, and triggers that the model was not trained on. Else as `PR_ASR`.
    """
    points = {name: correlation_points(results, name, own=False) for name in RESISTIVITIES}
    return [number for name, given in points.items() if len(given) for number in _correlations(name, given)]


def _correlations(resistivity: str, every: pd.DataFrame) -> Iterator[OverCells]:
    left_out, headed = every.attrs["left_out"], every.attrs["headed"]
    omitted = f"Left out, for lack of a finite value: {left_out} cells. " if left_out else ""
    if headed:
        omitted += f"Left out models with a head, which PR does not see: {headed}. "
    omitted += _not_taken(every)
    points = every[every["took"]]
    if len(points) < FEWEST:
        other = "" if len(points) == len(every) else " other"
        lacking = f"{len(points)}{other} cells have both, and a correlation needs {FEWEST}."
        yield OverCells(resistivity, None, f"{omitted}{lacking}")
        return
    correlation = pr_asr_correlation(points["pr"], points["asr"])
    note = (omitted + _caution(points)).strip()
    for name, estimate in (("Pearson", correlation.pearson), ("Spearman", correlation.spearman)):
        constant = "" if math.isfinite(estimate.value) else " Undefined: one side is constant."
        yield OverCells(f"{resistivity}, {name}", estimate, (note + constant).strip())


def _not_taken(points: pd.DataFrame) -> str:
    """Which attacks are left out since they did not take, and what the correlations are with them."""
    weak = list(dict.fromkeys(points["attack"][~points["took"]]))
    if not weak:
        return ""
    verb = f"{', '.join(weak)} did not take and {'is' if len(weak) == 1 else 'are'} left out"
    if len(points) < FEWEST:
        return f"{verb}. "
    every = pr_asr_correlation(points["pr"], points["asr"])
    both = (("Pearson", every.pearson.value), ("Spearman", every.spearman.value))
    values = [f"{name} {value:.2f}" if math.isfinite(value) else f"{name} undefined" for name, value in both]
    return f"{verb}; with them: {', '.join(values)}, n = {every.n}. "


def correlation_points(results: pd.DataFrame, resistivity: str, own: bool = True) -> pd.DataFrame:
    """A row per backdoored cell: PR on its own trigger (`pr`), its ASR in percent (`asr`), whether its attack `took`.

    Without `own`, `pr` is the mean over all other perturbations, and cells where none was measured are missing.

    An attack took if the mean undefended ASR of its models in one place is not below the setting `took`, or if it is
    unknown. The clean model is left out, also in variants that poison nothing, such as table S1's. Cells with a head
    are left out and counted in `attrs["headed"]`, and those in which PR or ASR is missing or not finite in
    `attrs["left_out"]`.
    """
    clean = (results["defense"] == CLEAN_MODEL) | results["cell"].isin(results.attrs.get("unpoisoned", []))
    backdoored = results[~clean]
    asr = backdoored[backdoored["metric"] == "ASR"].set_index(CELL_COLUMNS)["value"]
    by_trigger = backdoored["perturbation"] == OWN_TRIGGER
    counted = (backdoored["metric"] == resistivity) & (by_trigger if own else ~by_trigger)
    pr = backdoored[counted].groupby(CELL_COLUMNS, sort=False, dropna=False)["value"].mean()
    if not own:
        asr = asr[asr.index.isin(pr.index)]
    joined = pd.DataFrame({"pr": pr, "asr": asr})
    joined["took"] = _took(backdoored)
    headed = joined.index.get_level_values("defense").map(has_head).to_numpy(dtype=bool)
    kept = joined[np.isfinite(joined[["pr", "asr"]]).all(axis=1) & ~headed].reset_index()
    kept.attrs.update(headed=int(headed.sum()), left_out=len(joined) - int(headed.sum()) - len(kept))
    return kept


def has_head(defense: str) -> bool:
    """Whether a defense, or one of a chain such as `rvpt+linear_probe`, gives the model a head.

    Then PR cannot explain ASR: the encoder, and with it PR_cos, is that of the model without the head, whatever the
    head does to ASR, and PR_ratio divides by a head's logits in place of cosines with texts.
    """
    return bool(with_head(defense.split("+")))


def _took(backdoored: pd.DataFrame) -> pd.Series:
    """Of each cell with an ASR, by `CELL_COLUMNS`, whether its attack took."""
    success = backdoored[backdoored["metric"] == "ASR"]
    undefended = success[success["defense"] == UNDEFENDED].groupby(ATTACKED)["value"].mean()
    known = success[ATTACKED].join(undefended.rename("undefended"), on=ATTACKED)["undefended"]
    took = ~(known < backdoored.attrs.get("took", TOOK))
    return pd.Series(took.to_numpy(), index=pd.MultiIndex.from_frame(success[CELL_COLUMNS]))


def _caution(points: pd.DataFrame) -> str:
    """A caution if points are not independent, because their cells share a backdoored model; "" otherwise."""
    models = len(points[BACKDOOR].drop_duplicates())
    if models == len(points):
        return ""
    some = "1 backdoored model" if models == 1 else f"{models} backdoored models"
    return f"Caution: these are cells of {some}; those of one model are not independent, and the intervals too narrow."


def pr_asr_correlation(pr: ArrayLike, asr: ArrayLike) -> Correlation:
    """The correlation of Perturbation Resistivity (n,) and ASR (n,) of the same n cells, with bootstrap intervals.

    Cells are resampled as pairs. If several are of one backdoored model, they are not independent, and the intervals
    are too narrow.

    Raises:
        BenchError: there are fewer than 3 cells, `pr` and `asr` differ in length, or a value is not finite.
    """
    x, y = np.asarray(pr, dtype=float), np.asarray(asr, dtype=float)
    if len(x) != len(y):
        raise BenchError(f"{len(x)} values of PR and {len(y)} of ASR: give one of each per cell")
    if len(x) < FEWEST:
        raise BenchError(
            f"a correlation of PR and ASR needs {FEWEST} cells, and there are {len(x)}. "
            "Run more: --attacks all, --defenses all"
        )
    infinite = int((~np.isfinite(x) | ~np.isfinite(y)).sum())
    if infinite:
        raise BenchError(f"PR or ASR is not finite in {infinite} of {len(x)} cells: leave them out, and say so")
    return Correlation(pearson=_estimate(pearson, x, y), spearman=_estimate(spearman, x, y))


def pearson(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    """Pearson's correlation along an axis; NaN where x or y is constant."""
    # Imported late: it takes nearly as long to import as torch.
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        return stats.pearsonr(x, y, axis=axis).statistic


def spearman(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    """Spearman's correlation along an axis: Pearson's of ranks, where equal values share their mean rank."""
    # Imported late: it takes nearly as long to import as torch.
    from scipy import stats

    return pearson(stats.rankdata(x, axis=axis), stats.rankdata(y, axis=axis), axis)


def _estimate(correlate: Callable[..., np.ndarray], x: np.ndarray, y: np.ndarray) -> Estimate:
    return Estimate(float(correlate(x, y)), math.nan, len(x), *bootstrap_interval(correlate, x, y))
