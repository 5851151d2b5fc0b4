"""Repeat the defenses and evaluations of a results folder with other rounding errors, as another processor has."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.core.code_state import sources
from bench.core.errors import BenchError
from bench.core.names import CLEAN_MODEL
from bench.experiment.settings import overlay
from bench.matrix.runner import run_matrix
from bench.results.folder import ResultsFolder
from bench.results.store import CACHE

# What a rerun takes from the other folder as it is.
SHARED = ("artefacts/trigger", "artefacts/backdoor", CACHE)


def rerun(
    base: ResultsFolder,
    out: Path,
    draw: int,
    settings: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> ResultsFolder:
    """Defend the backdoored models of a results folder once more, each with other rounding errors (`Clip.nudged`).

    Nothing is poisoned again. What is finished in `out` is kept.

    Args:
        draw: which rounding errors: 1, 2, ...
        settings: on top of those of the folder's runs, such as `{"rvpt": {"alpha": 2}, "defenses": ("rvpt",)}`.

    Raises:
        BenchError: the folder is unfinished, or another state of the code made it; a cell failed; or see
            `bench.matrix.runner.prepare`.
    """
    if base.unfinished:
        some = ", ".join(cell.name for cell in base.unfinished[:3]) + (" ..." if len(base.unfinished) > 3 else "")
        raise BenchError(
            f"unfinished cells of {base.out}: {len(base.unfinished)} ({some}). Finish its `bench run` first"
        )
    if {card.sources for cell in base.cells for card in base.lineage(cell).cards} - {sources()}:
        raise BenchError(
            f"{base.out} was made by another state of the code, and no table may mix the two. Make it again with this "
            "one first: `bench run ... --out OTHER`"
        )
    for name in SHARED:
        if (base.out / name).is_dir():
            shutil.copytree(base.out / name, out / name, copy_function=_link, dirs_exist_ok=True)
    # The latest run is written last, as in the other folder.
    for run in reversed(base.record.runs):
        # Of all cells, as an earlier run with other attacks is a part of this one.
        names = {
            "attacks": tuple(dict.fromkeys(cell.attack for cell in run.cells)),
            "defenses": tuple(dict.fromkeys(cell.defense for cell in run.cells if cell.defense != CLEAN_MODEL)),
            "seeds": tuple(dict.fromkeys(cell.seed for cell in run.cells)),
        }
        changed = {**names, **(settings or {}), "execution": {"rounding": draw}}
        variants = {name: overlay(base.settings_of(run, name), changed) for name in run.variants}
        ended = run_matrix(variants, out, base.record.plugins, console or Console(quiet=True))
        if ended.failures:
            raise BenchError(f"{out}: {'; '.join(f'{label}: {why}' for label, why in ended.failures.items())}")
    return ResultsFolder(out)


def _link(source: str, target: str) -> None:
    if Path(target).exists():
        return
    try:
        os.link(source, target)
    except OSError:
        # Not all file systems have links.
        shutil.copy2(source, target)
