"""The style of figures: readable in print at 7 inches; colours are safe for the colour-blind and have markers too."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette without its yellow, which is too light for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
GRAY = "#7f7f7f"

# A page's width and a column's, in inches.
PAGE, COLUMN = 7.0, 3.4
# The least width of an axis of cosines.
LEAST = 0.02

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    # Names may contain a $, which must not start a formula.
    "text.parse_math": False,
    # The same figure gives the same file.
    "svg.hashsalt": "bench",
}


def look(i: int) -> dict[str, Any]:
    """Colour and marker of the i-th series of a figure."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}


def panels(width: float, height: float, rows: int, columns: int, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure with its size in inches, and its axes (rows, columns)."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def dodge(count: int, width: float = 0.75) -> list[float]:
    """Offsets that put `count` markers of one place side by side, within a width.

    >>> dodge(3)
    [-0.25, 0.0, 0.25]
    """
    return [width * ((i + 0.5) / count - 0.5) for i in range(count)]


def points(axis: Axes, x: Sequence[float], y: Sequence[float], ends: np.ndarray, upright: bool, **style: Any) -> None:
    """Markers with 95 % intervals `ends` (2, n): of y where `upright`, else of x."""
    values = np.asarray(y if upright else x, dtype=float)
    # By rounding, a mean over seeds may lie just outside its interval; bars cannot be negative.
    bars = np.abs(np.asarray(ends, dtype=float) - values)
    axis.errorbar(x, y, **{"yerr" if upright else "xerr": bars}, elinewidth=0.8, capsize=1.5, **style)


def widen(axis: Axes, along: Literal["x", "y"] = "x") -> None:
    """Make an axis of cosines at least 0.02 wide, so that negligible differences look negligible."""
    low, high = axis.get_xlim() if along == "x" else axis.get_ylim()
    missing = max(0.0, LEAST - (high - low))
    axis.set(**{f"{along}lim": (low - missing / 2, high + missing / 2)})


def legend_below(figure: Figure, axis: Axes, columns: int = 4) -> None:
    """One legend under all panels."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)))


def picture(axis: Axes, pixels: np.ndarray, **options: Any) -> None:
    """An image without ticks and without interpolation."""
    axis.imshow(pixels, interpolation="nearest", **options)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)
