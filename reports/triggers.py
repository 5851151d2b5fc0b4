"""Pictures of triggers: clean image, triggered image, and their difference."""

from collections.abc import Iterable
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

AMPLIFY = 10


def psnr(clean: Tensor, triggered: Tensor) -> float:
    """Peak signal-to-noise ratio of uint8 images (n, 3, h, w) in dB, mean over images; infinite if one is unchanged."""
    error = ((clean.float() - triggered.float()) / 255).square().flatten(1).mean(1)
    return float((-10 * error.log10()).mean())


def difference(clean: Tensor, triggered: Tensor) -> Tensor:
    """(triggered - clean) x 10 around mid-gray: uint8, the shape of the images."""
    return ((triggered.float() - clean.float()) * AMPLIFY + 127.5).clamp(0, 255).round().to(torch.uint8)


def draw_triggers(clean: Tensor, triggered: dict[str, Tensor], file: Path) -> None:
    """Draw a row of the clean images, and for each attack a row of triggered images and their differences.

    `clean` and each of `triggered` are uint8 (n, 3, h, w).
    """
    rows, n = 1 + len(triggered), len(clean)
    figure = Figure(figsize=(1.35 * 2 * n + 1.1, 1.35 * rows + 0.3))
    axes = figure.subplots(rows, 2 * n, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    _show(axes[0][:n], clean)
    _name(axes[0][0], "clean")
    for row, (attack, images) in zip(axes[1:], triggered.items(), strict=True):
        _show(row[:n], images)
        _show(row[n:], difference(clean, images))
        _name(row[0], f"{attack}\n{psnr(clean, images):.1f} dB")
    axes[1][n].set_title(f"difference x {AMPLIFY}", fontsize=9, loc="left")
    figure.tight_layout(pad=0.4)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


def _show(axes: Iterable[Axes], images: Tensor) -> None:
    for axis, image in zip(axes, images, strict=True):
        axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")


def _name(axis: Axes, text: str) -> None:
    """Write a label to the left of a row."""
    axis.text(-0.08, 0.5, text, transform=axis.transAxes, ha="right", va="center", fontsize=9)
