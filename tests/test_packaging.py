"""What is in the wheel: the five packages with all their files, and nothing else at the top level."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"bench", "attacks", "defenses", "metrics", "reports"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the files in a wheel that is built from a copy, since building leaves folders behind."""
    pytest.importorskip("setuptools", minversion="77")
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in (*PACKAGES, "benchmarks", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", str(copy / "dist"), str(copy)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (file,) = (copy / "dist").glob("*.whl")
    return set(zipfile.ZipFile(file).namelist())


def test_the_packages_are_all_that_is_at_the_top(wheel: set[str]) -> None:
    tops = {name.partition("/")[0] for name in wheel}
    assert {top for top in tops if not re.fullmatch(r"clip_backdoor_bench-.*\.dist-info", top)} == PACKAGES


def test_every_file_of_the_packages_is_in_it(wheel: set[str]) -> None:
    files = {file.relative_to(ROOT).as_posix() for name in PACKAGES for file in (ROOT / name).rglob("*.*")}
    assert {file for file in files if "__pycache__" not in file} <= wheel
    assert {f"{name}/py.typed" for name in PACKAGES} <= wheel
