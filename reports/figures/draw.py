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
from bench.papers import PaperFigure, drawings, figures
from bench.results.folder import ResultsFolder
from reports.figures import (
    ablations,
    attention,
    blocks,
    correlation,
    embedding,
    loss_term,
    permutations,
    pictures,
    resistivity,
)
from reports.figures.source import Source
from reports.figures.style import STYLE

FOLDER = "figures"
PNG_DPI = 200

Draw = Callable[[Source], tuple[Figure, pd.DataFrame]]

# The kinds of figures that a paper may declare: those of all models of a run, and those of the defenses it names.
OF_ALL: dict[str, Draw] = {
    "blocks": blocks.draw,
    "correlation": correlation.draw,
    "permutations": permutations.draw,
    "perturbations": pictures.draw_perturbations,
    "resistivity": resistivity.draw,
    "triggers": pictures.draw_triggers,
}
OF_SOME: dict[str, Callable[[Source, PaperFigure], tuple[Figure, pd.DataFrame]]] = {
    "attention": attention.draw,
    "embedding": embedding.draw,
    "loss_term": loss_term.draw,
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
    declared = {name: (figure.title, _draws(figure)) for name, figure in figures().items()}
    sweeps = {name: (figure.title, figure.draw) for name, figure in ablations.sweep_figures().items()}
    drawn = [_draw(source, _file_name(name), title, draw) for name, (title, draw) in (declared | sweeps).items()]
    others = [
        Drawn(_file_name(name), shown, missing=f"no measurement: it shows {shown}")
        for name, shown in drawings().items()
    ]
    return sorted([*drawn, *others], key=attrgetter("name"))


def _draws(figure: PaperFigure) -> Draw:
    return OF_ALL[figure.kind] if figure.kind in OF_ALL else lambda source: OF_SOME[figure.kind](source, figure)


def _file_name(name: str) -> str:
    """The name of a figure that may be PAPER/NAME, as a file can have it."""
    return name.replace("/", "-")


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
        # The picture has the same layout, which takes as long to compute as to draw.
        figure.set_layout_engine("none")
        figure.savefig(files[1], dpi=PNG_DPI)
    numbers.to_csv(files[2], index=False)
    return Drawn(name, title, files)
