"""What a command imports before it prints, and that the names of `bench` are there although they are imported late."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bench


def imported_by(code: str) -> set[str]:
    """The packages that a Python of its own has imported after some code."""
    told = "import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{told}"], check=True, capture_output=True, text=True)
    return set(done.stderr.split())


def command(words: str) -> str:
    return f"from bench.cli import app\napp({words.split()}, standalone_mode=False)"


def test_help_does_without_torch() -> None:
    assert imported_by(command("run --help")) & {"torch", "numpy"} == set()


def test_attacks_are_listed_without_what_only_some_of_them_use_when_they_run() -> None:
    heavy = {"open_clip", "torchvision", "kornia", "timm", "scipy", "sklearn", "pandas", "matplotlib", "defenses"}
    assert imported_by(command("list attacks")) & {*heavy, "attacks"} == {"attacks"}


def test_results_are_read_without_what_only_makes_them() -> None:
    heavy = {"open_clip", "torchvision", "kornia", "timm", "sklearn", "matplotlib"}
    imported = imported_by(
        "import bench.results.folder, reports.baseline, reports.compare, reports.gate, reports.verify"
    )
    assert imported & heavy == set()


def test_every_public_name_is_there() -> None:
    assert sorted(bench._MODULE_OF) == sorted(bench.__all__)
    assert set(bench.__all__) < set(dir(bench))
    for name in bench.__all__:
        value = getattr(bench, name)
        assert value is getattr(sys.modules[bench._MODULE_OF[name]], name)


def test_type_checkers_are_shown_the_same_names() -> None:
    tree = ast.parse(Path(bench.__file__).read_text())
    (shown,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in shown.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name: node.module for node in imports for alias in node.names} == bench._MODULE_OF


def test_an_unknown_name_is_the_usual_error() -> None:
    with pytest.raises(AttributeError, match="module 'bench' has no attribute 'Atack'"):
        _ = bench.Atack  # type: ignore[attr-defined]
