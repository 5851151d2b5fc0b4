"""docs/architecture.md is true: layers, and the way of a number."""

import ast
import re
import sys
from collections import defaultdict
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from rich.console import Console
from tiny import TINY

from bench.core.registry import load_plugins
from bench.experiment.settings import BASE, resolve
from bench.matrix.runner import run_matrix
from bench.matrix.stages.evaluation import EvaluationStage
from bench.results.folder import ResultsFolder

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text()
FIRST_PARTY = ("attacks", "bench", "defenses", "metrics", "reports")
# Called on the way of a number, and no part of it: looked up, read, counted or checked.
ASIDE = {
    "attacks/patch.py", "bench/core/code_state.py", "bench/core/dataset.py", "bench/core/distributed.py",
    "bench/core/errors.py", "bench/core/metric.py", "bench/core/precision.py", "bench/core/progress.py",
    "bench/core/randomness.py", "bench/core/registry.py", "bench/core/settings.py", "bench/core/task.py",
    "bench/data/decoding.py", "bench/data/world.py", "bench/experiment/settings.py", "bench/matrix/cards.py",
    "bench/matrix/leakage_check.py", "bench/matrix/plan.py", "bench/matrix/schedule.py", "bench/matrix/watch.py",
    "bench/matrix/workers.py",
    "bench/models/checkpoint.py", "bench/models/load.py", "bench/results/records.py", "bench/results/run_file.py",
    "metrics/correlation.py", "metrics/resistivity.py",
}  # fmt: skip


def layers() -> list[list[str]]:
    """The packages of the table, above first, as module prefixes; `bench/core/` is `bench.core`."""
    section = TEXT.split("## Packages")[1].split("##")[0]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    return [
        [name.strip("/").replace("/", ".").removesuffix(".py") for name in re.findall(r"`(.+?)`", c)] for c in cells
    ]


def package_of(module: str) -> int | None:
    """The layer of a module; None for `bench` itself, which imports lazily."""
    for level, names in enumerate(layers()):
        for name in names:
            if (
                module == name
                or module.startswith(f"{name}.")
                or (name == "bench.cli*" and module.startswith("bench.cli"))
            ):
                return level
    return None


def imports() -> dict[str, set[str]]:
    """What each module imports when it is imported: not inside functions, not for type checkers."""
    found: dict[str, set[str]] = defaultdict(set)
    for folder in FIRST_PARTY:
        for file in (ROOT / folder).rglob("*.py"):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            for node in ast.parse(file.read_text()).body:
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.module:
                    # `from package import module` imports the module.
                    names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                found[module] |= {name for name in names if name.split(".")[0] in FIRST_PARTY}
    # `from package import module` imports that module, and of the package no name.
    return {
        m: {n for n in names & found.keys() if not any(o.startswith(f"{n}.") for o in names)}
        for m, names in found.items()
    }


def test_no_package_imports_one_below_it_in_the_table() -> None:
    upward = [
        f"{module} imports {name}"
        for module, names in imports().items()
        for name in names
        if (here := package_of(module)) is not None and (there := package_of(name)) is not None and there > here
    ]
    assert upward == []


def test_every_module_has_a_layer() -> None:
    assert [module for module in imports() if package_of(module) is None] == ["bench"]


def test_there_is_no_import_cycle() -> None:
    graph, done = imports(), set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for name in graph[module]:
                visit(name, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def way() -> dict[str, list[str]]:
    """The files of the way of a number, each with its functions."""
    section = TEXT.split("## The way of a number")[1].split("\n## ")[0]
    rows = re.findall(r"^\| \d+ \| `(.+?)` \| (.+?) \|", section, re.MULTILINE)
    return {file: re.findall(r"`(\w+)`", functions) for file, functions in rows}


@pytest.fixture(scope="module")
def called(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The functions that run between stored models and the table, by file: traced, of a run of BadNet."""
    load_plugins()
    out = tmp_path_factory.mktemp("traced")
    flags = {"attacks": ("badnet",), "defenses": ("none", "rvpt")}
    variants = {BASE: resolve("smoke", None, flags, (*TINY, "zero_shot.perturbations=[]"))}
    calls: dict[str, set[str]] = defaultdict(set)

    def note(frame: FrameType, event: str, _: Any) -> None:
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.is_relative_to(ROOT) and file.relative_to(ROOT).parts[0] in FIRST_PARTY:
            calls[file.relative_to(ROOT).as_posix()].add(frame.f_code.co_name)

    make = EvaluationStage.make

    def traced(*arguments: Any) -> Any:
        sys.setprofile(note)
        try:
            return make(*arguments)
        finally:
            sys.setprofile(None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EvaluationStage, "make", traced)
        assert run_matrix(variants, out, (), Console(quiet=True)).failures == {}
    sys.setprofile(note)
    try:
        ResultsFolder(out).table()
    finally:
        sys.setprofile(None)
    return calls


def test_the_way_of_a_number_is_at_most_fifteen_files_long() -> None:
    assert 0 < len(way()) <= 15


def test_every_function_on_the_way_of_a_number_is_called(called: dict[str, set[str]]) -> None:
    missing = [f"{file}: {name}" for file, names in way().items() for name in names if name not in called.get(file, ())]
    assert missing == []


def test_no_file_on_the_way_of_a_number_is_left_out(called: dict[str, set[str]]) -> None:
    assert sorted(called.keys() - way().keys() - ASIDE) == []
