"""`bench report`: write all tables of a results folder, and pictures of its triggers."""

from collections.abc import Iterable, Mapping
from itertools import zip_longest

import pandas as pd
import torch

from bench.core.attack import stamp_images
from bench.core.errors import BenchError
from bench.core.metric import metrics
from bench.core.task import tasks
from bench.results.folder import ResultsFolder
from bench.results.records import Cell
from bench.results.tidy import DASH, NOT_THE_SPREAD, did_not_take, marked, view_table
from reports.files import over_cells, write_results
from reports.paper.write import write_paper_tables
from reports.triggers import draw_triggers

PICTURES = 3


def write_report(folder: ResultsFolder, published: str | None = None) -> str:
    """Write the results, table.csv, table.md, the papers' tables and pictures of the triggers.

    `published` is a version of a paper, such as v1, whose numbers are put beside the measured ones.

    Returns:
        The text of table.md, and a line about pictures that could not be drawn.

    Raises:
        BenchError: no cell is finished, or there is no such version of a paper.
    """
    out, run = folder.out, folder.settings
    _ = folder.finished_cells
    write_results(folder)
    text = f"# {run.model.label} on {run.dataset}, target {run.target}\n\n"
    for task in dict.fromkeys(cell.task for cell in folder.own_cells):
        text += _task_text(folder, task)
    text += _paper_text(folder, published) + "\n"
    if folder.unfinished:
        n = len(folder.unfinished)
        text += f"\n{n} cells are not finished and not in the tables; their `bench run` makes them.\n"
    (out / "table.md").write_text(text)
    try:
        trigger_pictures(folder)
    except BenchError as error:
        # Pictures need data and weights; numbers do not.
        text += f"\npictures of triggers not drawn: {error}\n"
    return text


def remarks(folder: ResultsFolder, weak: Mapping[str, Mapping[str, float]], mark: str = "") -> list[str]:
    """Which attacks did not take, each line after a `mark`; then which cells are not applicable, and why.

    `weak` holds, for each task's first metric (ASR, say), the attacks whose undefended value is below the setting
    `took`, and that value in percent.
    """
    took = folder.settings.took
    left_out = dict.fromkeys((c.attack, c.reason) for c in folder.run.cells if not c.evaluation)
    return [
        *(
            f"{mark}The attack {attack} did not take: undefended {metric} {value:.1f} % < {took:.0f} %."
            for metric, values in weak.items()
            for attack, value in values.items()
        ),
        *(f"{DASH} {attack}: {reason}." for attack, reason in left_out),
    ]


def over_cells_text(results: pd.DataFrame) -> list[str]:
    """Metrics over cells, one line each; a note that consecutive lines share is on the last of them."""
    rows = over_cells(results).to_dict("records")
    lines = []
    for row, after in zip_longest(rows, rows[1:]):
        value, low, high = (f"{row[name]:.2f}" for name in ("value", "low", "high"))
        number = "no number." if pd.isna(row["value"]) else f"{value} [{low}, {high}], n = {row['n']:.0f}."
        note = "" if after is not None and after["note"] == row["note"] else row["note"]
        lines.append(f"{row['metric']} ({row['what']}): {number} {note}".rstrip())
    return lines


def poisoned(folder: ResultsFolder, cells: Iterable[Cell]) -> str:
    """How many pairs were poisoned, by attack if attacks differ."""
    counts = {}
    for cell in cells:
        card = folder.lineage(cell).backdoor
        if card is None:
            continue
        if card.backdoored is not None:
            return "none, the model was backdoored elsewhere"
        share = 100 * card.poisoned / card.pairs
        counts[cell.attack] = f"{card.poisoned} of {card.pairs} ({share:.2g} %)"
    same = len(set(counts.values())) == 1
    return next(iter(counts.values())) if same else ", ".join(f"{a} {count}" for a, count in counts.items())


def _task_text(folder: ResultsFolder, name: str) -> str:
    """A task's main table and other views for the run's own settings, metrics over cells, and remarks."""
    results, run, task = folder.main_results(name), folder.settings, tasks[name]
    headline = [(metric, "") for metric in task.headline]
    main = view_table(results, headline)
    if main is None:
        return ""
    weak = did_not_take(results, run.took, task.headline[0])
    if name == next(iter(dict.fromkeys(cell.task for cell in folder.own_cells))):
        marked(main, weak).to_csv(folder.out / "table.csv")
    shown = task.headline[0] + "".join(f" ({metric})" for metric in task.headline[1:])
    seeds = f"{results['seed'].nunique()} seed(s)"
    if metrics[task.headline[0]].hits is None:
        conditions = f"{shown}, a number per model; {seeds}, {run.evaluate.split} images"
    else:
        n = int(results[results["metric"] == task.headline[-1]]["n"].iloc[0])
        conditions = f"{shown} in percent with 95 % Wilson intervals; {seeds}, {n} {run.evaluate.split} images"
    caption = f"{conditions}. Poisoned pairs: {poisoned(folder, folder.own_cells)}."
    if results["seed"].nunique() > 1:
        caption += f" {NOT_THE_SPREAD}"
    blocks = {caption: main, **{f"{name}:": view_table(results, list(view)) for name, view in task.views.items()}}
    lines = [] if name == "zero_shot" else [f"## Task: {name}\n"]
    lines += [f"{text}\n\n{marked(t, weak).to_markdown()}\n" for text, t in blocks.items() if t is not None]
    lines += [f"- {line}" for line in over_cells_text(results)]
    lines += ["", *remarks(folder, {task.headline[0]: weak})]
    return "\n".join(lines).rstrip() + "\n\n"


def _paper_text(folder: ResultsFolder, published: str | None) -> str:
    written, lacking = write_paper_tables(folder, published)
    return "\n".join(["The papers' tables:", "", *written, *lacking])


def trigger_pictures(folder: ResultsFolder) -> None:
    """A picture of each attack's stored trigger, on the first test images."""
    resources, store = folder.resources, folder.store
    index = torch.arange(min(PICTURES, len(resources.test)))
    clean = resources.test.load(index)
    stored = {c.attack: c for c in reversed(folder.own_cells) if c.backdoor and store.has("backdoor", c.backdoor)}
    for attack, cell in stored.items():
        stamped = stamp_images(resources.attack(attack), folder.trigger(cell), resources.test, index)
        draw_triggers(clean, {attack: stamped}, folder.out / "triggers" / f"{attack}.png")
