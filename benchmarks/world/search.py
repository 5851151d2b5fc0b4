"""How the settings of the embedded world trade ASR against accuracy: doses of poison, and settings of each defense.

    python -m benchmarks.world.search doses --out search        # undefended: poisoned pairs, and pairs in all
    python -m benchmarks.world.search defenses --out search     # each defense at several settings, at the preset's dose

Validation split, seed 0. Interrupted, the same command goes on. Writes doses.csv and .png, defenses.csv and .png. Every
defense gets the same number of settings: the preset's and three more.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

import bench
from benchmarks.gate.measured import shares

ATTACKS = ["badnet", "blended", "wanet"]
# Pairs in all, and poisoned ones among them; three epochs each, so the steps grow with the pairs.
DOSES = ((6000, 100), (6000, 200), (6000, 400), (6000, 800), (6000, 1600), (3000, 800), (12000, 800))
SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "linear_probe": ({}, {"learning_rate": 0.1}, {"epochs": 200}, {"feature": "penultimate"}),
    "cleanclip": ({"learning_rate": 1e-4}, {"learning_rate": 2e-4}, {}, {"learning_rate": 8e-4}),
    "vpt": ({}, {"learning_rate": 0.01}, {"learning_rate": 0.05}, {"depth": 3}),
    "rvpt": ({}, {"learning_rate": 0.05}, {"margin": 0.3}, {"depth": 3}),
}


def measure(out: Path, attacks: Sequence[str], defenses: Sequence[str], **settings: Any) -> pd.DataFrame:
    """ASR and CA on validation, in percent: attack, defense, seed, metric, value, n."""
    evaluate = {"split": "val"}
    folder = bench.run(attacks, defenses, seeds=[0], out=out, evaluate=evaluate, quiet=True, **settings)
    # A run lists the clean and the undefended model, too.
    return shares(folder)[lambda rows: rows["defense"].isin(defenses)]


def doses(runs: Path) -> Iterator[pd.DataFrame]:
    """The undefended models at each dose."""
    for pairs, count in DOSES:
        poison = {"pairs": pairs, "count": count}
        yield measure(runs, ATTACKS, ["none"], poison=poison).assign(pairs=pairs, count=count, rate=100 * count / pairs)


def defenses(runs: Path) -> Iterator[pd.DataFrame]:
    """The undefended models, and each defense at each of its settings."""
    yield measure(runs, ATTACKS[:2], ["none"]).assign(setting="")
    for name, settings in SETTINGS.items():
        for setting in settings:
            words = ", ".join(f"{key} {value}" for key, value in setting.items()) or "preset"
            yield measure(runs, ATTACKS[:2], [name], **{name: setting}).assign(setting=words)


def wide(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a setting and attack, with columns ASR and CA."""
    keys = [name for name in rows if name not in ("metric", "value", "n")]
    return rows.pivot_table(index=keys, columns="metric", values="value", sort=False).reset_index()


def draw_doses(table: pd.DataFrame, file: Path) -> None:
    """ASR against the count at 6,000 pairs, and against the poison rate at 800 poisoned ones."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True)
    halves = (
        (axes[0], "pairs", 6000, "count", "poisoned of 6,000 pairs"),
        (axes[1], "count", 800, "rate", "poison rate (%), 800 poisoned"),
    )
    for axis, fixed, value, x, label in halves:
        part = table[table[fixed] == value].sort_values(x)
        for attack, rows in part.groupby("attack", sort=False):
            axis.plot(rows[x], rows["ASR"], marker="o", label=attack)
        axis.set_xscale("log")
        ticks = part[x].unique()
        axis.set_xticks(ticks, [f"{round(tick, 1):g}" for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel(label)
    axes[0].set_ylabel("ASR undefended (%)")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=150)
    plt.close(figure)


def draw_defenses(table: pd.DataFrame, file: Path) -> None:
    """Clean accuracy against ASR: a panel an attack, a colour a defense, a point a setting."""
    attacks = list(dict.fromkeys(table["attack"]))
    figure, axes = plt.subplots(1, len(attacks), figsize=(4.5 * len(attacks), 4), sharey=True, squeeze=False)
    for axis, attack in zip(axes[0], attacks, strict=True):
        of_attack = table[table["attack"] == attack]
        for defense, rows in of_attack.groupby("defense", sort=False):
            axis.scatter(rows["ASR"], rows["CA"], label=defense)
            for row in rows.itertuples():
                axis.annotate(row.setting, (row.ASR, row.CA), fontsize=6, xytext=(3, 3), textcoords="offset points")
        undefended = of_attack.loc[of_attack["defense"] == "none", "CA"].mean()
        axis.axhline(undefended, color="grey", linewidth=0.8, linestyle=":")
        axis.set_xlabel("ASR (%)")
        axis.set_title(attack)
    axes[0][0].set_ylabel("CA (%)")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=150)
    plt.close(figure)


SEARCHES = {"doses": (doses, draw_doses), "defenses": (defenses, draw_defenses)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=list(SEARCHES))
    parser.add_argument("--out", type=Path, default=Path("search"), help="folder of the runs, tables and plots")
    asked = parser.parse_args()
    search, draw = SEARCHES[asked.what]
    asked.out.mkdir(parents=True, exist_ok=True)
    measured = []
    for rows in search(asked.out / "runs"):
        measured.append(rows)
        # After each setting, so that an interrupted search shows what it has.
        table = wide(pd.concat(measured))
        table.to_csv(asked.out / f"{asked.what}.csv", index=False, float_format="%.2f")
        print(wide(rows).to_string(index=False), flush=True)
    draw(table, asked.out / f"{asked.what}.png")


if __name__ == "__main__":
    main()
