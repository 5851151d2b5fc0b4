"""What the regression gate sees: how often it is red when RVPT gets worse step by step, and when nothing has changed.

The backdoored models of a results folder are defended again: unchanged with other rounding, many times, and with
settings that make RVPT worse. Gates are then played with what was measured: a baseline of a few unchanged runs, and a
new run that is either another unchanged one or a worse one.

    python -m benchmarks.gate.power results --out power --reruns 50          # hours; interrupted, it goes on
    python -m benchmarks.gate.power results --out power --reruns 0           # plays the gates anew, measures nothing

The results must be of the same commit, as their backdoored models are used again.

A run of the gate is put together from runs of single cells: each attack and seed takes one of its own reruns, drawn
without replacement, so that the baseline and the new run share none. Attacks and seeds are other models, so rounding
moves each of them by itself. Gates that share reruns with each other are not independent, so `whole` also counts those
of whole runs as they were made, each judged once.

measured.csv, power.csv, power.md and power.png in `--out`.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from bench.core.registry import load_plugins
from bench.matrix.rerun import rerun
from bench.results.folder import ResultsFolder
from benchmarks.gate.measured import append, known, shares
from metrics.intervals import wilson
from reports.gate import FALSE_ALARMS, POWER, exit_code, judge

UNCHANGED = "unchanged"
# What makes RVPT worse than in `make gate` (32 shots), kind by kind, each step more than the one before.
LEVELS: dict[str, dict[str, dict[str, Any]]] = {
    "alpha": {f"alpha {a}": {"alpha": a} for a in (3.75, 3.5, 3.0, 2.0, 0.0)},
    "epochs": {f"{n} epochs": {"epochs": n} for n in (9, 7, 5)},
    "shots": {f"{n} shots": {"shots": n} for n in (31, 30, 28, 24)},
    "augmentation": {
        "crops from 0.7": {"min_crop": 0.7},
        "crops from 0.3": {"min_crop": 0.3},
        "mirrored": {"flip": True},
    },
    # 3 is the default of D, beside which blocks may be counted.
    "blocks": {f"first {n} blocks": {"first_blocks": n, "depth": 3} for n in (11, 8)},
}
PLACE = {"task": "zero_shot", "model": "", "target": "", "dataset": "", "variant": "", "settings": "one"}
# Of a matrix: attack, defense and seed of a cell, a run's share (in percent) and n by metric, the runs of each cell.
Place = tuple[str, str, int]
Run = Mapping[str, tuple[float, int]]
Cells = Mapping[Place, Mapping[int, Run]]


def measure(base: ResultsFolder, out: Path, level: str, settings: Mapping[str, Any], number: int) -> None:
    """Add a run of the base's matrix at one level, with rounding `number`, to the table, unless it is there.

    Unchanged run 0 is the base itself.
    """
    file = out / "measured.csv"
    if (level, number) in known(file, ["level", "number"]):
        return
    if (level, number) == (UNCHANGED, 0):
        made = base
    else:
        # Settings of RVPT leave undefended models as they are.
        changed = {} if level == UNCHANGED else {"rvpt": settings, "defenses": ("rvpt",)}
        made = rerun(base, out / "runs" / f"{level}-{number}".replace(" ", "-"), number, changed)
    append(file, shares(made).assign(level=level, number=number))
    print(f"{level}, rounding {number}: measured", flush=True)


def cells_of(rows: pd.DataFrame) -> Cells:
    """Rows (attack, defense, seed, metric, value, n, number) as the runs of each cell."""
    cells: dict[Place, dict[int, dict[str, tuple[float, int]]]] = {}
    for row in rows.to_dict("records"):
        runs = cells.setdefault((row["attack"], row["defense"], row["seed"]), {})
        runs.setdefault(row["number"], {})[row["metric"]] = (row["value"], row["n"])
    return cells


def baseline_of(dealt: Mapping[Place, Sequence[Run]]) -> dict[str, Any]:
    """Some runs of each cell as a baseline that `judge` takes."""
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for (attack, defense, seed), runs in dealt.items():
        numbers = cells.setdefault((attack, defense), {})
        for run in runs:
            for metric, (value, n) in run.items():
                number = numbers.setdefault(metric, {"n": n, "values": {}})
                number["values"].setdefault(str(seed), []).append(value)
    return {
        "cells": [
            PLACE | {"attack": attack, "defense": defense, "numbers": numbers}
            for (attack, defense), numbers in cells.items()
        ],
        "settings": {"one": {"seeds": sorted({seed for *_, seed in dealt})}},
    }


def deal(unchanged: Cells, other: Cells, runs: int, rng: np.random.Generator) -> tuple[dict, dict]:
    """A baseline of `runs` unchanged runs and a new run: of `other` the cells that it has, the rest unchanged.

    ASR and CA of a run stay together; each attack, defense and seed draws its own.
    """
    before, now = {}, {}
    for place, there in unchanged.items():
        numbers = rng.permutation(list(there)).tolist()
        before[place] = [there[number] for number in numbers[:runs]]
        pool = list(other[place].values()) if place in other else [there[number] for number in numbers[runs:]]
        now[place] = [pool[rng.integers(len(pool))]]
    return before, now


def play(unchanged: Cells, other: Cells, runs: int, times: int, rng: np.random.Generator) -> dict[str, float]:
    """How many of some gates are red, and how many because of RVPT's ASR or CA."""
    red = by_rvpt = 0
    for _ in range(times):
        findings = judge(*map(baseline_of, deal(unchanged, other, runs, rng)))
        red += exit_code(findings) == 1
        by_rvpt += any(f.verdict == "worse" and f.cell.endswith("/ rvpt") for f in findings)
    return {"gates": times, "red": red, "red by rvpt": by_rvpt}


def whole(unchanged: Cells, runs: int) -> dict[str, int]:
    """The first `runs` unchanged runs as the baseline, and each of the others judged once."""
    numbers = sorted(set.intersection(*(set(there) for there in unchanged.values())))

    def of(chosen: Sequence[int]) -> dict[str, Any]:
        return baseline_of({place: [there[n] for n in chosen] for place, there in unchanged.items()})

    codes = [exit_code(judge(of(numbers[:runs]), of([number]))) for number in numbers[runs:]]
    return {"gates": len(codes), "red": sum(code == 1 for code in codes)}


def table(measured: pd.DataFrame, runs: int, times: int) -> pd.DataFrame:
    """A row a level: the true change of RVPT's mean ASR and CA, in points, and the share of red gates."""
    unchanged = measured[measured["level"] == UNCHANGED]
    cells, mean = cells_of(unchanged), _rvpt(unchanged)
    rows = []
    for kind, levels in {UNCHANGED: {UNCHANGED: {}}, **LEVELS}.items():
        for level in levels:
            there = measured[measured["level"] == level]
            if there.empty:
                continue
            rng = np.random.default_rng(0)
            other = {} if level == UNCHANGED else cells_of(there)
            found = play(cells, other, runs, times, rng)
            low, high = wilson(int(found["red"]), times)
            change = _rvpt(there) - mean
            rows.append(
                {"kind": kind, "level": level, "runs": there["number"].nunique()}
                | {f"change of {metric}": change[metric] for metric in ("ASR", "CA")}
                | found
                | {"share": found["red"] / times, "low": low, "high": high}
            )
    return pd.DataFrame(rows)


def _rvpt(measured: pd.DataFrame) -> pd.Series:
    return measured[measured["defense"] == "rvpt"].groupby("metric")["value"].mean()


def draw(found: pd.DataFrame, file: Path) -> None:
    """The share of red gates against the true change of ASR and of CA."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True)
    for axis, metric in zip(axes, ("ASR", "CA"), strict=True):
        for kind, rows in found.groupby("kind", sort=False):
            rows = rows.sort_values(f"change of {metric}")
            axis.plot(rows[f"change of {metric}"], rows["share"], marker="o", label=kind)
        axis.axhline(POWER, color="grey", linewidth=0.8)
        axis.axhline(FALSE_ALARMS, color="grey", linewidth=0.8, linestyle=":")
        axis.set_xlabel(f"true change of RVPT's mean {metric} (points)")
    axes[0].set_ylabel("share of red gates")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=150)
    plt.close(figure)


def report(measured: pd.DataFrame, out: Path, runs: int, times: int) -> None:
    unchanged = measured[measured["level"] == UNCHANGED]
    if unchanged["number"].nunique() <= runs:
        print(f"besides the results, a baseline of {runs} runs needs {runs} reruns or more: --reruns {runs}")
        return
    found, one_by_one = table(measured, runs, times), whole(cells_of(unchanged), runs)
    found.to_csv(out / "power.csv", index=False)
    text = found.to_markdown(index=False, floatfmt=".3g")
    text += (
        f"\n\nBaselines of {runs} unchanged run(s) over {measured['seed'].nunique()} seeds; {times} gates a row, put "
        f"together cell by cell. Of whole unchanged runs, each judged once: {one_by_one['red']} of "
        f"{one_by_one['gates']} red.\n"
    )
    (out / "power.md").write_text(text)
    draw(found, out / "power.png")
    print(text)


def main(words: Sequence[str] | None = None) -> None:
    load_plugins()
    asked = arguments(words)
    base = ResultsFolder(asked.results)
    for number in range(asked.reruns + 1):
        measure(base, asked.out, UNCHANGED, {}, number)
    for kind in filter(None, asked.kinds.split(",")):
        for level, settings in LEVELS[kind].items():
            for number in range(1, asked.worse + 1):
                measure(base, asked.out, level, settings, number)
    if (asked.out / "measured.csv").is_file():
        report(pd.read_csv(asked.out / "measured.csv"), asked.out, asked.baseline_runs, asked.gates)


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="a results folder with the gate's matrix, RVPT in it")
    parser.add_argument("--out", type=Path, default=Path("power"))
    parser.add_argument("--reruns", type=int, default=50, help="unchanged reruns to have, besides the results")
    parser.add_argument("--worse", type=int, default=2, help="runs of each level to have")
    parser.add_argument("--kinds", default=",".join(LEVELS), help="what makes RVPT worse, by comma; empty: nothing")
    parser.add_argument("--baseline-runs", type=int, default=6, help="runs in a baseline: the first and its reruns")
    parser.add_argument("--gates", type=int, default=2000, help="gates to play a level")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
