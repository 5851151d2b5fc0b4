"""The registered papers, and their suites and versions by name."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from bench.core.errors import BenchError, unknown
from bench.papers.paper import Paper, PaperFigure, Recipe, Suite, Sweep
from bench.papers.reading import PAPER, read_paper

T = TypeVar("T")
papers: dict[str, Paper] = {}


def register(folder: Path) -> Paper:
    """Register the paper in a folder.

    Raises:
        BenchError: the folder is no valid paper, or another paper has its name.
    """
    paper = read_paper(folder.resolve())
    known = papers.get(paper.name)
    if known is not None and known.folder != paper.folder:
        raise BenchError(f"two papers are called '{paper.name}': {known.folder} and {paper.folder}. Rename a folder.")
    papers[paper.name] = paper
    return paper


def register_all(folder: Path) -> None:
    """Register all papers in the subfolders of a folder."""
    for file in sorted(folder.glob(f"*/{PAPER}")):
        register(file.parent)


def by_name(items: Callable[[Paper], Mapping[str, T]]) -> dict[str, tuple[Paper, T]]:
    """The items of all papers by name; PAPER/NAME if several papers have an item of this name."""
    counts = Counter(name for paper in papers.values() for name in items(paper))
    return {
        name if counts[name] == 1 else f"{paper.name}/{name}": (paper, item)
        for paper in papers.values()
        for name, item in items(paper).items()
    }


def suites() -> dict[str, Suite]:
    """The suites of all papers by name; PAPER/NAME if several papers have a suite of this name."""
    return {name: suite for name, (_, suite) in by_name(_suites).items()}


def find_suite(name: str) -> Suite:
    """The suite with this name, which may be PAPER/NAME.

    Raises:
        BenchError: there is none, or several papers have one.
    """
    return _find("suite", name, _suites, "`bench list suites` explains them.")[1]


def suite_name(paper: Paper, name: str) -> str:
    """The unique name of a paper's suite, with PAPER/ if needed."""
    return _asked_for(paper, name, _suites)


def table_name(paper: Paper, name: str) -> str:
    """The unique name of a paper's table, with PAPER/ if needed."""
    return _asked_for(paper, name, lambda other: other.tables)


def find_version(name: str) -> tuple[Paper, str]:
    """The paper and the version with this name, which may be PAPER/VERSION.

    Raises:
        BenchError: there is none, or several papers have one.
    """
    return _find("version of the paper", name, lambda paper: {v: v for v in paper.versions})


def recipes() -> dict[str, Recipe]:
    """The recipes of all papers by name; PAPER/NAME if several papers have a recipe of this name."""
    return {name: recipe for name, (_, recipe) in by_name(_recipes).items()}


def version_of(preset: str, version: str | None) -> str | None:
    """PAPER/VERSION whose numbers a run at a preset can be compared with, by default the paper's first version.

    None if the preset is no paper's, or the paper has no published numbers.
    """
    if version is not None:
        paper, name = find_version(version)
        return f"{paper.name}/{name}" if paper.numbers else None
    fitting = (paper for paper in papers.values() if preset in paper.presets and paper.numbers)
    return next((f"{paper.name}/{next(iter(paper.versions))}" for paper in fitting), None)


def find_recipe(name: str) -> Recipe:
    """The recipe with this name, which may be PAPER/NAME.

    Raises:
        BenchError: there is none, or several papers have one.
    """
    return _find("recipe", name, _recipes, "`bench list recipes` explains them.")[1]


def chains() -> tuple[str, ...]:
    """The chains of defenses of all papers, each once."""
    return tuple(dict.fromkeys(chain for paper in papers.values() for chain in paper.chains))


def variants_in_matrix() -> set[str]:
    """The names of the variants that figures show beside the defenses."""
    shown = (suite for suite in suites().values() if suite.in_matrix)
    return {name for suite in shown for embedded in (False, True) for name in suite.declared(embedded)}


def figures() -> dict[str, PaperFigure]:
    """The figures of all papers that are no sweep's, by name."""
    return {name: figure for name, (_, figure) in by_name(lambda paper: paper.figures).items()}


def sweeps() -> dict[str, tuple[str, Sweep]]:
    """The sweeps that have a figure, by its name, with the names of their suites."""
    shown = by_name(_sweeps)
    return {name: (suite_name(paper, suite), sweep) for name, (paper, (suite, sweep)) in shown.items()}


def drawings() -> dict[str, str]:
    """The figures that show no measurement, by name, each with what it shows."""
    return {name: shown for name, (_, shown) in by_name(lambda paper: paper.drawings).items()}


def _sweeps(paper: Paper) -> dict[str, tuple[str, Sweep]]:
    return {s.figure: (name, s) for name, suite in paper.suites.items() for s in suite.sweeps if s.figure}


def _suites(paper: Paper) -> Mapping[str, Suite]:
    return paper.suites


def _recipes(paper: Paper) -> Mapping[str, Recipe]:
    return paper.recipes


def _asked_for(paper: Paper, name: str, items: Callable[[Paper], Mapping[str, T]]) -> str:
    return name if name in by_name(items) else f"{paper.name}/{name}"


def _find(kind: str, name: str, items: Callable[[Paper], Mapping[str, T]], hint: str = "") -> tuple[Paper, T]:
    known = by_name(items)
    if name in known:
        return known[name]
    of, _, plain = name.partition("/")
    if of in papers and plain in items(papers[of]):
        return papers[of], items(papers[of])[plain]
    if several := [full for full in known if full.endswith(f"/{name}")]:
        raise BenchError(f"several papers have a {kind} '{name}': write {' or '.join(several)}. {hint}")
    raise unknown(kind, name, known, hint)
