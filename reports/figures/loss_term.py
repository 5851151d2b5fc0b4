"""What a term of the loss does: ASR of a defense without it and with it, and their training curves."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.papers import PaperFigure
from reports.figures.source import Source
from reports.figures.style import PAGE, dodge, look, panels, points

# More curves cannot be distinguished.
ATTACKS = 3
# Axis titles of the parts of a loss that defenses log.
LOGGED = {"ce": "cross-entropy", "fr": "FR loss (mean cosine)"}


def draw(source: Source, figure: PaperFigure) -> tuple[Figure, pd.DataFrame]:
    """ASR per attack and scenario; each part of the loss while training, first seed. One defense has no such term."""
    off, on = figure.defenses
    success = _success(source.summary, (off, on))
    if success.empty:
        raise source.missing(f"cells of {off} and {on}", f"--defenses none,{off},{on}")
    curves = _curves(source, (off, on))
    parts = list(curves["metric"].unique()) or ["ce"]
    drawn, axes = panels(
        PAGE, 2.4 + 0.14 * success["place"].nunique(), 1, 1 + len(parts), width_ratios=[1.2, *(1 for _ in parts)]
    )
    _dots(axes[0][0], success, (off, on))
    for axis, part in zip(axes[0][1:], parts, strict=True):
        _lines(axis, curves[curves["metric"] == part], LOGGED.get(part, part), dashed=off)
    return drawn, pd.concat([success, curves], ignore_index=True)


def _success(summary: pd.DataFrame, defenses: tuple[str, str]) -> pd.DataFrame:
    """ASR where both defenses were measured; `place` names attack, model, data set, target and variant."""
    rows = summary[(summary["metric"] == "ASR") & summary["defense"].isin(defenses)]
    several = [key for key in ("model", "dataset", "target", "variant") if rows[key].nunique() > 1]
    columns = [rows[key] for key in ("attack", *several)]
    rows = rows.assign(place=[" ".join(parts).strip() for parts in zip(*columns, strict=True)])
    return rows[rows.groupby("place")["defense"].transform("nunique") == len(defenses)]


def _curves(source: Source, defenses: tuple[str, str]) -> pd.DataFrame:
    """The logged losses of every step, of the first attacks."""
    frames = [pd.DataFrame(columns=["metric", "attack", "defense", "step", "value"])]
    for attack in source.attacks[:ATTACKS]:
        for defense in (name for name in defenses if (attack, name) in source.cells):
            for metric, values in source.curves(attack, defense).items():
                place = {"metric": metric, "attack": attack, "defense": defense}
                frames.append(pd.DataFrame({**place, "step": np.arange(1, len(values) + 1), "value": values}))
    return pd.concat(frames[1:] or frames, ignore_index=True)


def _dots(axis: Axes, success: pd.DataFrame, defenses: tuple[str, str]) -> None:
    order = list(success["place"].unique())
    for i, (defense, offset) in enumerate(zip(defenses, dodge(2, 0.6), strict=True)):
        rows = success[success["defense"] == defense]
        heights = [order.index(place) + offset for place in rows["place"]]
        ends = rows[["low", "high"]].to_numpy().T
        points(axis, list(rows["mean"]), heights, ends, upright=False, ls="", label=defense, **look(i))
    axis.set_yticks(range(len(order)), order)
    axis.set_ylim(len(order) - 0.5, -0.5)
    axis.set_xlim(-4, 104)
    axis.set_xlabel("ASR (%)")
    axis.set_title("attack success", loc="left")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2)


def _lines(axis: Axes, curves: pd.DataFrame, label: str, dashed: str) -> None:
    """Curves averaged over a 25th of their steps; five markers on each."""
    attacks = list(curves["attack"].unique())
    # One defense's curves first, so that each has a column of the legend.
    ordered = curves.sort_values("defense", key=lambda names: names != dashed, kind="stable")
    for (attack, defense), rows in ordered.groupby(["attack", "defense"], sort=False):
        smooth = rows["value"].rolling(max(1, len(rows) // 25), center=True, min_periods=1).mean()
        style = look(attacks.index(attack)) | {
            "ls": "--" if defense == dashed else "-",
            "label": f"{attack}, {defense}",
        }
        (line,) = axis.plot(rows["step"], smooth, markevery=max(1, len(rows) // 5))
        line.set(lw=1, ms=3.5, **style)
    axis.set_title(label, loc="left")
    axis.set_xlabel("step")
    axis.locator_params(axis="x", integer=True, nbins=5)
    if attacks:
        columns = curves["defense"].nunique()
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=columns, columnspacing=1, handlelength=1.6)
    else:
        axis.text(0.5, 0.5, "not logged", transform=axis.transAxes, ha="center")
