"""Draw the figures of a results folder; for figures without data, give the command that makes the data."""

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import matplotlib
import pandas as pd
import torch
from matplotlib.figure import Figure

from bench.core.errors import BenchError
from bench.papers import drawings
from bench.results.folder import ResultsFolder
from reports.figures import ablations, attention, embedding, permutations, pictures, repelling, resistivity, scatter
from reports.figures.source import Source
from reports.figures.style import STYLE

FOLDER = "figures"
PNG_DPI = 200

Draw = Callable[[Source], tuple[Figure, pd.DataFrame]]

FIGURES: dict[str, tuple[str, Draw]] = {
    "figure1": ("Perturbation Resistivity and intra-class similarity of the models", resistivity.draw),
    "figure4": ("The feature-repelling loss on (RVPT) and off (VPT)", repelling.draw),
    "figure5": ("Attention of the class token, before and after the defense", attention.draw),
    "figure6": ("t-SNE of clean and triggered images with the class texts", embedding.draw),
    "figureS1": ("Perturbations", pictures.draw_perturbations),
    "figureS2": ("Perturbation Resistivity against attack success", scatter.draw),
    "figureS3": ("Triggers", pictures.draw_triggers),
    "figureS4": ("Where prompts and repelled features are", permutations.draw),
}


@dataclass(frozen=True)
class Drawn:
    """A figure: its files (SVG, PNG, CSV), or the reason why it was not drawn."""

    name: str
    title: str
    files: tuple[Path, ...] = ()
    missing: str = ""

    @property
    def label(self) -> str:
        return self.name.replace("figure", "Figure ")


def draw_all(folder: ResultsFolder) -> list[Drawn]:
    """Write DIR/figures/NAME.svg, .png and .csv of each figure whose cells are in the results."""
    source = Source(folder)
    # As many threads as in the run: on a busy machine, more threads are slower.
    torch.set_num_threads(source.run.execution.threads)
    sweeps = {name: (figure.title, figure.draw) for name, figure in ablations.sweep_figures().items()}
    drawn = [_draw(source, name, title, draw) for name, (title, draw) in (FIGURES | sweeps).items()]
    others = [
        Drawn(name.replace("/", "-"), shown, missing=f"no measurement: it shows {shown}")
        for name, shown in drawings().items()
    ]
    return sorted([*drawn, *others], key=attrgetter("name"))


def _draw(source: Source, name: str, title: str, draw: Draw) -> Drawn:
    files = tuple(source.folder.out / FOLDER / f"{name}.{ending}" for ending in ("svg", "png", "csv"))
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        try:
            figure, numbers = draw(source)
        except BenchError as error:
            # Otherwise a figure of earlier results would stay beside the new tables.
            for file in files:
                file.unlink(missing_ok=True)
            return Drawn(name, title, missing=str(error))
        files[0].parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(files[0], metadata={"Date": None})
        figure.savefig(files[1], dpi=PNG_DPI)
    numbers.to_csv(files[2], index=False)
    return Drawn(name, title, files)
