"""Pictures of perturbations and triggers."""

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from bench.core.randomness import derive
from metrics.perturbations import PERTURBATIONS, perturbation
from reports.figures.source import Source
from reports.figures.style import PAGE, panels, picture
from reports.triggers import AMPLIFY, difference, psnr

ROW = 5
TRIGGERED = 2


def draw_perturbations(source: Source) -> tuple[Figure, pd.DataFrame]:
    """The first image of the evaluation under each perturbation of the run, and under each attack's trigger."""
    index = torch.tensor([0])
    clean = source.resources.test.load(index)
    versions = {"clean": clean}
    for name in source.perturbations:
        if name in PERTURBATIONS:
            changed = perturbation(name)(clean.float() / 255, [0], derive(0, "perturbation", name))
            versions[name] = (changed * 255).round().to(torch.uint8)
    versions |= {f"{attack} trigger": source.stamped(attack, index) for attack in source.attacks}
    rows = -(-len(versions) // ROW)
    figure, axes = panels(PAGE, rows * (PAGE / ROW + 0.2), rows, ROW)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (name, image) in zip(axes.flat, versions.items(), strict=False):
        picture(axis, image[0].permute(1, 2, 0).numpy())
        axis.set_title(name.replace(" ", "\n"))
    numbers = [{"perturbation": n, "psnr_db": psnr(clean, image)} for n, image in versions.items() if n != "clean"]
    return figure, pd.DataFrame(numbers)


def draw_triggers(source: Source) -> tuple[Figure, pd.DataFrame]:
    """A row per attack, two images: clean, triggered, and their difference x 10."""
    index = torch.arange(min(TRIGGERED, len(source.resources.test)))
    clean = source.resources.test.load(index)
    names = source.attacks
    figure, axes = panels(PAGE, 0.25 + len(names) * (PAGE - 1.1) / 6.2, len(names), 3 * len(index))
    numbers = []
    for row, attack in zip(axes, names, strict=True):
        stamped = source.stamped(attack, index)
        numbers.append({"attack": attack, "psnr_db": psnr(clean, stamped)})
        _triples(row, clean, stamped)
        row[0].set_ylabel(f"{attack}\nPSNR {numbers[-1]['psnr_db']:.1f} dB", rotation=0, ha="right", va="center")
    for axis, title in zip(axes[0], ("clean", "triggered", f"difference x {AMPLIFY}") * len(index), strict=True):
        axis.set_title(title, fontsize=7)
    return figure, pd.DataFrame(numbers)


def _triples(row, clean: Tensor, stamped: Tensor) -> None:
    for i, images in enumerate(zip(clean, stamped, difference(clean, stamped), strict=True)):
        for axis, image in zip(row[3 * i :], images, strict=False):
            picture(axis, image.permute(1, 2, 0).numpy())
