"""One page with all that a results folder has to show: it opens from disk, and needs no network."""

from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from bench.core.names import CLEAN_MODEL, UNDEFENDED
from bench.core.task import tasks
from bench.results.folder import ResultsFolder
from bench.results.tidy import NOT_THE_SPREAD, did_not_take
from reports.figures import Drawn
from reports.grid import Grid, main_grids
from reports.paper.grids import paper_grids
from reports.paper.render import DAGGER
from reports.paper.write import lacking_tables
from reports.report import over_cells_text, poisoned, remarks

PAGE = "report.html"
TEMPLATE = "page.html.j2"
MEANING = (
    "ASR: the share of triggered images of other classes that are called the target; low is good. CA: the accuracy on "
    "clean images.",
    f"{CLEAN_MODEL} is the model before the attack, under the same trigger; {UNDEFENDED} the attacked one, undefended.",
)
MADE_WITH = ("bench", "torch", "hardware")
TYPES = {".svg": "image/svg+xml", ".png": "image/png"}


def write_page(folder: ResultsFolder, drawn: Sequence[Drawn]) -> Path:
    """Write DIR/report.html from the results, the figures drawn, and the tables and triggers in the folder.

    All text is escaped: names of classes, attacks and data sets are not trusted.
    """
    run, main_tables = folder.settings, []
    weak: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(cell.task for cell in folder.own_cells):
        results = folder.main_results(name)
        metric = tasks[name].headline[0]
        weak[metric] = did_not_take(results, run.took, metric)
        main_tables += main_grids(results, tasks[name], weak[metric])
    paper_tables = paper_grids(folder)
    context = {
        "run": run,
        "facts": facts(folder),
        "main_tables": main_tables,
        "paper_tables": paper_tables,
        "filters": filters([*main_tables, *paper_tables], folder.results),
        "figures": [(fig, data_uri(fig.files[0]), kind_of(fig.files[0])) for fig in drawn if fig.files],
        "triggers": gallery(folder.out, drawn),
        "correlation": over_cells_text(folder.main_results()),
        "notes": notes(folder, weak),
        "lacking": [*lacking_tables(folder), *((f"{f.label}: {f.title}", f.missing) for f in drawn if f.missing)],
    }
    environment = Environment(
        loader=PackageLoader("reports", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    file = folder.out / PAGE
    file.write_text(environment.get_template(TEMPLATE).render(context), encoding="utf-8")
    return file


def facts(folder: ResultsFolder) -> dict[str, str]:
    """Facts about the run for the top of the page; its title names model and target."""
    run, results = folder.settings, folder.results
    measured = results[results["metric"] == "CA"]
    rows = {
        "data set": f"{run.dataset}, {_several(measured['n'].astype(int))} {run.evaluate.split} images",
        "seeds": _several(results["seed"]),
        "poisoned pairs": poisoned(folder, folder.own_cells),
        **{name: _several(results[name]) for name in MADE_WITH},
    }
    return {name: value for name, value in rows.items() if value}


def filters(grids: Sequence[Grid], results: pd.DataFrame) -> dict[str, list[str]]:
    """The attacks and defenses that can be filtered by, in the order of the tables: those with results.

    Papers' tables also have attacks and defenses that were not run.
    """
    attacks = dict.fromkeys(attack for grid in grids for _, attack in grid.columns)
    defenses = dict.fromkeys(row.defense for grid in grids for row in grid.rows)
    return {
        kind: [name for name in names if name in set(results[kind])]
        for kind, names in (("attack", attacks), ("defense", defenses))
    }


def notes(folder: ResultsFolder, weak: dict[str, dict[str, float]]) -> list[str]:
    """Notes below the tables: how to read the numbers, and remarks; `weak` is as in `remarks`."""
    lines = remarks(folder, weak, f"{DAGGER} ")
    if n := len(folder.unfinished):
        lines.append(f"{n} cells are not finished and not on this page; the same bench run makes them.")
    return [
        *MEANING,
        *lines,
        NOT_THE_SPREAD,
    ]


def gallery(out: Path, drawn: Sequence[Drawn]) -> list[tuple[str, str]]:
    """Name and picture of each trigger, unless a figure shows them."""
    if any(figure.name == "figureS3" and figure.files for figure in drawn):
        return []
    return [(file.stem, data_uri(file)) for file in sorted((out / "triggers").glob("*.png"))]


def kind_of(svg: Path) -> str:
    """`picture` if the SVG contains photographs, else `chart`, whose colours may be inverted on a dark page."""
    return "picture" if b"<image" in svg.read_bytes() else "chart"


def data_uri(file: Path) -> str:
    """A picture as a data URI; an SVG in an <img> runs no scripts, and its ids do not clash with others."""
    return f"data:{TYPES[file.suffix]};base64,{b64encode(file.read_bytes()).decode()}"


def _several(values: Any) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if str(value)))
