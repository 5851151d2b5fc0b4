"""One page with all that a results folder has to show: it opens from disk, and needs no network."""

from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from bench.matrix.settings import RunSettings
from reports.correlation import correlation_text
from reports.figures import Drawn
from reports.grid import Grid, main_grids, paper_grids
from reports.paper_tables import TABLES
from reports.render import title
from reports.results import finished_cells, read_run
from reports.table import did_not_take
from reports.write import main_cells

PAGE = "report.html"
TEMPLATE = "page.html.j2"
MADE_WITH = ("bench", "torch", "hardware")
TYPES = {".svg": "image/svg+xml", ".png": "image/png"}


def write_page(out: Path, results: pd.DataFrame, drawn: Sequence[Drawn]) -> Path:
    """Write DIR/report.html from the results, the figures drawn, and the tables and triggers in the folder.

    All text is escaped: names of classes, attacks and data sets come from strangers.
    """
    run = RunSettings.model_validate(read_run(out)["settings"])
    main = main_cells(results, run)
    main_tables = main_grids(main) if len(main) else []
    paper_tables = paper_grids(out / "tables")
    context = {
        "run": run,
        "facts": facts(run, results),
        "main_tables": main_tables,
        "paper_tables": paper_tables,
        "filters": filters([*main_tables, *paper_tables]),
        "figures": [(figure, data_uri(figure.files[0])) for figure in drawn if figure.files],
        "triggers": [(file.stem, data_uri(file)) for file in sorted((out / "triggers").glob("*.png"))],
        "correlation": [line.removeprefix("- ") for line in correlation_text(main).splitlines()] if len(main) else [],
        "notes": notes(out, run, main),
        "lacking": lacking(out, drawn),
    }
    environment = Environment(
        loader=PackageLoader("reports", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    file = out / PAGE
    file.write_text(environment.get_template(TEMPLATE).render(context), encoding="utf-8")
    return file


def facts(run: RunSettings, results: pd.DataFrame) -> dict[str, str]:
    """What was run, and with what."""
    measured = results[results["metric"] == "CA"]
    made = {name: _several(results[name].fillna("")) for name in MADE_WITH if name in results}
    return {
        "model": run.model.label,
        "data set": f"{run.dataset}, {_several(measured['n'].astype(int))} {run.evaluate.split} images",
        "target": run.target,
        "seeds": _several(results["seed"]),
        "poisoning": f"{run.poison.count} of {run.poison.pairs} pairs",
        **{name: value for name, value in made.items() if value},
    }


def filters(grids: Sequence[Grid]) -> dict[str, list[str]]:
    """The attacks and defenses that stand in any of the tables."""
    attacks = dict.fromkeys(attack for grid in grids for _, attack in grid.columns if attack)
    defenses = dict.fromkeys(row.defense for grid in grids for row in grid.rows if row.defense)
    return {"attack": list(attacks), "defense": list(defenses)}


def notes(out: Path, run: RunSettings, main: pd.DataFrame) -> list[str]:
    """What a reader of the numbers must know."""
    said = [
        f"The attack {attack} did not take: undefended ASR {asr:.1f} % < {run.took:.0f} %."
        for attack, asr in did_not_take(main, run.took).items()
    ]
    for cell in {(c["attack"], c["defense"]): c for c in read_run(out)["cells"] if not c["evaluation"]}.values():
        said.append(f"Left out: {cell['defense']} has no text side and cannot face {cell['attack']}'s key in the text.")
    if missing := finished_cells(out)[1]:
        said.append(f"{len(missing)} cells are not finished and not on this page; the same bench run makes them.")
    return [
        *said,
        "Intervals are of the sample of test images (95 %), not of the spread over seeds, which stands beside them.",
    ]


def lacking(out: Path, drawn: Sequence[Drawn]) -> list[tuple[str, str]]:
    """The paper's tables and figures that are not here, each with the reason or the command that fills it."""
    tables = [table for table in TABLES if not (out / "tables" / f"{table.name}.csv").is_file()]
    return [
        *((title(table), f"not measured yet: `bench run --suite {table.suite} --out {out}`") for table in tables),
        *((f"{figure.label}: {figure.title}", figure.missing) for figure in drawn if figure.missing),
    ]


def data_uri(file: Path) -> str:
    """A picture as text; an SVG in an <img> runs no script and shares no ids with others."""
    return f"data:{TYPES[file.suffix]};base64,{b64encode(file.read_bytes()).decode()}"


def _several(values: Any) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if str(value)))
