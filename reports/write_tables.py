"""Write the paper's tables as far as they have been measured, and say what would fill the rest."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from bench.experiment.suites import find_suite
from bench.experiment.variants import EMBEDDED
from bench.results.tidy import DASH
from reports.cells import Cell, is_paper_place, table_cells
from reports.paper_tables import ATTACKS, TABLES, Method, PaperTable, Place
from reports.published import TARGETS, published
from reports.render import DAGGER, title, write

FILES = ("md", "csv", "tex")


def write_paper_tables(
    out: Path, results: pd.DataFrame, own: Place, took: float, source: str | None = None
) -> tuple[list[str], list[str]]:
    """Write OUT/tables/NAME.md, .csv and .tex of each table with a measured cell; remove those of a table without one.

    `source`, v1 or v3, puts the paper's numbers beside the measured ones. Returns two lists of Markdown lines: the
    tables written, and those not measured, each with the command that measures it.
    """
    numbers = published(source) if source else None
    written, lacking = [], []
    for table in TABLES:
        cells = table_cells(table, results, own, took, numbers)
        if any(cell.measured for cell in cells):
            about = about_published(table, own, source) if source else ""
            write(out / "tables", table, cells, list(notes(table, cells, own, took, out)), about)
            written.append(f"- [{title(table)}](tables/{table.name}.md)")
        else:
            for suffix in FILES:
                (out / "tables" / f"{table.name}.{suffix}").unlink(missing_ok=True)
            lacking.append(f"- not measured: {title(table)} ({table.suite}): {remedy(table, cells, own, out)}")
    return written, lacking


def notes(table: PaperTable, cells: list[Cell], own: Place, took: float, out: Path) -> Iterator[str]:
    """What a reader of the table must know."""
    if table.suite == "pr":
        yield "Prompts are tuned on backdoored models; PR is the mean over them, the clean model's that of their seeds."
    if table.metrics[0] == "seconds":
        yield "Means over the attacks that were defended, and their seeds."
    else:
        yield f"95 % intervals: {table.name}.csv."
    if not all(cell.took for cell in cells):
        yield f"{DAGGER} The attack did not take: undefended ASR below {took:.0f} %."
    for cell in (cell for cell in cells if not cell.applicable):
        attack = ATTACKS.get(cell.attack, cell.attack)
        yield f"{DASH} {cell.method.label} has no text side, so it cannot face {attack}'s key in the text."
    for method, reason in _impossible(table, own).items():
        yield f"{DASH} {method.label}: {reason}."
    if any(_lacking(table, cells, own)):
        yield f"{DASH} not measured yet: {remedy(table, cells, own, out)}."


def about_published(table: PaperTable, own: Place, source: str) -> str:
    """What the paper's numbers are, and whether the difference to them speaks of replication."""
    said = (
        f"The published numbers (paper {source}, arXiv 2412.20392) come without counts and are taken as exact: the "
        "interval of a difference is that of the measured number. The spread over training runs is in neither."
    )
    if is_paper_place(own):
        return said
    theirs = table.places[0]
    return (
        f"Published is {theirs.model} on {theirs.dataset}, measured {own.model} on {own.dataset}: model and data "
        f"differ, so the difference says nothing about replication. {said}"
    )


def remedy(table: PaperTable, cells: list[Cell], own: Place, out: Path) -> str:
    """What measures the cells that lack, or why nothing does."""
    if not cells:
        reasons = dict.fromkeys(_left_out(table, own).values())
        return "; ".join(reasons) or f"it needs other data sets than {own.dataset}: run them with --out {out}, too"
    known = {cell.perturbation for cell in cells if cell.measured}
    commands = []
    for cell in _lacking(table, cells, own):
        home = cell.place.dataset if cell.place.dataset in TARGETS else "imagenet"
        if is_paper_place(own) and home != own.dataset:
            commands.append(f"`bench run --preset paper-{home} --suite {table.suite} --out {out}`")
        elif known and cell.perturbation not in known:
            perturbations = f"--set zero_shot.perturbations=[{','.join(table.perturbations)}]"
            commands.append(f"`bench run --suite {table.suite} {perturbations}` with an --out of its own")
        else:
            commands.append(f"`bench run --suite {table.suite} --out {out}` with this folder's preset")
    return ", ".join(dict.fromkeys(commands))


def _lacking(table: PaperTable, cells: list[Cell], own: Place) -> Iterator[Cell]:
    """Cells that could be measured, and are not."""
    impossible = _impossible(table, own)
    return (cell for cell in cells if cell.applicable and not cell.measured and cell.method not in impossible)


def _impossible(table: PaperTable, own: Place) -> dict[Method, str]:
    """Methods that the suite leaves out here, and why."""
    reasons = _left_out(table, own)
    return {method: reasons[v] for method in table.methods for v in method.variants if v in reasons}


def _left_out(table: PaperTable, own: Place) -> dict[str, str]:
    """Variants that the suite leaves out here, and why."""
    declared = find_suite(table.suite).declared(own.dataset == EMBEDDED)
    return {name: reason for name, reason in declared.items() if isinstance(reason, str)}
