"""Write the measured tables of papers, and the commands that would measure the others."""

import math
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from bench.core.task import tasks
from bench.papers import find_version, papers, suite_name
from bench.results.folder import ResultsFolder
from bench.results.tidy import DASH, NOT_THE_SPREAD
from reports.paper.costs import collect_costs
from reports.paper.latex import latex
from reports.paper.published import published
from reports.paper.render import DAGGER, markdown, tidy
from reports.paper.tables import Table, TableCell, fill

TABLES = "tables"
ENDINGS = ("md", "csv", "tex")


def write_paper_tables(folder: ResultsFolder, source: str | None = None) -> tuple[list[str], list[str]]:
    """Write tables/NAME.md, .csv and .tex for each table with a measured cell; remove old files of the others.

    `source` is a version of a paper, such as v1, whose numbers are put beside the measured ones.

    Returns:
        Two lists of Markdown lines: the written tables, and the others with the commands that measure them.

    Raises:
        BenchError: no paper has such a version, or it has no numbers.
    """
    out, tables = folder.out, _tables(folder, source)
    _remove_old(out / TABLES)
    for table in tables:
        if table.measured:
            _write(out / TABLES, table, list(notes(table, out)), about_published(table, source) if source else "")
    written = [f"- [{table.title}]({TABLES}/{table.stem}.md)" for table in tables if table.measured]
    lacking = [
        f"- not measured: {t.title} ({suite_name(t.paper, t.spec.suite)}): {remedy(t, out)}"
        for t in tables
        if not t.measured
    ]
    return written, lacking


def lacking_tables(folder: ResultsFolder) -> list[tuple[str, str]]:
    """The titles of tables without a measured cell, each with the command that measures it."""
    return [(table.title, remedy(table, folder.out)) for table in _tables(folder) if not table.measured]


def notes(table: Table, out: Path) -> Iterator[str]:
    """The notes below a table."""
    spec, labels = table.spec, table.paper.labels
    yield from spec.notes
    if table.stands_for:
        pairs = ", ".join(f"{here} for {theirs}" for here, theirs in table.stands_for.items())
        yield f"Embedded counterparts stand for the paper's places: {pairs}. This is no replication."
    for label in table.without_counterpart:
        yield f"{DASH} {label}: it has no counterpart on the embedded world."
    if any(not math.isnan(number.low) for cell in table.cells for number in cell.measured.values()):
        several = any(number.seeds > 1 for cell in table.cells for number in cell.measured.values())
        yield f"95 % intervals: {table.stem}.csv." + (f" {NOT_THE_SPREAD}" if several else "")
    if not all(cell.took for cell in table.cells):
        metric = tasks[spec.task].headline[0]
        yield f"{DAGGER} The attack did not take: undefended {metric} below {table.run.took:.0f} %."
    for label, attack, reason in dict.fromkeys((c.method.label, c.attack, c.reason) for c in table.cells if c.reason):
        yield f"{DASH} {label} against {labels.attacks.get(attack, attack)}: {reason}."
    for method in table.paper.methods_of(spec):
        if method.variant in table.left_out:
            yield f"{DASH} {method.label}: {table.left_out[method.variant]}."
    if table.lacking:
        yield f"{DASH} not measured yet: {remedy(table, out)}."


def about_published(table: Table, source: str) -> str:
    """An explanation of the published numbers, and whether the difference to them is a replication."""
    paper, version = find_version(source)
    version = table.spec.version or version
    of = f"paper {version}, arXiv {paper.arxiv}" if paper.arxiv else f"{paper.title}, {version}"
    exact = (
        f"The published numbers ({of}) come without counts and are taken as exact: the "
        "interval of a difference is that of the measured number. The spread over training runs is in neither."
    )
    if table.replicates:
        return exact
    differ = "model and data differ, so the difference says nothing about replication"
    if table.stands_for:
        return f"Published is the paper's place, measured its embedded counterpart: {differ}. {exact}"
    theirs, own = table.paper.places_of(table.spec)[0], table.own
    return f"Published is {theirs.model} on {theirs.dataset}, measured {own.model} on {own.dataset}: {differ}. {exact}"


def remedy(table: Table, out: Path) -> str:
    """The commands that measure the missing cells, or the reason why none does."""
    if not table.cells:
        others = f"other models than {table.own.model}"
        if table.spec.beyond == "dataset":
            others = f"other data sets than {table.own.dataset}"
        return "; ".join(dict.fromkeys(table.left_out.values())) or f"it needs {others}: run them with --out {out}, too"
    return ", ".join(dict.fromkeys(_command(table, cell, out) for cell in table.lacking))


def _command(table: Table, cell: TableCell, out: Path) -> str:
    """The command that measures a cell."""
    spec, preset = table.spec, cell.place.preset
    suite, into = f"--suite {suite_name(table.paper, spec.suite)}", f"--out {out}"
    if table.own_presets and preset not in table.own_presets:
        if preset is None:
            return f"`bench run {suite} {into}` with model, data set and target of {cell.place.label}"
        return f"`bench run --preset {preset} {suite} {into}`"
    known = {other.perturbation for other in table.cells if other.measured}
    if known and cell.perturbation not in known:
        perturbations = f"--set {spec.task}.perturbations=[{','.join(spec.perturbations)}]"
        return f"`bench run {suite} {perturbations}` with an --out of its own"
    return f"`bench run {suite} {into}` with this folder's preset"


def _tables(folder: ResultsFolder, source: str | None = None) -> list[Table]:
    """The tables of all papers; with published numbers for the paper of `source`."""
    costs = collect_costs(folder)
    results = folder.results if costs.empty else pd.concat([folder.results, costs], ignore_index=True)
    of, version = find_version(source) if source else (None, "")
    tables = []
    for paper in papers.values():
        for name, spec in paper.tables.items():
            printed = published(paper, spec.version or version) if paper is of else None
            tables.append(fill(paper, name, results, folder.settings, printed))
    return tables


def _write(folder: Path, table: Table, lines: list[str], about: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{table.stem}.md").write_text(markdown(table, lines, about))
    (folder / f"{table.stem}.tex").write_text(latex(table, lines, about))
    tidy(table).to_csv(folder / f"{table.stem}.csv", index=False)


def _remove_old(folder: Path) -> None:
    """Remove the tables of an earlier report, under both names that a table may have."""
    stems = {stem for paper in papers.values() for name in paper.tables for stem in (name, f"{paper.name}-{name}")}
    for file in (folder / f"{stem}.{ending}" for stem in stems for ending in ENDINGS):
        file.unlink(missing_ok=True)
