"""Registries of methods and the like by name; decorators register them, entry points import plug-ins.

>>> shapes = Registry("shape", object)
>>> @shapes.register("square")
... class Square: "Four equal sides."
>>> shapes["square"] is Square
True
"""

import hashlib
import importlib.util
import inspect
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from bench.core.errors import BenchError, unknown

T = TypeVar("T")
Item = TypeVar("Item")
ENTRY_POINTS = "bench.plugins"
# bench's own distribution; its entry points are called as the kinds are: attacks, defenses, metrics, datasets.
DISTRIBUTION = "clip-backdoor-bench"
# Module names of --plugin files start with this.
PLUGIN_MODULE = "bench_plugin_"


class Registry(Generic[T]):
    """Items of one kind by name. Registering two items under one name is an error that names both files."""

    def __init__(self, kind: str, base: type) -> None:
        self.kind = kind
        self.base = base
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[Item], Item]:
        """A decorator that registers an item under a name and returns it with its type unchanged.

        Raises:
            BenchError: it is a class, and no subclass of `base`; or another item has this name.
        """

        def add(item: Item) -> Item:
            if isinstance(item, type) and not issubclass(item, self.base):
                raise BenchError(f"{self.kind} '{name}' ({origin(item)}) must be a subclass of {self.base.__name__}")
            known = self._items.get(name)
            if known is not None and origin(known) != origin(item):
                raise BenchError(f"two {self.kind}s are called '{name}': {origin(known)} and {origin(item)}")
            self._items[name] = cast(T, item)
            return item

        return add

    def __getitem__(self, name: str) -> T:
        if name not in self._items:
            raise unknown(self.kind, name, self._items, f"`bench list {self.kind}s` explains them.")
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """What is registered within is gone afterwards; for tests of plug-ins."""
        before = dict(self._items)
        try:
            yield
        finally:
            self._items = before


def origin(item: Any) -> str:
    """The source file and line of an item."""
    item = getattr(item, "measure", item)
    try:
        return f"{inspect.getsourcefile(item)}:{inspect.getsourcelines(item)[1]}"
    except (OSError, TypeError):
        return getattr(item, "__module__", repr(item))


def load_plugins(files: tuple[Path, ...] = (), only: str | None = None) -> None:
    """Import everything that registers methods: bench's own packages, installed plug-ins, and `files`.

    `only`, such as "attacks", skips bench's packages of other kinds; plug-ins may register any kind, so they are
    always imported. A broken installed plug-in gives a warning that names its distribution.

    Raises:
        BenchError: one of `files` does not exist or cannot be imported.
    """
    for point in entry_points(group=ENTRY_POINTS):
        own = point.dist is not None and point.dist.name == DISTRIBUTION
        if own and only not in (None, point.name):
            continue
        try:
            point.load()
        except Exception as error:
            where = point.dist.name if point.dist else "an unknown distribution"
            warnings.warn(f"plug-in '{point.name}' of {where} cannot be loaded: {error!r}", stacklevel=2)
    for file in files:
        _import_file(file)


def _import_file(file: Path) -> None:
    path = file.resolve()
    # A hash of the whole path: files of the same name in two folders are two plug-ins.
    name = f"{PLUGIN_MODULE}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise BenchError(f"--plugin {file}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        if isinstance(error, BenchError):
            raise
        reason = f"{type(error).__name__}: {error}{in_plugin(error)}"
        raise BenchError(f"--plugin {file} cannot be imported: {reason}") from error


def in_plugin(error: BaseException) -> str:
    """The line of a `--plugin` file in which an error arose, as a suffix for its text; "" if in none."""
    lines = [
        f" ({Path(frame.f_code.co_filename).name}, line {line})"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).startswith(PLUGIN_MODULE)
    ]
    return lines[-1] if lines else ""
