"""Write all that a results folder allows."""

from pathlib import Path

import pandas as pd
import torch

from bench.core.attack import stamp
from bench.core.errors import BenchError
from bench.matrix.settings import RunSettings
from bench.matrix.stages import Workshop, load_trigger, test_trigger
from bench.matrix.store import Store
from reports.results import all_predictions, collect, finished_cells, read_run
from reports.table import did_not_take, main_table, poisoned_accuracy_table, resistivity_table, to_markdown
from reports.triggers import draw_triggers

PICTURES = 3


def write_report(out: Path) -> str:
    """Write results.csv, table.csv, table.md, predictions.parquet and triggers/; returns the text of table.md."""
    run = RunSettings.model_validate(read_run(out)["settings"])
    done, missing = finished_cells(out)
    if not done:
        raise BenchError(f"no cell of {out} is finished. Run the same `bench run` command again to go on.")
    results = collect(out)
    results.to_csv(out / "results.csv", index=False)
    all_predictions(out).to_parquet(out / "predictions.parquet", index=False)
    table = main_table(results)
    table.to_csv(out / "table.csv")
    text = _markdown(out, run, results, table, done, missing)
    (out / "table.md").write_text(text)
    _pictures(run, out, done)
    return text


def _markdown(
    out: Path, run: RunSettings, results: pd.DataFrame, table: pd.DataFrame, done: list[dict], missing: list[dict]
) -> str:
    n = int(results[results["metric"] == "CA"]["n"].iloc[0])
    lines = [
        f"# {run.model.label} on {run.dataset}, target {run.target}",
        "",
        f"ASR (CA) in percent with 95 % Wilson intervals; {results['seed'].nunique()} seed(s), {n} "
        f"{run.evaluate.split} images. Poisoned pairs: {_poisoned(out, done)}.",
        "",
        to_markdown(table),
        "",
        "PA, the accuracy on triggered images of other classes, in percent:",
        "",
        to_markdown(poisoned_accuracy_table(results)),
        "",
        "Perturbation Resistivity on the cell's own trigger, PR_cos / PR_ratio:",
        "",
        to_markdown(resistivity_table(results)),
        "",
    ]
    for attack, asr in did_not_take(results, run.took).items():
        lines.append(f"The attack {attack} did not take: undefended ASR {asr:.1f} % < {run.took:.0f} %.")
    for cell in {(c["attack"], c["defense"]): c for c in read_run(out)["cells"] if not c["evaluation"]}.values():
        lines.append(f"{cell['defense']} has no text side, so it cannot face {cell['attack']}'s key in the text: –.")
    if missing:
        lines.append(f"{len(missing)} cells are not finished and not in the tables; the same `bench run` makes them.")
    return "\n".join(lines).rstrip() + "\n"


def _poisoned(out: Path, cells: list[dict]) -> str:
    """How many pairs were poisoned, as it was, attack by attack where they differ."""
    store, counts = Store(out), {}
    for cell in cells:
        if store.has("backdoor", cell["backdoor"]):
            card = store.card("backdoor", cell["backdoor"])
            share = 100 * card["poisoned"] / card["pairs"]
            counts[cell["attack"]] = f"{card['poisoned']} of {card['pairs']} ({share:.2g} %)"
    same = len(set(counts.values())) == 1
    return next(iter(counts.values())) if same else ", ".join(f"{a} {count}" for a, count in counts.items())


def _pictures(run: RunSettings, out: Path, cells: list[dict]) -> None:
    """A picture of each attack's stored trigger, on the first test images."""
    shop = Workshop(run, Store(out), "cpu")
    index = torch.arange(min(PICTURES, len(shop.test)))
    clean = shop.test.load(index)
    stored = {
        cell["attack"]: cell["backdoor"] for cell in reversed(cells) if shop.store.has("backdoor", cell["backdoor"])
    }
    for attack, backdoor in stored.items():
        stamped = stamp(shop.attack(attack), test_trigger(load_trigger(backdoor, shop)), clean, index)
        draw_triggers(clean, {attack: stamped}, out / "triggers" / f"{attack}.png")
