"""Names and plug-ins: collisions, suggestions, broken files, broken installations."""

import importlib
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import Attack, Estimate, Observations, attacks, defenses, metric, metrics
from bench.core.errors import BenchError, unknown
from bench.core.registry import DISTRIBUTION, ENTRY_POINTS, Registry, load_plugins, origin

# Now, not in a test: what is registered in a test is gone after it.
for package in ("attacks", "defenses", "metrics"):
    importlib.import_module(package)

STRIPE = '''
from bench import Attack, attack

@attack("stripe")
class Stripe(Attack):
    """A stripe."""
'''


@pytest.fixture(autouse=True)
def only_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers or imports is gone after it; installed plug-ins are those that a test makes up."""
    installed(monkeypatch)
    before = set(sys.modules)
    with attacks.isolated(), defenses.isolated(), metrics.isolated():
        yield
    for name in set(sys.modules) - before:
        if name.startswith("bench_plugin_"):
            del sys.modules[name]


def installed(monkeypatch: pytest.MonkeyPatch, *points: Any) -> None:
    def entry_points(group: str) -> tuple[Any, ...]:
        assert group == ENTRY_POINTS
        return points

    monkeypatch.setattr("bench.core.registry.entry_points", entry_points)


def entry_point(name: str, distribution: str | None, load: Any) -> Any:
    dist = SimpleNamespace(name=distribution) if distribution else None
    return SimpleNamespace(name=name, dist=dist, load=load)


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


class Shape:
    pass


@pytest.fixture
def shapes() -> Registry[type[Shape]]:
    return Registry("shape", Shape)


# --- names


def test_a_registered_thing_is_found_by_its_name(shapes: Registry) -> None:
    @shapes.register("square")
    class Square(Shape):
        pass

    assert shapes["square"] is Square
    assert "square" in shapes
    assert "circle" not in shapes
    assert list(shapes) == ["square"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "sqare",
            "unknown shape 'sqare'. Did you mean 'square'?\nKnown: circle, square. `bench list shapes` explains them.",
        ),
        ("xyz", "unknown shape 'xyz'.\nKnown: circle, square. `bench list shapes` explains them."),
        ("", "unknown shape ''.\nKnown: circle, square. `bench list shapes` explains them."),
    ],
)
def test_an_unknown_name_suggests_the_nearest(shapes: Registry, name: str, message: str) -> None:
    shapes.register("square")(type("Square", (Shape,), {}))
    shapes.register("circle")(type("Circle", (Shape,), {}))
    with pytest.raises(BenchError) as error:
        shapes[name]
    assert str(error.value) == message


def test_unknown_without_a_hint_ends_at_the_names() -> None:
    assert str(unknown("defense", "rvtp", ["vpt", "rvpt"])) == (
        "unknown defense 'rvtp'. Did you mean 'rvpt'?\nKnown: rvpt, vpt."
    )


@pytest.mark.parametrize(
    ("registry", "wrong", "right"),
    [(attacks, "badnets", "badnet"), (defenses, "rvtp", "rvpt"), (defenses, "RVPT", "rvpt"), (metrics, "asr", "ASR")],
    ids=["attack", "defense", "upper case", "lower case"],
)
def test_the_suite_s_own_registries_suggest_too(registry: Registry, wrong: str, right: str) -> None:
    with pytest.raises(BenchError, match=f"unknown {registry.kind} '{wrong}'. Did you mean '{right}'"):
        registry[wrong]


def test_the_wrong_kind_of_class_is_an_error_that_tells_where_it_is(shapes: Registry) -> None:
    with pytest.raises(BenchError, match=r"shape 'dog' \(.*test_registry\.py:\d+\) must be a subclass of Shape"):

        @shapes.register("dog")
        class Dog:
            pass

    assert "dog" not in shapes


def test_two_things_of_one_name_are_an_error_that_names_both(shapes: Registry) -> None:
    @shapes.register("square")
    class Square(Shape):
        pass

    with pytest.raises(BenchError) as error:

        @shapes.register("square")
        class Other(Shape):
            pass

    first, second = re.findall(r"test_registry\.py:(\d+)", str(error.value))
    assert str(error.value).startswith("two shapes are called 'square': ")
    assert 0 < int(first) < int(second)
    assert shapes["square"] is Square


def test_registering_the_same_thing_again_is_allowed(shapes: Registry) -> None:
    def define() -> type[Shape]:
        @shapes.register("square")
        class Square(Shape):
            pass

        return Square

    define()
    again = define()
    assert shapes["square"] is again


def test_two_metrics_of_one_name_are_an_error() -> None:
    """A metric is an object around a function; it is the function's file that counts."""

    @metric("red", better="higher")
    def first(_: Observations) -> dict[str, Estimate]:
        return {}

    with pytest.raises(BenchError, match=r"two metrics are called 'red': .*test_registry\.py:\d+ and .*test_registry"):

        @metric("red", better="higher")
        def second(_: Observations) -> dict[str, Estimate]:
            return {}

    assert metrics["red"].measure is first


def test_origin_of_what_has_no_source_is_its_module() -> None:
    assert origin(int) == "builtins"


# --- plug-ins in a file


def test_a_plugin_file_registers(tmp_path: Path) -> None:
    file = write(tmp_path / "stripe.py", STRIPE)
    load_plugins((file,))
    assert issubclass(attacks["stripe"], Attack)
    assert origin(attacks["stripe"]) == f"{file}:4"


def test_a_plugin_file_is_imported_once_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "stripe.py", STRIPE)
    monkeypatch.chdir(tmp_path)
    load_plugins((Path("stripe.py"),))
    first = attacks["stripe"]
    load_plugins((tmp_path / "stripe.py", Path("../") / tmp_path.name / "stripe.py"))
    assert attacks["stripe"] is first


def test_plugin_files_of_one_name_in_two_folders_do_not_replace_each_other(tmp_path: Path) -> None:
    one = write(tmp_path / "one" / "plugin.py", STRIPE)
    two = write(tmp_path / "two" / "plugin.py", STRIPE.replace("stripe", "dot"))
    load_plugins((one, two))
    assert origin(attacks["stripe"]) == f"{one}:4"
    assert origin(attacks["dot"]) == f"{two}:4"


def test_two_plugin_files_with_one_attack_are_an_error_that_names_both(tmp_path: Path) -> None:
    """Even where the files have one name, and the attack is on the same line of both."""
    files = tuple(write(tmp_path / folder / "plugin.py", STRIPE) for folder in ("one", "two"))
    with pytest.raises(BenchError) as error:
        load_plugins(files)
    assert str(error.value) == f"two attacks are called 'stripe': {files[0]}:4 and {files[1]}:4"


def test_a_plugin_cannot_take_a_name_of_the_suite(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py", STRIPE.replace("stripe", "badnet"))
    with pytest.raises(BenchError, match=r"two attacks are called 'badnet': .*badnet\.py:\d+ and .*mine\.py:4"):
        load_plugins((file,))


@pytest.mark.parametrize("name", ["nowhere.py", "."], ids=["a missing file", "a folder"])
def test_a_plugin_that_is_no_file_is_an_error(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    with pytest.raises(BenchError, match=f"--plugin {file}: no such Python file"):
        load_plugins((file,))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import a_module_that_nobody_has", "ModuleNotFoundError"),
        ("\ndef broken(:", "SyntaxError: invalid syntax (broken.py, line 2)"),
        ("\n1 / 0", "ZeroDivisionError: division by zero (broken.py, line 2)"),
        ("import sys; sys.exit(3)", "SystemExit: 3 (broken.py, line 1)"),
    ],
)
def test_a_plugin_file_that_fails_is_an_error_that_names_it_every_time(tmp_path: Path, text: str, reason: str) -> None:
    file = write(tmp_path / "broken.py", text)
    for _ in range(2):
        with pytest.raises(BenchError, match=re.escape(f"--plugin {file} cannot be imported: {reason}")):
            load_plugins((file,))


def test_a_mended_plugin_file_loads(tmp_path: Path) -> None:
    file = write(tmp_path / "plugin.py", "1 / 0")
    with pytest.raises(BenchError):
        load_plugins((file,))
    write(file, STRIPE + "\n# mended\n")
    load_plugins((file,))
    assert "stripe" in attacks


# --- plug-ins that are installed


def test_installed_plugins_are_loaded_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    installed(monkeypatch, *(entry_point(name, "good", lambda name=name: loaded.append(name)) for name in "ab"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_plugins()
    assert loaded == ["a", "b"]


def test_of_the_suite_s_own_packages_only_the_kind_asked_for_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    points = [("attacks", DISTRIBUTION), ("datasets", DISTRIBUTION), ("datasets", "good"), ("stripe", "good")]
    installed(
        monkeypatch, *(entry_point(name, of, lambda n=name, of=of: loaded.append(f"{of}: {n}")) for name, of in points)
    )
    load_plugins(only="attacks")
    assert loaded == [f"{DISTRIBUTION}: attacks", "good: datasets", "good: stripe"]


@pytest.mark.parametrize(
    ("distribution", "where"), [("evil-triggers", "evil-triggers"), (None, "an unknown distribution")]
)
def test_a_broken_installed_plugin_is_a_warning_that_names_its_distribution(
    monkeypatch: pytest.MonkeyPatch, distribution: str | None, where: str
) -> None:
    loaded: list[str] = []

    def broken() -> None:
        raise ImportError("no module named cupy")

    installed(
        monkeypatch,
        entry_point("stripes", distribution, broken),
        entry_point("other", "good", lambda: loaded.append("other")),
    )
    expected = f"plug-in 'stripes' of {where} cannot be loaded: ImportError('no module named cupy')"
    with pytest.warns(UserWarning, match=re.escape(expected)):
        load_plugins()
    assert loaded == ["other"]
