"""Perturbation Resistivity against attack success."""

from collections.abc import Hashable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.core.errors import BenchError
from bench.core.metric import Estimate
from bench.core.names import CLEAN_MODEL, OWN_TRIGGER
from bench.results.tidy import did_not_take
from metrics.correlation import Correlation, has_head, pr_asr_correlation
from reports.figures.source import Source
from reports.figures.style import COLOURS, COLUMN, GRAY, MARKERS, PAGE, panels, widen

VERSIONS = ("PR_ratio", "PR_cos")
# Of the legend.
LINES = 4
# Noise, a trigger's pattern that the model was not trained on, and its own trigger.
KINDS = (("gaussian-0.03", "gaussian-0.01", "gaussian-0.1"), ("badnet", "blended"), (OWN_TRIGGER,))


def draw(source: Source) -> tuple[Figure, pd.DataFrame]:
    """A point per (attack, defense, seed); a fitted line; Pearson's and Spearman's correlation with 95 % intervals.

    Attacks that did not take have no point, nor have models with a head, as in the metric PR_ASR.
    """
    weak = did_not_take(source.main, source.folder.settings.took)
    if len(weak) == len(source.attacks):
        raise BenchError("needs an attack that took; here none did: raise its dose (`bench show ATTACK`)")
    numbers = resistivity_and_success(source.main[~source.main["attack"].isin(list(weak))])
    there = set(numbers["perturbation"])
    columns = [name for kind in KINDS if (name := next((p for p in kind if p in there), None))]
    if not columns:
        raise source.missing("cells with perturbations", "--set zero_shot.perturbations=[gaussian-0.03,trigger]")
    figure, axes = panels(max(COLUMN, PAGE * len(columns) / 3), 5.2, 2, len(columns), sharey=True)
    for row, version in zip(axes, VERSIONS, strict=True):
        for axis, perturbation in zip(row, columns, strict=True):
            _scatter(axis, numbers[(numbers["metric"] == version) & (numbers["perturbation"] == perturbation)], source)
            axis.set_xlabel(f"{version}, {'own trigger' if perturbation == OWN_TRIGGER else perturbation}")
        row[0].set_ylabel("ASR (%)")
        row[0].set_ylim(-4, 104)
    _legend(figure, source, list(numbers["attack"].unique()), list(numbers["model"].unique()))
    return figure, numbers


def resistivity_and_success(main: pd.DataFrame) -> pd.DataFrame:
    """PR beside ASR of every backdoored model: a row per (PR's definition, perturbation, attack, model, seed)."""
    shown = (main["defense"] != CLEAN_MODEL) & ~main["defense"].map(has_head).astype(bool)
    rows = main[shown].rename(columns={"label": "model", "model": "clip"})
    place = ["attack", "model", "seed"]
    success = rows[rows["metric"] == "ASR"].set_index(place)["value"].rename("ASR")
    measured = rows[rows["metric"].isin(VERSIONS)].rename(columns={"value": "PR"})
    joined = measured[["metric", "perturbation", *place, "PR"]].join(success, on=place)
    return joined[np.isfinite(joined["PR"]) & np.isfinite(joined["ASR"])].reset_index(drop=True)


def _scatter(axis: Axes, rows: pd.DataFrame, source: Source) -> None:
    for (attack, model), cells in rows.groupby(["attack", "model"], sort=False):
        colour, marker = _colour(source, attack), _marker(source, model)
        axis.plot(cells["PR"], cells["ASR"], ls="", color=colour, marker=marker, mfc="none", mew=1.1)
    pr, asr = rows["PR"].to_numpy(), rows["ASR"].to_numpy()
    try:
        title = correlation_words(pr_asr_correlation(pr, asr), "\n")
    except BenchError:
        title = f"{len(rows)} points"
    axis.set_title(title, fontsize=7, loc="left")
    if len(np.unique(pr)) > 2:
        ends = np.array([pr.min(), pr.max()])
        axis.plot(ends, np.polyval(np.polyfit(pr, asr, 1), ends), color=GRAY, lw=1)
    widen(axis)
    axis.locator_params(axis="x", nbins=4)


def _legend(figure: Figure, source: Source, attacks: list[str], models: list[str]) -> None:
    """A legend with separate columns for attacks (colours) and models (markers)."""
    keys = [(name, Line2D([], [], lw=4, color=_colour(source, name))) for name in attacks]
    keys += [("", Line2D([], [], ls=""))] * (-len(keys) % LINES)
    keys += [(name, Line2D([], [], ls="", marker=_marker(source, name), color=GRAY, mfc="none")) for name in models]
    keys += [("", Line2D([], [], ls=""))] * (-len(keys) % LINES)
    labels, handles = zip(*keys, strict=True)
    figure.legend(handles, labels, loc="outside lower center", ncols=len(keys) // LINES)


def _colour(source: Source, attack: Hashable) -> str:
    return COLOURS[source.attacks.index(str(attack)) % len(COLOURS)]


def _marker(source: Source, model: Hashable) -> str:
    return MARKERS[source.models.index(str(model)) % len(MARKERS)]


def correlation_words(correlation: Correlation, between: str = ", ") -> str:
    """Both coefficients with their intervals."""
    return f"Pearson {_words(correlation.pearson)}{between}Spearman {_words(correlation.spearman)}"


def _words(estimate: Estimate) -> str:
    if np.isnan(estimate.value):
        return "undefined (one side is constant)"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
