"""The same training with other rounding errors: what another processor, thread count or version of torch would do.

Each weight of a backdoored model is moved to a neighbouring float or left where it is, at random. All that is computed
from it is then rounded differently, and nothing else changes. Tables that grow row by row let a script be interrupted.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console

from bench import BenchError, Clip, generator
from bench.experiment.settings import BASE, overlay
from bench.matrix.runner import run_matrix
from bench.results.folder import ResultsFolder
from bench.results.store import Store

# What a rerun takes from another results folder as it is.
SHARED = ("artefacts/trigger", "artefacts/backdoor", "data")


def nudged(clip: Clip, number: int) -> Clip:
    """A copy whose weights are one float up, one down, or the same, at random; number 0 is the model as it is."""
    copy = clip.copy()
    if number:
        rng = generator(number, "rounding")
        with torch.no_grad():
            for weights in copy.model.parameters():
                weights.copy_(weights.nextafter(weights + torch.randint(-1, 2, weights.shape, generator=rng)))
    return copy


@contextmanager
def other_rounding(number: int) -> Iterator[None]:
    """Every backdoored model that a results folder opens in this process is `nudged`."""
    opened = Store.clip

    def clip(self: Store, id: str, device: torch.device | str = "cpu") -> Clip:
        return nudged(opened(self, id, "cpu"), number).to(device)

    Store.clip = clip  # type: ignore[method-assign]
    try:
        yield
    finally:
        Store.clip = opened  # type: ignore[method-assign]


def rerun(base: ResultsFolder, out: Path, number: int, settings: Mapping[str, Any], **which: Any) -> ResultsFolder:
    """Defend the backdoored models of a results folder once more, with other rounding and, perhaps, other settings.

    `settings` are on top of the folder's, by method; `which` are `attacks`, `defenses` and `seeds`, the folder's own
    if not given. What is finished in `out` is kept.
    """
    for name in SHARED:
        if (base.out / name).is_dir():
            shutil.copytree(base.out / name, out / name, copy_function=_link, dirs_exist_ok=True)
    # In this process, where the models are nudged.
    run = overlay(base.settings, {**settings, **which, "execution": {"workers": 1}})
    with other_rounding(number):
        ended = run_matrix({BASE: run}, out, base.record.plugins, Console(quiet=True))
    if ended.failures:
        raise BenchError(f"{out}: {'; '.join(f'{label}: {reason}' for label, reason in ended.failures.items())}")
    return ResultsFolder(out)


def shares(folder: ResultsFolder, metrics: Sequence[str] = ("ASR", "CA")) -> pd.DataFrame:
    """Attack, defense, seed, metric, value in percent, n."""
    rows = folder.results
    return rows[rows["metric"].isin(metrics)][["attack", "defense", "seed", "metric", "value", "n"]]


def known(file: Path, key: Sequence[str]) -> set[tuple]:
    """The keys of the rows that a table has already."""
    if not file.is_file():
        return set()
    return set(pd.read_csv(file)[list(key)].itertuples(index=False, name=None))


def append(file: Path, rows: pd.DataFrame) -> None:
    """Add rows to a table, which comes to be with the first ones."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows.to_csv(file, mode="a", header=not file.is_file(), index=False)


def _link(source: str, target: str) -> None:
    if not Path(target).exists():
        os.link(source, target)
