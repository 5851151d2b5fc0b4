"""bench from Python: run a matrix, open a results folder, evaluate one model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from bench.checkpoints.auditing import audit_subject, calibration_for
from bench.checkpoints.subject import open_subject
from bench.core.attack import Attack, Trigger
from bench.core.clip import Clip
from bench.core.errors import BenchError
from bench.core.images import Labelled
from bench.core.metric import metrics
from bench.core.randomness import derive
from bench.core.registry import load_plugins
from bench.core.shared_encoding import unified
from bench.core.victim import Victim
from bench.detection.audit import Audit
from bench.detection.calibration import effort_of
from bench.detection.triggers import FAMILIES
from bench.experiment.resources import Resources, open_device
from bench.experiment.settings import resolve
from bench.experiment.suites import suite_settings, variants_of
from bench.matrix.runner import run_matrix
from bench.matrix.stages.trigger import fresh_seed
from bench.results.folder import ResultsFolder
from reports.report import write_report

Names = str | Sequence[str]


def run(
    attacks: Names | None = None,
    defenses: Names | None = None,
    *,
    tasks: Names | None = None,
    seeds: Sequence[int] | None = None,
    preset: str = "mini",
    paper: str | None = None,
    recipe: str | None = None,
    suite: str | None = None,
    out: Path | str = "results",
    plugins: Sequence[Path | str] = (),
    quiet: bool = False,
    **settings: Any,
) -> ResultsFolder:
    """Run attacks against defenses, as `bench run` does, and write the tables; finished work in `out` is reused.

    Args:
        attacks, defenses, tasks: names, or "all"; None takes the preset's. Chains of defenses are written "a+b".
        seeds: one backdoored model per attack and seed.
        preset, recipe, suite: as `bench list presets`, `bench list recipes` and `bench list suites` name them.
        paper: a version of the preset's paper, such as "v3".
        out: the results folder.
        plugins: Python files that register methods.
        quiet: print nothing.
        settings: any other settings, as in a YAML file: `rvpt={"alpha": 3}`, `target="key"`. By default the run uses
            this process only. With `execution={"workers": 2}`, each worker process imports the calling script again,
            so the call must stand below `if __name__ == "__main__":`.

    Raises:
        BenchError: a setting cannot be used, or some artefacts failed; `bench.open(out)` then has the finished cells.

    >>> folder = run("badnet", ["none", "rvpt"], preset="smoke")  # doctest: +SKIP
    >>> folder.table()  # doctest: +SKIP
    """
    files = tuple(Path(file) for file in plugins)
    load_plugins(files)
    lists = {"attacks": _names(attacks), "defenses": _names(defenses), "tasks": _names(tasks), "seeds": seeds}
    flags = {name: value for name, value in lists.items() if value is not None} | settings
    flags["execution"] = {"workers": 1} | flags.get("execution", {})
    base = resolve(preset, None, flags, paper=paper, suite=suite_settings(suite), recipe=recipe)
    variants, left_out = variants_of(base, suite)
    console = Console(quiet=quiet, markup=False, highlight=False)
    for name, reason in left_out.items():
        console.print(f"left out: {name}, because {reason}")
    ended = run_matrix(variants, Path(out), files, console)
    if ended.shown:
        write_report(ResultsFolder(out))
    if ended.failures:
        reasons = "; ".join(f"{label}: {reason}" for label, reason in ended.failures.items())
        raise BenchError(f"{len(ended.failures)} artefacts failed, and the same call tries them again. {reasons}")
    if not ended.shown:
        raise BenchError("no cell of this run can be measured; the same run with `bench run --dry-run` says why")
    return ResultsFolder(out)


def open(out: Path | str = "results", device: str = "cpu") -> ResultsFolder:
    """Open a results folder: `.table()`, `.results`, `.cells`, `.victim(cell)`, `.trigger(cell)`, `.lineage(cell)`.

    Models are loaded onto `device`.

    Raises:
        BenchError: the folder holds no run.
    """
    return ResultsFolder(out, device)


def evaluate(
    model: Victim | Clip | Path | str | None = None,
    attack: str = "badnet",
    *,
    trigger: Trigger | None = None,
    task: str = "zero_shot",
    seed: int = 0,
    preset: str = "mini",
    paper: str | None = None,
    recipe: str | None = None,
    cache: Path | str = "results/data",
    **settings: Any,
) -> pd.DataFrame:
    """The metrics of one model under one attack, like one cell of a matrix. No model is trained.

    Args:
        model: a victim, a CLIP, or a file of weights of the preset's architecture; None is the preset's clean model.
        attack: the attack whose trigger is put on the images; its settings may be among `settings`.
        trigger: the trigger in its test form, such as `folder.trigger(cell)`; None: the attack prepares one on the
            clean model, as it does for training with this seed.
        task: what is measured.
        seed: the seed of the trigger and of all other randomness.
        preset, paper, recipe: as for `run`.
        cache: the folder for decoded images.
        settings: any other settings, as for `run`.

    Returns:
        A row per (metric, perturbation) with columns `metric`, `perturbation`, `value`, `count`, `n`, `low`, `high`.
        Shares are in percent; [`low`, `high`] is the 95 % interval.

    Raises:
        BenchError: a setting cannot be used, the model does not fit, or its logits are not finite.
    """
    load_plugins()
    asked = {"attacks": (attack,), "tasks": (task,)} | settings
    run = resolve(preset, None, asked, paper=paper, recipe=recipe)
    resources = Resources(run, Path(cache), open_device(run.execution.device))
    method = resources.attack(attack)
    if trigger is None:
        trigger = _prepared(method, resources, seed, derive(seed, "training")).at_test()
    task_settings = run.task(task)
    fresh = {}
    for name in task_settings.fresh_triggers():
        own_seed = fresh_seed(name, seed)
        fresh[name] = (resources.attack(name), _prepared(resources.attack(name), resources, own_seed, own_seed))
    victims = unified([_victim(model, resources)])
    [observed] = task_settings.observe(victims, resources.case(method, trigger, seed, fresh))
    if isinstance(observed, BenchError):
        raise observed
    rows = [
        {"metric": name, "perturbation": perturbation} | vars(estimate)
        for name in metrics
        if metrics[name].task == task
        for perturbation, estimate in metrics[name].measure(observed).items()
    ]
    return pd.DataFrame(rows)


def audit(
    model: Victim | Clip | Path | str,
    images: Labelled | Path | str | None = None,
    classes: Sequence[str] | None = None,
    *,
    reference: Clip | str | None = None,
    architecture: str = "mini",
    families: Sequence[str] = tuple(FAMILIES),
    budget: str = "standard",
    calibration: Path | str | None = None,
    seed: int = 0,
    cache: Path | str = "results/data",
    device: str = "cpu",
) -> Audit:
    """Look for a backdoor in one model, as `bench audit` does; nothing is written but decoded images.

    Args:
        model: a victim, a CLIP, a file of weights of `architecture`, or a folder of open_clip's.
        images: images of the model's input size, or a folder; None is the embedded world, for its model. Labels are
            not looked at.
        classes: names among which the target is looked for; None is those of `images`, the world's or ImageNet's.
        reference: what it was fine-tuned from: a CLIP, `mini`, a tag of open_clip's, a file or a folder of weights.
        families, budget, calibration: as the options of `bench audit`.

    Raises:
        BenchError: something cannot be found, read or used.

    >>> audit("suspect.safetensors", reference="mini").sentence  # doctest: +SKIP
    """
    load_plugins()
    effort = effort_of(budget)
    checkpoint = Path(model) if isinstance(model, str) else model
    folder = Path(images) if isinstance(images, str) else images
    subject = open_subject(checkpoint, architecture, reference, folder, classes, Path(cache), open_device(device))
    known = calibration_for(subject, effort, None if calibration is None else Path(calibration), families)
    return audit_subject(subject, families, effort, known, seed)


def _prepared(method: Attack, resources: Resources, seed: int, trigger_seed: int) -> Trigger:
    """The trigger that an attack prepares on the clean model."""
    return Trigger(trigger_seed, method.prepare(resources.preparation(method, seed)))


def _victim(model: Victim | Clip | Path | str | None, resources: Resources) -> Victim:
    if isinstance(model, Victim):
        return model
    if isinstance(model, Clip):
        return Victim(model)
    return Victim(resources.clip if model is None else resources.open_backdoored(Path(model)))


def _names(names: Names | None) -> tuple[str, ...] | None:
    return (names,) if isinstance(names, str) else tuple(names) if names is not None else None
