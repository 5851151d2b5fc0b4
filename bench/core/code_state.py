"""Which code computed a number: a hash of bench's sources, and their commit."""

import hashlib
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

# The packages that compute numbers. `reports` is left out: it only shows stored observations.
PACKAGES = ("bench", "attacks", "defenses", "metrics")


@cache
def sources() -> str:
    """A hash of all Python sources of `PACKAGES`: equal for equal code, whatever the commit."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        folder = _folder(package)
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{package}/{file.relative_to(folder).as_posix()}".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


@cache
def commit() -> str:
    """The commit of bench, marked `-dirty` if files differ from it; outside a checkout, the installed version."""
    return commit_of(_folder("bench")) or f"version {_version()}"


def commit_of(folder: Path) -> str:
    """The commit of the checkout around a folder, marked `-dirty` if files differ from it; "" outside a checkout."""
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
