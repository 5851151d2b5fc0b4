"""Calibration of audits: a zoo of honest fine-tunings of a reference, each audited, in a results folder.

The zoo is a run of the matrix with the attack `benign`, a variant a model, so that it is interrupted, continued and
spread over processes as any run.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import bench
from bench.core import code_state
from bench.core.encoder import has_transformer_tower
from bench.core.errors import BenchError
from bench.core.images import hash_of
from bench.detection.calibration import Audited, Calibration, Effort, architecture
from bench.experiment.resources import Resources, open_device
from bench.experiment.settings import BASE, RunSettings, Variants, overlay
from bench.matrix.runner import prepare, run_matrix
from bench.results.folder import ResultsFolder
from bench.results.store import CACHE
from metrics.detection import CONTROL
from metrics.success import TOOK

# What honest data sets are like (`bench show benign`). The embedded world has loose captions of its own.
LOOSE = "loose"
MIXES = ("plain", "patches", "templates", "imbalance", LOOSE)
LIES = 0.8
# Factors of the recipe's learning rate, and epochs: all pairs of them before one comes again. Every second model is
# fine-tuned on half of the recipe's pairs.
RATES, EPOCHS = (1.0, 0.3, 1.7, 0.1), (2, 1, 3, 5)


def calibrate(
    run: RunSettings,
    effort: Effort,
    work: Path,
    negatives: int,
    attacks: Sequence[str] = (),
    targets: Sequence[str] = (),
    seeds: int = 1,
    known: Sequence[Audited] = (),
    command: str = "",
    console: Console | None = None,
) -> Calibration:
    """Make and audit the zoo in the folder `work`, as far as it is not there; returns the calibration.

    Args:
        run: the model, data and recipe of poisoning: clean models are fine-tuned with it, on pairs of its data.
        negatives: how many clean fine-tunings.
        attacks: backdoored models to audit beside, for error rates: of each, one for every target class and each of
            `seeds` seeds. Without `targets`, the run's own target.
        known: models of an earlier calibration; those that would be made just so are taken from it.

    Raises:
        BenchError: some of it failed; the same call goes on with what is finished.
    """
    console = console or Console(quiet=True)
    if negatives < 1:
        raise BenchError(f"--negatives {negatives}: give 1 or more; p can be no smaller than 1 / (negatives + 1)")
    clip = Resources(run, work / CACHE, open_device(run.execution.device)).clip
    audited = _audited(run, effort, has_transformer_tower(clip))
    clean = {f"{CONTROL} {i:03d}": negative(audited, i) for i in range(negatives)}
    backdoored = {
        f"{attack} {target} {seed}": overlay(audited, {"attacks": [attack], "target": target, "seeds": [seed]})
        for attack, target, seed in product(attacks, targets or [run.target], range(seeds))
    }
    models = _models(clean | backdoored, work, known, console)
    return Calibration(
        model=run.model.label,
        architecture=architecture(clip),
        reference=clip.fingerprint(),
        effort=effort,
        negatives=tuple(one for one in models if one.attack == CONTROL),
        positives=tuple(one for one in models if one.attack != CONTROL),
        command=command,
        commit=code_state.commit(),
        versions={"bench": bench.__version__, "torch": torch.__version__},
    )


def negative(run: RunSettings, i: int) -> RunSettings:
    """The settings of the i-th honest fine-tuning: its mix, learning rate, epochs, pairs and seed."""
    step, kind = divmod(i, len(MIXES))
    mix, rate = MIXES[kind], RATES[(kind + step) % len(RATES)]
    epochs = EPOCHS[(kind + step // len(RATES)) % len(EPOCHS)]
    recipe = {
        "learning_rate": rate * run.poison.learning_rate,
        "epochs": epochs,
        "pairs": run.poison.pairs // (1 + i % 2),
    }
    values: dict[str, Any] = {"poison": recipe}
    if mix == LOOSE and run.embedded:
        values[run.dataset] = {"loose": {run.target: LIES}}
    else:
        values["benign"] = {"mix": mix}
    return _variant(run, i, values)


def _variant(run: RunSettings, seed: int, values: dict[str, Any]) -> RunSettings:
    return overlay(run, {"attacks": [CONTROL], "seeds": [seed]} | values)


def _audited(run: RunSettings, effort: Effort, weights: bool) -> RunSettings:
    """The run with the audits of an effort as its tasks, on the validation split; `weights`: of the weights, too."""
    looking = effort.search
    settings = {
        "steps": looking.steps,
        "batch_size": looking.batch_size,
        "restarts": looking.restarts,
        "images": effort.images + effort.scored,
        "made_on": effort.images,
    }
    tasks = ["collapse", "weights"] if weights else ["collapse"]
    values: dict[str, Any] = {"attacks": [CONTROL], "defenses": ["none"], "tasks": tasks}
    return overlay(run, values | {"evaluate": {"split": "val"}, "collapse": settings})


def _models(variants: dict[str, RunSettings], work: Path, known: Sequence[Audited], console: Console) -> list[Audited]:
    """Make and audit the variants that are not known."""
    ids, by_id = _ids(variants, work), {one.id: one for one in known}
    missing = {name: run for name, run in variants.items() if ids[name] not in by_id}
    if there := len(variants) - len(missing):
        console.print(f"{there} of {len(variants)} models are in the file already")
    if missing:
        ended = run_matrix(_with_base(missing), work, (), console)
        if ended.failures:
            reasons = "; ".join(dict.fromkeys(ended.failures.values()))
            raise BenchError(
                f"{len(ended.failures)} artefacts of {work} failed, and the same command goes on. {reasons}"
            )
        folder = ResultsFolder(work)
        for (name, run), settings in zip(missing.items(), _with_base(missing), strict=True):
            by_id[ids[name]] = _read(folder, name, ids[name], settings, run)
    return [by_id[ids[name]].model_copy(update={"name": name}) for name in variants]


def _ids(variants: dict[str, RunSettings], work: Path) -> dict[str, str]:
    """A hash of each variant's audits."""
    _, plan, _ = prepare(_with_base(variants), work)
    nodes: dict[str, list[str]] = {}
    for cell in plan.cells:
        nodes.setdefault(cell.variant, []).append(str(cell.node))
    return {
        name: hash_of(sorted(nodes[settings])) for name, settings in zip(variants, _with_base(variants), strict=True)
    }


def _with_base(variants: dict[str, RunSettings]) -> Variants:
    """The variants of a run; the first one is its base."""
    first, *others = variants
    return {BASE: variants[first]} | {name: variants[name] for name in others}


def _read(folder: ResultsFolder, name: str, id: str, settings: str, run: RunSettings) -> Audited:
    """What the audits of one model found; `settings` is the name of its variant."""
    cells = [cell for cell in folder.own_cells if cell.settings == settings]
    seen = {cell.task: folder.observations(cell) for cell in cells}
    facts, attack = seen["collapse"].facts, cells[0].attack
    hits, misses = facts["success"]
    named = {task: bool(of["findings"]["named"].item() == of.facts["target"]) for task, of in seen.items()}
    mix = run.method("benign").get("mix", "plain") if not run.method(run.dataset).get("loose") else LOOSE
    recipe = f"learning rate {run.poison.learning_rate:g}, {run.poison.epochs} epochs of {run.poison.pairs} pairs"
    backdoored = attack != CONTROL
    return Audited(
        name=name,
        id=id,
        mix="" if backdoored else f"{mix}, {recipe}",
        attack=attack,
        success=100 * hits / (hits + misses) if backdoored else None,
        named=named["collapse"] if backdoored else None,
        named_by_weights=named.get("weights") if backdoored else None,
        scores=facts["details"],
        **(seen["weights"].facts["details"] if "weights" in seen else {}),
    )


def took(models: Sequence[Audited]) -> list[Audited]:
    """The backdoored models whose backdoor works."""
    return [one for one in models if one.success is not None and one.success >= TOOK]
