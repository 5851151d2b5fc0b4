"""A plug-in for pytest: files, and the tests of each, in an order of chance; with a seed, so that it can be repeated.

PYTHONPATH=tests SHUFFLE=3 python -m pytest -p shuffle
"""

import os
import random
from pathlib import Path

import pytest

SEED = os.environ.get("SHUFFLE", "0")


def pytest_report_header() -> str:
    return f"order: SHUFFLE={SEED}"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    chance = random.Random(SEED)
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    order = list(files.values())
    chance.shuffle(order)
    for tests in order:
        chance.shuffle(tests)
    items[:] = [item for tests in order for item in tests]
