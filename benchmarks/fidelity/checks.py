"""What a check against original code is, and how original code is loaded. Nothing of the originals is copied here."""

import sys
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from subprocess import run
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

# The repositories, as folders below the one that the scripts are given.
CLEANCLIP, BADCLIP, DECOMPOSITION = "CleanCLIP", "BadCLIP", "Decomposition-Backdoor-CLIP"


class Result(NamedTuple):
    """What a check saw: `equal` where original and ours were to agree, None where they are to differ."""

    equal: bool | None
    summary: str


@dataclass(frozen=True)
class Inputs:
    """Where the originals' checkouts and some photos are."""

    originals: Path
    photos: Path

    def pictures(self) -> list[Image.Image]:
        """The photos, in the order of their names.

        Raises:
            SystemExit: there is none.
        """
        files = sorted(file for file in self.photos.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if not files:
            raise SystemExit(f"no photo in {self.photos}: give a folder of JPEGs with --photos DIR")
        return [Image.open(file).convert("RGB") for file in files]

    @contextmanager
    def code(self, repository: str, module: str, **stand_ins: ModuleType) -> Iterator[Any]:
        """A module of an original, in its own folder; afterwards none of its modules is loaded.

        `stand_ins` take the place of packages that it imports and that do not matter to the check.
        """
        root = self.originals / repository
        before = set(sys.modules)
        for name in ("wandb", *stand_ins):
            sys.modules.setdefault(name, stand_ins.get(name, ModuleType(name)))
        sys.path.insert(0, str(root))
        try:
            with chdir(root):
                yield import_module(module)
        finally:
            sys.path.remove(str(root))
            for name in set(sys.modules) - before:
                file = getattr(sys.modules[name], "__file__", None)
                if file is None or Path(file).is_relative_to(root):
                    del sys.modules[name]

    def commit(self, repository: str) -> str:
        """The commit of a checkout, for the table."""
        summary = run(
            ["git", "-C", str(self.originals / repository), "rev-parse", "HEAD"], capture_output=True, text=True
        )
        return summary.stdout.strip()[:7] or "no git"


@dataclass(frozen=True)
class Check:
    """`what` is compared with `original`; `setting` of ours does what the original does."""

    what: str
    repository: str
    original: str
    setting: str
    see: Callable[[Inputs], Result]


CHECKS: list[Check] = []


def check(what: str, original: str, setting: str, repository: str = CLEANCLIP) -> Callable[[Any], Any]:
    """Register a function as a check."""

    def add(see: Callable[[Inputs], Result]) -> Callable[[Inputs], Result]:
        CHECKS.append(Check(what, repository, original, setting, see))
        return see

    return add


def pixels(first: list[np.ndarray], second: list[np.ndarray]) -> Result:
    """How two lists of 8-bit pictures compare."""
    apart = [np.abs(a.astype(int) - b.astype(int)) for a, b in zip(first, second, strict=True)]
    most, values = max(int(a.max()) for a in apart), sum(a.size for a in apart)
    differing = sum(int((a > 0).sum()) for a in apart)
    if not differing:
        return Result(True, f"{len(first)} pictures equal, every value")
    return Result(False, f"{len(first)} pictures: {differing / values:.3%} of values differ, by at most {most}")
