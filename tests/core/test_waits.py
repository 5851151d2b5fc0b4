"""No step waits for the GPU without a reason: a check of the source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What trains and evaluates.
FOLDERS = ("attacks", "defenses", "bench/core", "bench/detection", "bench/training", "bench/builtin_tasks")
# Methods of a tensor that give its numbers to Python, for which the CPU waits if they are on the GPU.
WAITING = frozenset({"cpu", "numpy", "item", "tolist"})
REASONS = ("# Waits for the GPU: ", "# On the CPU: ")
# They run once more for every item.
LOOPS = (ast.For, ast.While, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.Lambda)


def repeated(node: ast.AST, again: bool = False, nested: bool = False) -> Iterator[ast.Call]:
    """The calls in loops, and in functions inside functions, such as the losses that training calls at every step.

    `again`: the node runs many times; `nested`: it is in a function.
    """
    if again and isinstance(node, ast.Call):
        yield node
    # What a loop goes over is asked for once.
    first = getattr(node, "generators", [node])[0] if isinstance(node, LOOPS) else None
    if isinstance(first, ast.For | ast.comprehension):
        yield from repeated(first.iter, again, nested)
    inside = again or isinstance(node, LOOPS) or (nested and isinstance(node, FUNCTIONS))
    for child in ast.iter_child_nodes(node):
        others = [child.target, *child.ifs] if child is first else [child]
        for part in others if isinstance(first, ast.comprehension) else [child]:
            if part is not getattr(first, "iter", None):
                yield from repeated(part, inside, nested or isinstance(node, FUNCTIONS))


def unexplained(source: str) -> list[int]:
    """The lines that wait in a loop or an inner function, and have no reason beside them or in the line above."""
    lines = ["", *source.splitlines()]
    waiting = {
        call.func.end_lineno or 0
        for call in repeated(ast.parse(source))
        if isinstance(call.func, ast.Attribute) and call.func.attr in WAITING and not call.args
    }
    explained = {n for n, line in enumerate(lines) if any(reason in line for reason in REASONS)}
    return sorted(n for n in waiting if not {n, n - 1} & explained)


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("for batch in batches:\n    losses.append(loss.item())", [2]),
        ("while loss.item() > 1:\n    step()", [1]),
        ("losses = [loss.item() for loss in losses]", [1]),
        ("def fit():\n    def loss(index):\n        return images[index].cpu()", [3]),
        ("def fit():\n    tune(lambda index: index.tolist())", [2]),
        ("for a in b:\n    for c in d.numpy():\n        e(c)", [2]),
        ("for batch in batches:\n    # Waits for the GPU: it is logged.\n    losses.append(loss.item())", []),
        ("for batch in batches:\n    losses.append(loss.item())  # On the CPU: an index.", []),
        ("for batch in batches:\n    # It is logged.\n    losses.append(loss.item())", [3]),
        ("for a in b:\n    for c in [d.numpy() for d in e]:\n        f(c)", [2]),
        ("for row in index.tolist():\n    use(row)", []),
        ("rows = {row for row in index.tolist()}", []),
        ("def fit(loss):\n    return loss.item()", []),
        ("for pair in pairs:\n    use(pair.items(), names.item(3))", []),
    ],
)
def test_what_the_check_finds(source: str, lines: list[int]) -> None:
    assert unexplained(source) == lines


def test_every_wait_in_a_step_has_a_reason() -> None:
    files = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 20
    found = [f"{file.relative_to(ROOT)}:{line}" for file in files for line in unexplained(file.read_text())]
    assert found == [], f"do without, or say why in a comment that starts with {' or '.join(REASONS)}"
