"""The command that reproduces a results folder."""

import json
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from bench.core.names import CLEAN_MODEL
from bench.experiment.settings import BASE, Experiment, RunSettings, overlay, presets, resolve
from bench.papers import suites
from bench.results.records import Cell, Run


def command_of(run: Run, cells: Sequence[Cell]) -> str:
    """The `bench run` command for these cells of a run, or several commands joined by `&&`, one per suite.

    It names the nearest preset and the settings that differ from it; those of the execution (device, workers) are left
    out.
    """
    wanted = RunSettings.model_validate(run.settings)
    preset, changes = _nearest_preset(wanted)
    sets = (f"{key.removeprefix('methods.')}={json.dumps(value)}" for key, value in changes.items())
    options = f"--preset {preset}{_flags(cells)}" + "".join(f" --set {shlex.quote(setting)}" for setting in sets)
    variants = {name: RunSettings.model_validate(run.variants[name]) for name in {c.settings for c in cells} - {BASE}}
    return " && ".join(f"bench run {suite}{options}" for suite in _suites(wanted, variants))


def _flags(cells: Iterable[Cell]) -> str:
    """The flags that select these cells; `--tasks` only if they are not the default."""
    values: dict[str, dict[Any, None]] = {
        "attacks": dict.fromkeys(cell.attack for cell in cells),
        "defenses": dict.fromkeys(cell.defense for cell in cells if cell.defense != CLEAN_MODEL),
        "tasks": dict.fromkeys(cell.task for cell in cells),
        "seeds": dict.fromkeys(cell.seed for cell in cells),
    }
    if tuple(values["tasks"]) == RunSettings().tasks:
        del values["tasks"]
    return "".join(f" --{name} {','.join(map(str, names))}" for name, names in values.items())


def _nearest_preset(wanted: RunSettings) -> tuple[str, dict[str, Any]]:
    """The preset from which the fewest settings differ, and these settings."""
    settings, changes = _flat(wanted), {}
    for preset in presets():
        start = _flat(resolve(preset))
        if start.keys() <= settings.keys():  # a setting of a preset cannot be unset
            changes[preset] = {key: value for key, value in settings.items() if start.get(key, ...) != value}
    nearest = min(changes, key=lambda name: len(changes[name]))
    return nearest, changes[nearest]


def flat(settings: Any, key: str = "") -> dict[str, Any]:
    """Nested settings as a flat dict with dotted keys.

    >>> flat({"poison": {"count": 800, "pairs": 4000}, "seeds": [0, 1]})
    {'poison.count': 800, 'poison.pairs': 4000, 'seeds': [0, 1]}
    """
    if not isinstance(settings, dict):
        return {key: settings}
    return {k: v for name, value in settings.items() for k, v in flat(value, f"{key}.{name}".strip(".")).items()}


def _flat(run: RunSettings) -> dict[str, Any]:
    return flat(run.model_dump(mode="json", include=set(Experiment.model_fields)))


def _suites(base: RunSettings, variants: dict[str, RunSettings]) -> list[str]:
    """The `--suite` flags for these variants, each in one suite; a single empty flag if there are no variants."""
    chosen = []
    for name, suite in suites().items():
        declared = suite.declared(base.embedded)
        same = {key for key in variants.keys() & declared.keys() if _equal(base, declared[key], variants[key])}
        if same:
            chosen.append(f"--suite {name} ")
            variants = {key: run for key, run in variants.items() if key not in same}
    return chosen or [""]


def _equal(base: RunSettings, values: dict[str, Any] | str, variant: RunSettings) -> bool:
    """Whether a suite's declared values give this variant; suites of two papers may use one name for two variants."""
    return not isinstance(values, str) and overlay(base, values).experiment == variant.experiment
