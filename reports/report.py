"""Write all that a results folder allows."""

from pathlib import Path

import pandas as pd
import torch

from bench.core.attack import stamp
from bench.core.errors import BenchError
from bench.experiment.resources import Resources
from bench.experiment.settings import RunSettings
from bench.matrix.stages import load_trigger, trigger_at_test
from bench.results.store import Store
from reports.cells import own_place
from reports.correlation import correlation_text
from reports.costs import collect_costs
from reports.results import collect, own_cells, read_run, some_finished_cells, write_results
from reports.table import (
    DASH,
    did_not_take,
    keys_table,
    main_table,
    marked,
    poisoned_accuracy_table,
    resistivity_table,
)
from reports.triggers import draw_triggers
from reports.write_tables import write_paper_tables

PICTURES = 3


def write_report(out: Path, published: str | None = None) -> str:
    """Write the results, table.csv and table.md, the paper's tables and pictures of the triggers.

    `published`, v1 or v3, puts the paper's numbers beside the measured ones. Returns the text of table.md.

    Raises:
        BenchError: the folder holds no run, or no finished cell; there is no such version of the paper.
    """
    run = RunSettings.model_validate(read_run(out)["settings"])
    _, missing = some_finished_cells(out)
    results = collect(out)
    write_results(out, results)
    own, main = own_cells(out), main_cells(results, run)
    text = f"# {run.model.label} on {run.dataset}, target {run.target}\n\n"
    if not main.empty:
        marked(main_table(main), did_not_take(main, run.took)).to_csv(out / "table.csv")
        text += _main_text(out, run, main, own) + "\n"
    text += _paper_text(out, run, results, published) + "\n"
    if missing:
        text += f"\n{len(missing)} cells are not finished and not in the tables; their `bench run` makes them.\n"
    (out / "table.md").write_text(text)
    try:
        _pictures(run, out, own)
    except BenchError as error:
        # Numbers are complete without the data and weights that pictures need.
        text += f"\npictures of triggers not drawn: {error}\n"
    return text


def main_cells(results: pd.DataFrame, run: RunSettings) -> pd.DataFrame:
    """Rows of the cells with the run's own settings: no variant, no other data set."""
    own = {"variant": "", "dataset": run.dataset, "model": run.model.label, "target": run.target.lower()}
    return results[(results[list(own)] == list(own.values())).all(axis=1)]


def remarks(out: Path, weak: dict[str, float], took: float, mark: str = "") -> list[str]:
    """Which attacks did not take, each after a `mark`, and which defenses cannot face an attack.

    `weak` are undefended ASRs below `took`, in percent.
    """
    skipped = dict.fromkeys((c["defense"], c["attack"]) for c in read_run(out)["cells"] if not c["evaluation"])
    return [
        *(f"{mark}The attack {a} did not take: undefended ASR {asr:.1f} % < {took:.0f} %." for a, asr in weak.items()),
        *(f"{d} has no text side, so it cannot face {a}'s key in the text: {DASH}." for d, a in skipped),
    ]


def _main_text(out: Path, run: RunSettings, results: pd.DataFrame, done: list[dict]) -> str:
    n = int(results[results["metric"] == "CA"]["n"].iloc[0])
    weak = did_not_take(results, run.took)
    blocks = {
        f"ASR (CA) in percent with 95 % Wilson intervals; {results['seed'].nunique()} seed(s), {n} "
        f"{run.evaluate.split} images. Poisoned pairs: {poisoned(out, done)}.": main_table(results),
        "ASR in percent with both keys, and with one alone:": keys_table(results),
        "PA, the accuracy on triggered images of other classes, in percent:": poisoned_accuracy_table(results),
        "Perturbation Resistivity on the cell's own trigger, PR_cos / PR_ratio:": resistivity_table(results),
    }
    lines = [f"{said}\n\n{marked(t, weak).to_markdown()}\n" for said, t in blocks.items() if t is not None]
    lines += [correlation_text(results) + "\n", *remarks(out, weak, run.took)]
    return "\n".join(lines).rstrip() + "\n"


def _paper_text(out: Path, run: RunSettings, results: pd.DataFrame, published: str | None) -> str:
    own = own_place(run.model.label, run.dataset, run.target)
    with_costs = pd.concat([results, collect_costs(out)], ignore_index=True)
    written, lacking = write_paper_tables(out, with_costs, own, run.took, published)
    return "\n".join(["The paper's tables:", "", *written, *lacking])


def poisoned(out: Path, cells: list[dict]) -> str:
    """How many pairs were poisoned, as it was, attack by attack where they differ."""
    store, counts = Store(out), {}
    for cell in cells:
        if store.has("backdoor", cell["backdoor"]):
            card = store.card("backdoor", cell["backdoor"])
            if "backdoored" in card:
                return "none, the model was backdoored elsewhere"
            share = 100 * card["poisoned"] / card["pairs"]
            counts[cell["attack"]] = f"{card['poisoned']} of {card['pairs']} ({share:.2g} %)"
    same = len(set(counts.values())) == 1
    return next(iter(counts.values())) if same else ", ".join(f"{a} {count}" for a, count in counts.items())


def _pictures(run: RunSettings, out: Path, cells: list[dict]) -> None:
    """A picture of each attack's stored trigger, on the first test images."""
    resources = Resources(run, Store(out), "cpu")
    index = torch.arange(min(PICTURES, len(resources.test)))
    clean = resources.test.load(index)
    stored = {
        cell["attack"]: cell["backdoor"]
        for cell in reversed(cells)
        if resources.store.has("backdoor", cell["backdoor"])
    }
    for attack, backdoor in stored.items():
        stamped = stamp(resources.attack(attack), trigger_at_test(load_trigger(backdoor, resources)), clean, index)
        draw_triggers(clean, {attack: stamped}, out / "triggers" / f"{attack}.png")
