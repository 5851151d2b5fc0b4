"""The command that makes a results folder again."""

import json
import shlex
from typing import Any

from bench.core.names import CLEAN_MODEL
from bench.experiment.settings import BASE, RunSettings, presets, resolve
from bench.experiment.suites import SUITES
from bench.experiment.variants import EMBEDDED
from bench.results.run_file import FREE


def command_of(run: dict[str, Any], cells: list[dict]) -> str:
    """The `bench run` command, or one a suite, for these cells of a run.json: the nearest preset, what differs from it.

    How it was executed (device, processes) is left out.
    """
    told: dict[str, list] = {name: [] for name in ("attacks", "defenses", "seeds")}
    for cell in cells:
        for name, values in told.items():
            value = cell[name.removesuffix("s")]
            if value not in values and value != CLEAN_MODEL:
                values.append(value)
    flags = "".join(f" --{name} {','.join(map(str, values))}" for name, values in told.items())
    wanted = _flat(RunSettings.model_validate(run["settings"]))
    changes = {}
    for preset in presets():
        given = _flat(resolve(preset))
        if given.keys() <= wanted.keys():  # what a preset sets cannot be unset
            changes[preset] = {key: value for key, value in wanted.items() if given.get(key, ...) != value}
    preset = min(changes, key=lambda name: len(changes[name]))
    sets = (f"{key.removeprefix('methods.')}={json.dumps(value)}" for key, value in changes[preset].items())
    common = f"--preset {preset}{flags}" + "".join(f" --set {shlex.quote(setting)}" for setting in sets)
    suites = _suites({cell.get("settings", BASE) for cell in cells} - {BASE}, run["settings"]["dataset"] == EMBEDDED)
    return " && ".join(f"bench run {suite}{common}" for suite in suites)


def flat(settings: Any, key: str = "") -> dict[str, Any]:
    """Nested settings with dotted keys, to compare key by key.

    >>> flat({"poison": {"count": 800, "pairs": 4000}, "seeds": [0, 1]})
    {'poison.count': 800, 'poison.pairs': 4000, 'seeds': [0, 1]}
    """
    if not isinstance(settings, dict):
        return {key: settings}
    return {k: v for name, value in settings.items() for k, v in flat(value, f"{key}.{name}".strip(".")).items()}


def _flat(run: RunSettings) -> dict[str, Any]:
    return flat(run.model_dump(mode="json", exclude=FREE))


def _suites(variants: set[str], embedded: bool) -> list[str]:
    """Flags of the suites that declare these variants, each variant once; no flag where there are none."""
    chosen = []
    for name, suite in SUITES.items():
        if found := variants & suite.declared(embedded).keys():
            chosen.append(f"--suite {name} ")
            variants = variants - found
    return chosen or [""]
