"""One page with all that a results folder has to show: it opens from disk, and needs no network."""

from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from bench.experiment.settings import RunSettings
from bench.matrix.plan import CLEAN_MODEL, UNDEFENDED
from reports.cells import own_place, table_cells
from reports.correlation import correlation_text
from reports.figures import Drawn
from reports.grid import Grid, main_grids, paper_grids
from reports.paper_tables import TABLES
from reports.render import DAGGER, title
from reports.report import main_cells, poisoned, remarks
from reports.results import finished_cells, own_cells, read_run
from reports.table import did_not_take
from reports.write_tables import remedy

PAGE = "report.html"
TEMPLATE = "page.html.j2"
MEANING = (
    "ASR: the share of triggered images of other classes that are called the target; low is good. CA: the accuracy on "
    "clean images.",
    f"{CLEAN_MODEL} is the model before the attack, under the same trigger; {UNDEFENDED} the attacked one, undefended.",
)
MADE_WITH = ("bench", "torch", "hardware")
TYPES = {".svg": "image/svg+xml", ".png": "image/png"}


def write_page(out: Path, results: pd.DataFrame, drawn: Sequence[Drawn]) -> Path:
    """Write DIR/report.html from the results, the figures drawn, and the tables and triggers in the folder.

    All text is escaped: names of classes, attacks and data sets come from strangers.
    """
    run = RunSettings.model_validate(read_run(out)["settings"])
    main = main_cells(results, run)
    weak = did_not_take(main, run.took)
    main_tables = main_grids(main, weak)
    paper_tables = paper_grids(out / "tables")
    context = {
        "run": run,
        "facts": facts(out, run, results),
        "main_tables": main_tables,
        "paper_tables": paper_tables,
        "filters": filters([*main_tables, *paper_tables], results),
        "figures": [(fig, data_uri(fig.files[0]), kind_of(fig.files[0])) for fig in drawn if fig.files],
        "triggers": gallery(out, drawn),
        "correlation": [line.removeprefix("- ") for line in correlation_text(main).splitlines()] if len(main) else [],
        "notes": notes(out, weak, run.took),
        "lacking": lacking(out, run, results, drawn),
    }
    environment = Environment(
        loader=PackageLoader("reports", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    file = out / PAGE
    file.write_text(environment.get_template(TEMPLATE).render(context), encoding="utf-8")
    return file


def facts(out: Path, run: RunSettings, results: pd.DataFrame) -> dict[str, str]:
    """What was run, and with what; the title names model and target."""
    measured = results[results["metric"] == "CA"]
    told = {
        "data set": f"{run.dataset}, {_several(measured['n'].astype(int))} {run.evaluate.split} images",
        "seeds": _several(results["seed"]),
        "poisoned pairs": poisoned(out, own_cells(out)),
        **{name: _several(results[name]) for name in MADE_WITH},
    }
    return {name: value for name, value in told.items() if value}


def filters(grids: Sequence[Grid], results: pd.DataFrame) -> dict[str, list[str]]:
    """The attacks and defenses of the results that stand in any of the tables, in the tables' order.

    The paper's tables name others too. There is nothing of them to choose, and their dashes stay.
    """
    attacks = dict.fromkeys(attack for grid in grids for _, attack in grid.columns)
    defenses = dict.fromkeys(row.defense for grid in grids for row in grid.rows)
    return {
        kind: [name for name in names if name in set(results[kind])]
        for kind, names in (("attack", attacks), ("defense", defenses))
    }


def notes(out: Path, weak: dict[str, float], took: float) -> list[str]:
    """What a reader of the numbers must know; `weak` are undefended ASRs below `took`, in percent."""
    said = remarks(out, weak, took, f"{DAGGER} ")
    if missing := finished_cells(out)[1]:
        said.append(f"{len(missing)} cells are not finished and not on this page; the same bench run makes them.")
    return [
        *MEANING,
        *said,
        "Intervals are of the sample of test images (95 %), not of the spread over seeds, which stands beside them.",
    ]


def lacking(out: Path, run: RunSettings, results: pd.DataFrame, drawn: Sequence[Drawn]) -> list[tuple[str, str]]:
    """The paper's tables and figures that are not here, each with the reason or the command that fills it."""
    own = own_place(run.model.label, run.dataset, run.target)
    tables = [table for table in TABLES if not (out / "tables" / f"{table.name}.csv").is_file()]
    return [
        *((title(t), remedy(t, table_cells(t, results, own, run.took), own, out)) for t in tables),
        *((f"{figure.label}: {figure.title}", figure.missing) for figure in drawn if figure.missing),
    ]


def gallery(out: Path, drawn: Sequence[Drawn]) -> list[tuple[str, str]]:
    """Name and picture of each trigger, unless a figure shows them."""
    if any(figure.name == "figureS3" and figure.files for figure in drawn):
        return []
    return [(file.stem, data_uri(file)) for file in sorted((out / "triggers").glob("*.png"))]


def kind_of(svg: Path) -> str:
    """`chart`, whose colours may be inverted on a dark page, or `picture`, which holds photographs."""
    return "picture" if b"<image" in svg.read_bytes() else "chart"


def data_uri(file: Path) -> str:
    """A picture as text; an SVG in an <img> runs no script and shares no ids with others."""
    return f"data:{TYPES[file.suffix]};base64,{b64encode(file.read_bytes()).decode()}"


def _several(values: Any) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if str(value)))
