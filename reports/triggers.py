"""The trigger gallery: clean, triggered, and their difference, as pictures."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

AMPLIFY = 10


def psnr(clean: Tensor, triggered: Tensor) -> float:
    """Peak signal-to-noise ratio of uint8 images in dB, mean over images; infinite where nothing changed."""
    error = ((clean.float() - triggered.float()) / 255).square().flatten(1).mean(1)
    return float((-10 * error.log10()).mean())


def difference(clean: Tensor, triggered: Tensor) -> Tensor:
    """(triggered - clean) x 10 around mid-gray: uint8, the shape of the images."""
    return ((triggered.float() - clean.float()) * AMPLIFY + 127.5).clamp(0, 255).round().to(torch.uint8)


def draw_triggers(clean: Tensor, triggered: dict[str, Tensor], file: Path) -> None:
    """One picture: for each attack, a column of clean images, one of triggered ones, one of differences.

    `clean` and each of `triggered` are uint8 (n, 3, h, w).
    """
    rows, columns = len(clean), 3 * len(triggered)
    figure, axes = plt.subplots(rows, columns, figsize=(1.35 * columns, 1.35 * rows + 0.55), squeeze=False)
    for k, (attack, images) in enumerate(triggered.items()):
        kinds = {"clean": clean, "triggered": images, f"difference x {AMPLIFY}": difference(clean, images)}
        for j, (title, pictures) in enumerate(kinds.items()):
            for i in range(rows):
                axis = axes[i][3 * k + j]
                axis.imshow(pictures[i].permute(1, 2, 0).numpy(), interpolation="nearest")
                axis.set_axis_off()
            axes[0][3 * k + j].set_title(title, fontsize=8)
        middle = axes[0][3 * k + 1]
        middle.set_title(f"{attack}, {psnr(clean, images):.1f} dB\ntriggered", fontsize=8)
    figure.tight_layout(pad=0.4)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    plt.close(figure)
