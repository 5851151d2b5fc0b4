"""Read a paper from its folder: paper.yaml, and suites.yaml, tables.yaml, published.yaml and published.csv, if any."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from bench.core.errors import BenchError, guess
from bench.papers.paper import Name, Paper, PaperFile, PaperTable, Suite, Translation

PAPER, SUITES, TABLES = "paper.yaml", "suites.yaml", "tables.yaml"
TRANSLATION, NUMBERS = "published.yaml", "published.csv"
HINT = "docs/papers.md describes a paper's folder."

T = TypeVar("T")


def read_paper(folder: Path) -> Paper:
    """Read the paper in a folder.

    Raises:
        BenchError: a file is missing or no YAML, or has an unknown key, a wrong value or an unknown name.
    """
    if not (folder / PAPER).is_file():
        raise BenchError(f"{folder} holds no paper: there is no {PAPER}. {HINT}")
    about = _file(PaperFile, folder / PAPER)
    numbers = folder / NUMBERS
    values = dict(about) | {
        "name": folder.name,
        "folder": folder,
        "suites": _file(dict[Name, Suite], folder / SUITES),
        "tables": _file(dict[Name, PaperTable], folder / TABLES),
        "translation": _file(Translation, folder / TRANSLATION),
        "numbers": numbers if numbers.is_file() else None,
    }
    paper = _checked(Paper, values, folder)
    if problem := next(_unknown_names(paper), None):
        raise BenchError(f"{folder / TABLES}: {problem} {HINT}")
    return paper


def _file(kind: type[T], file: Path) -> T:
    """The contents of a file; a missing file counts as an empty one."""
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise BenchError(f"{file} is no YAML: {error}\n{HINT}") from None
    return _checked(kind, {} if values is None else values, file)


def _checked(kind: type[T], values: Any, where: Path) -> T:
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        lines = "\n".join(f"{where}: {_problem(item)}" for item in error.errors())
        raise BenchError(f"{lines}\n{HINT}") from None


def _problem(item: Any) -> str:
    key = ".".join(map(str, item["loc"]))
    if item["type"] == "extra_forbidden":
        return f"unknown key {key}."
    if item["type"] == "missing":
        return f"{key} is missing."
    return f"{key} = {item['input']!r}: {item['msg']}." if key else f"{item['msg']}."


def _unknown_names(paper: Paper) -> Iterator[str]:
    """Unknown names of suites, places and variants in tables."""
    for name, table in paper.tables.items():
        if table.suite not in paper.suites:
            yield f"{name}.suite: {SUITES} has no suite '{table.suite}'.{guess(table.suite, paper.suites)}"
            return
        if table.version is not None and table.version not in paper.versions:
            yield f"{name}.version: {PAPER} has no version '{table.version}'.{guess(table.version, paper.versions)}"
            return
        for place in table.places:
            if place not in paper.places:
                yield f"{name}.places: {PAPER} has no place '{place}'.{guess(place, paper.places)}"
                return
        suite = paper.suites[table.suite]
        variants = {"", *suite.declared(embedded=False), *suite.declared(embedded=True)}
        for variant in (method.variant for method in paper.methods_of(table)):
            if variant not in variants:
                yield f"{name}.methods: the suite {table.suite} has no variant '{variant}'.{guess(variant, variants)}"
