"""ASR and CA of a defense against one of its settings, from the sweeps of the papers' suites."""

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.core.names import UNDEFENDED
from bench.papers import Sweep, sweeps
from reports.figures.source import Source
from reports.figures.style import COLUMN, GRAY, dodge, legend_below, look, panels, points

SHARES = ("ASR", "CA")


@dataclass(frozen=True)
class SweepFigure:
    """A figure of the variants `KEY=NUMBER` of a sweep."""

    suite: str
    sweep: Sweep

    @property
    def title(self) -> str:
        return f"Ablation: {self.sweep.label}"

    def draw(self, source: Source) -> tuple[Figure, pd.DataFrame]:
        """ASR and CA against the setting; settings are spaced evenly. Dashed: the undefended model's."""
        key = self.sweep.key
        settings = source.summary["variant"].str.extract(rf"^{re.escape(key)}=(-?[0-9.]+)$")[0].astype(float)
        rows = source.summary.assign(setting=settings)
        rows = rows[rows["setting"].notna() & rows["metric"].isin(SHARES)].sort_values("setting", kind="stable")
        if rows.empty:
            raise source.missing(f"the variants {key}=...", f"--suite {self.suite}")
        figure, axes = panels(COLUMN, 3.6, 2, 1, sharex=True)
        shares_against(axes[:, 0], rows, "setting", list(rows["setting"].unique()), joined=True)
        undefended_lines(axes[:, 0], rows, source.summary)
        axes[1][0].set_xlabel(self.sweep.label)
        legend_below(figure, axes[0][0], columns=3)
        return figure, rows


def undefended_lines(axes: Iterable[Axes], rows: pd.DataFrame, summary: pd.DataFrame) -> None:
    """Dashed lines at the undefended models' ASR and CA, where each attack has one line."""
    place = ["attack", "dataset", "target", "model"]
    models = rows.drop_duplicates(place)
    if len(models) != len(rows.drop_duplicates([*place, "defense"])) or models["attack"].duplicated().any():
        return
    bare = (summary["defense"] == UNDEFENDED) & (summary["variant"] == "")
    none = summary[bare].set_index([*place, "metric"])["mean"]
    for axis, metric in zip(axes, SHARES, strict=True):
        keys = [(*key, metric) for key in models[place].itertuples(index=False)]
        levels = {i: none[key] for i, key in enumerate(keys) if key in none.index}
        for i, level in levels.items():
            axis.axhline(level, color=look(i)["color"], ls="--", lw=0.8)
        if levels:
            axis.plot([], [], color=GRAY, ls="--", lw=0.8, label="undefended")


def sweep_figures() -> dict[str, SweepFigure]:
    """The figures of sweeps of all papers, by name."""
    return {name: SweepFigure(suite, sweep) for name, (suite, sweep) in sweeps().items()}


def shares_against(
    axes: Iterable[Axes], rows: pd.DataFrame, setting: str, order: Sequence[Hashable], joined: bool
) -> None:
    """ASR on the first axis and CA on the second, in percent, over the settings in `order`, spaced evenly."""
    top, bottom = axes
    for axis, metric in zip((top, bottom), SHARES, strict=True):
        _lines(axis, rows[rows["metric"] == metric], setting, order, joined)
        axis.set_ylabel(f"{metric} (%)")
        names = [value if isinstance(value, str) else f"{value:g}" for value in order]
        axis.set_xticks(range(len(order)), names, rotation=0 if joined else 30)
        axis.set_xlim(-0.5, len(order) - 0.5)
    top.set_ylim(-4, 104)


def _lines(axis: Axes, rows: pd.DataFrame, setting: str, order: Sequence[Hashable], joined: bool) -> None:
    """One line per attack; also per defense, data set and model if there are several."""
    varying = ["attack", *(key for key in ("defense", "dataset", "target", "model") if rows[key].nunique() > 1)]
    groups = list(rows.groupby(varying, sort=False))
    for i, ((key, line), offset) in enumerate(zip(groups, dodge(len(groups), 0.3), strict=True)):
        x = np.array([order.index(value) for value in line[setting]]) + offset
        ends = line[["low", "high"]].to_numpy().T
        style = {"ls": "-" if joined else "", "label": ", ".join(map(str, key)), **look(i)}
        points(axis, list(x), list(line["mean"]), ends, upright=True, **style)
