"""How training makes a difference of rounding grow, and what damps it.

From the backdoored models of a results folder, each method is trained again and again: as it is, with weights that
are off by a share of 4e-6 (`nudge`), with the gradient of a batch added up in parts (`split`), or on another number of
threads (`threads`). Compared are the trained numbers step by step, and at the end the embeddings, ASR and CA on the
validation split. Recipes are the preset's and candidates that may damp the growth.

    python -m benchmarks.gate.rounding results --out rounding --attacks badnet,blended --seeds 0,1,2

growth.csv, ends.csv, summary.md and growth.png in `--out`; interrupted, the same command goes on.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

import bench
import defenses.prompt_tuning
from bench import CleanData, Victim
from bench.core.metric import metrics
from bench.experiment.resources import Resources
from bench.experiment.settings import overlay
from bench.results.folder import ResultsFolder
from bench.results.records import Cell
from benchmarks.gate.measured import append, known
from metrics.prediction import angle

PROMPTS: dict[str, dict[str, Any]] = {
    "preset": {},
    "average": {"average": 3},
    "half rate": {"learning_rate": 0.01},
    "max_norm": {"max_norm": 1.0},
}
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "vpt": PROMPTS,
    "rvpt": PROMPTS
    | {
        "longer": {"epochs": 14},
        "slower": {"learning_rate": 0.01, "epochs": 14},
        "max_norm at a higher rate": {"max_norm": 1.0, "learning_rate": 0.1},
        "no momentum": {"momentum": 0.0, "learning_rate": 0.2},
        "half alpha": {"alpha": 2.0},
        "larger start": {"init_std": 0.2},
    },
    "cleanclip": {"preset": {}, "half rate": {"learning_rate": 2e-4}},
}
# Kinds of rounding, and which of the kind; the first is the reference.
ROUNDINGS: tuple[tuple[str, int], ...] = (("none", 0), ("nudge", 1), ("split", 8), ("nudge", 2), ("threads", 2))
KEY = ["method", "recipe", "attack", "seed", "rounding", "number"]


@dataclass
class Steps:
    """The trained numbers after some steps of a fit, as one vector each."""

    taken: dict[int, Tensor] = field(default_factory=dict)
    done: int = 0

    def look(self, optimiser: torch.optim.Optimizer, *_: Any) -> None:
        self.done += 1
        if self.done == round(1.15 ** round(np.log(self.done) / np.log(1.15))):
            trained = [p.detach().flatten() for group in optimiser.param_groups for p in group["params"]]
            self.taken[self.done] = torch.cat(trained).clone()

    @contextmanager
    def watching(self) -> Iterator[None]:
        hook = register_optimizer_step_post_hook(self.look)
        try:
            yield
        finally:
            hook.remove()


@contextmanager
def in_parts(size: int) -> Iterator[None]:
    """Gradients of prompts are those of `size` images at a time, added up."""
    whole = defenses.prompt_tuning.within_memory

    def within_memory(work: Callable[[int], Any], images: int) -> tuple[Any, int]:
        return work(size), images

    defenses.prompt_tuning.within_memory = within_memory
    try:
        yield
    finally:
        defenses.prompt_tuning.within_memory = whole


@contextmanager
def on_threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Bench:
    """What a fit needs of a results folder, with the images of the validation split to look at its end."""

    folder: ResultsFolder
    shots: int | None
    limit: int

    def open(self, method: str, recipe: dict[str, Any]) -> Resources:
        smaller = {"pairs" if method == "cleanclip" else "shots": self.shots} if self.shots else {}
        changed = {"evaluate": {"split": "val", "limit": self.limit}, method: recipe | smaller}
        changed["zero_shot"] = {"perturbations": []}
        return Resources(overlay(self.folder.settings, changed), self.folder.out / "data", "cpu")

    def fit(self, resources: Resources, cell: Cell, method: str, kind: str, number: int) -> tuple[Victim, Steps]:
        clip = self.folder.store.clip(cell.backdoor or "")
        if kind == "nudge":
            clip = clip.nudged(number)
        data = CleanData(
            resources.train, resources.tuned.templates, cell.seed, resources.tuned_target, resources.clean_pairs
        )
        steps = Steps()
        parts = in_parts(number) if kind == "split" else in_parts(10**9)
        with parts, on_threads(number if kind == "threads" else 1), steps.watching():
            victim = resources.run.defense(method, cell.attack).fit(Victim(clip), data)
        return victim, steps

    def end(self, resources: Resources, cell: Cell, victim: Victim) -> tuple[dict[str, float], Tensor]:
        """ASR and CA, in percent, and the embeddings of the triggered images."""
        trigger, method = self.folder.trigger(cell), resources.attack(cell.attack)
        case = resources.case(method, trigger, cell.seed, {})
        (seen,) = resources.run.task("zero_shot").observe([victim], case)
        if isinstance(seen, bench.BenchError):
            raise seen
        values = {name: metrics[name].measure(seen)[""] for name in ("ASR", "CA")}
        index = torch.arange(min(200, len(case.images)))
        with torch.no_grad():
            embedded = victim.encode(bench.stamp(method, trigger, case.images.load(index), index)).embedding
        return {name: e.value for name, e in values.items()} | {"n": values["ASR"].n}, embedded


def main() -> None:
    asked = arguments()
    folder, growth, ends = ResultsFolder(asked.results), asked.out / "growth.csv", asked.out / "ends.csv"
    workbench = Bench(folder, asked.shots, asked.limit)
    cells = [
        cell
        for cell in folder.cells
        if cell.defense == "none"
        and cell.attack in asked.attacks.split(",")
        and str(cell.seed) in asked.seeds.split(",")
    ]
    for method in asked.methods.split(","):
        for recipe, settings in RECIPES[method].items():
            if asked.recipes and recipe not in asked.recipes.split(","):
                continue
            resources = workbench.open(method, settings)
            for cell in cells:
                repeat(workbench, resources, cell, method, recipe, ROUNDINGS[: asked.reruns + 1], growth, ends)
                summary(growth, ends, asked.out)


def repeat(
    workbench: Bench,
    resources: Resources,
    cell: Cell,
    method: str,
    recipe: str,
    asked: Sequence[tuple[str, int]],
    growth: Path,
    ends: Path,
) -> None:
    """All reruns of one fit that are not in the tables yet, against the reference."""
    place = {"method": method, "recipe": recipe, "attack": cell.attack, "seed": cell.seed}
    # The loss of a contrastive batch cannot be taken apart.
    roundings = [r for r in asked if r[0] != "split" or method != "cleanclip"]
    done = known(ends, KEY)
    if all((*place.values(), *r) in done for r in roundings):
        return
    reference, first = workbench.fit(resources, cell, method, "none", 0)
    numbers, embedded = workbench.end(resources, cell, reference)
    if (*place.values(), "none", 0) not in done:
        append(ends, pd.DataFrame([place | {"rounding": "none", "number": 0} | numbers | {"apart": 0.0}]))
    start = next(iter(first.taken.values()))
    for kind, number in roundings[1:]:
        if (*place.values(), kind, number) in done:
            continue
        victim, steps = workbench.fit(resources, cell, method, kind, number)
        numbers, other = workbench.end(resources, cell, victim)
        which = place | {"rounding": kind, "number": number}
        moved = [
            which | {"step": step, "distance": ((steps.taken[step] - at).norm() / (at - start).norm()).item()}
            for step, at in first.taken.items()
            if step > 1
        ]
        apart = 1 - torch.nn.functional.cosine_similarity(embedded, other, dim=-1).mean().item()
        append(growth, pd.DataFrame(moved))
        append(ends, pd.DataFrame([which | numbers | {"apart": apart}]))
        print(which, numbers, f"apart {apart:.2g}, at the end {moved[-1]['distance']:.2g}", flush=True)


def summary(growth: Path, ends: Path, out: Path) -> None:
    """A row a method and recipe: how far reruns and seeds differ, and how fast a difference grows."""
    if not growth.is_file():
        return
    table, grown, rows = pd.read_csv(ends), pd.read_csv(growth), []
    table["angle"] = [angle(value * n / 100, n) for value, n in zip(table["ASR"], table["n"], strict=True)]
    for (method, recipe), part in table.groupby(["method", "recipe"], sort=False):
        within = part.groupby(["attack", "seed"])
        reruns = np.sqrt((within["ASR"].var(ddof=1)).mean())
        seeds = np.sqrt(within["ASR"].mean().groupby("attack").var(ddof=1).mean())
        curve = grown[(grown["method"] == method) & (grown["recipe"] == recipe) & (grown["distance"] > 0)]
        median = curve.groupby("step")["distance"].median()
        rows.append(
            {
                "method": method,
                "recipe": recipe,
                "fits": len(part),
                "ASR": part["ASR"].mean(),
                "CA": part["CA"].mean(),
                "sd of ASR, reruns": reruns,
                "sd of angle, reruns": np.sqrt(within["angle"].var(ddof=1).mean()),
                "sd of ASR, seeds": seeds,
                "embeddings apart": part.loc[part["rounding"] != "none", "apart"].mean(),
                "steps per factor 10": _tenfold(median),
                "distance at the end": median.iloc[-1] if len(median) else np.nan,
            }
        )
    frame = pd.DataFrame(rows)
    frame.to_csv(out / "summary.csv", index=False)
    (out / "summary.md").write_text(frame.to_markdown(index=False, floatfmt=".3g") + "\n")
    _draw(grown, out / "growth.png")


def _tenfold(median: pd.Series) -> float:
    """Of a curve that grows before it saturates: the steps in which it grows tenfold, from its part below 0.1."""
    early = median[median < 0.1]
    if len(early) < 3:
        return np.nan
    slope = np.polyfit(early.index, np.log10(early), 1)[0]
    return float(1 / slope) if slope > 0 else np.inf


def _draw(grown: pd.DataFrame, file: Path) -> None:
    methods = list(grown["method"].unique())
    figure, axes = plt.subplots(1, len(methods), figsize=(4.5 * len(methods), 3.6), squeeze=False, sharey=True)
    for axis, method in zip(axes[0], methods, strict=True):
        for recipe, part in grown[grown["method"] == method].groupby("recipe", sort=False):
            axis.plot(part.groupby("step")["distance"].median(), label=recipe, marker=".", markersize=3)
        axis.set(yscale="log", xlabel="step", title=method)
        axis.legend(fontsize=7)
    axes[0][0].set_ylabel("distance of two runs / from the start")
    figure.tight_layout()
    figure.savefig(file, dpi=150)
    plt.close(figure)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="a results folder with undefended cells")
    parser.add_argument("--out", type=Path, default=Path("rounding"))
    parser.add_argument("--methods", default="rvpt,vpt,cleanclip")
    parser.add_argument("--recipes", default="", help="by comma; default: all")
    parser.add_argument("--attacks", default="badnet")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--reruns", type=int, default=len(ROUNDINGS) - 1, help="of each fit")
    parser.add_argument("--shots", type=int, help="fewer images a class (pairs of CleanCLIP), for a first look")
    parser.add_argument("--limit", type=int, default=600, help="validation images")
    return parser.parse_args()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
