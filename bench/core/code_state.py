"""Which code made a number: a hash of the suite's sources, and the commit they are of."""

import hashlib
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

# What computes numbers. Tables and figures are made anew from stored observations.
PACKAGES = ("bench", "attacks", "defenses", "metrics")


@cache
def sources() -> str:
    """A hash of all Python sources that take part in a number: equal for equal code, whatever the commit."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        folder = _folder(package)
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{package}/{file.relative_to(folder).as_posix()}".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


@cache
def commit() -> str:
    """The commit of the suite, with a mark if files differ from it; outside a checkout, the installed version."""
    return commit_of(_folder("bench")) or f"version {_version()}"


def commit_of(folder: Path) -> str:
    """The commit of the checkout that a folder is in, with a mark if files differ from it; empty outside of one."""
    try:
        git = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def _version() -> str:
    try:
        return version("clip-backdoor-bench")
    except PackageNotFoundError:
        return "unknown"


def _folder(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent
