"""The arrangements of prompts and repelled features, with the ASR and CA of each."""

from typing import get_args

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from defenses.rvpt import Permutation, arrange
from reports.figures.ablations import SHARES, shares_against
from reports.figures.source import Source
from reports.figures.style import COLOURS, PAGE, legend_below, panels

# As many blocks as the embedded model and ViT-B/32 have; the default depth D of RVPT leaves the first ones out.
BLOCKS = 12


def draw(source: Source) -> tuple[Figure, pd.DataFrame]:
    """On the left the blocks of each arrangement, on the right its ASR and CA."""
    names = list(get_args(Permutation))
    rows = source.summary[source.summary["variant"].isin(names) & source.summary["metric"].isin(SHARES)]
    if rows.empty:
        raise source.missing("the variants " + ", ".join(names), "--suite permutation")
    rows = rows.sort_values("variant", key=lambda column: column.map({n: i for i, n in enumerate(names)}))
    figure, axes = panels(PAGE, 2.6, 1, 3, width_ratios=[1.15, 1, 1])
    _scheme(axes[0][0], names)
    shares_against(axes[0][1:], rows, "variant", names, joined=False)
    legend_below(figure, axes[0][1])
    return figure, rows


def _scheme(axis: Axes, names: list[str]) -> None:
    """A row per arrangement, a column per block: above whether it gets prompts, below whether it is repelled."""
    for row, name in enumerate(names):
        prompted, repelled = arrange(name, range(BLOCKS))  # type: ignore[arg-type]
        for block in range(BLOCKS):
            for used, colour, top in ((prompted, COLOURS[0], row - 0.36), (repelled, COLOURS[1], row + 0.02)):
                fill = colour if block in used else "white"
                axis.add_patch(Rectangle((block + 0.57, top), 0.86, 0.34, facecolor=fill, edgecolor=colour, lw=0.6))
    axis.set_xlim(0.4, BLOCKS + 0.6)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_yticks(range(len(names)), names)
    axis.set_xticks([1, BLOCKS // 2, BLOCKS])
    axis.set_xlabel("block")
    axis.grid(False)
    keys = [Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS[:2]]
    axis.legend(keys, ["prompted", "repelled"], loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
