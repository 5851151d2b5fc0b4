"""The papers that bench knows, and what is asked for by name: suites and versions of all of them."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from bench.core.errors import BenchError, unknown
from bench.papers.paper import Paper, Suite, Sweep, Values
from bench.papers.reading import PAPER, read_paper

T = TypeVar("T")
papers: dict[str, Paper] = {}


def register(folder: Path) -> Paper:
    """Add the paper that a folder holds; a plug-in file calls it, or `bench` for its own.

    Raises:
        BenchError: the folder is not what a paper's must be, or another one of its name is there.
    """
    paper = read_paper(folder.resolve())
    known = papers.get(paper.name)
    if known is not None and known.folder != paper.folder:
        raise BenchError(f"two papers are called '{paper.name}': {known.folder} and {paper.folder}. Rename a folder.")
    papers[paper.name] = paper
    return paper


def register_all(folder: Path) -> None:
    """Add the papers of a folder of folders."""
    for file in sorted(folder.glob(f"*/{PAPER}")):
        register(file.parent)


def by_name(items: Callable[[Paper], Mapping[str, T]]) -> dict[str, tuple[Paper, T]]:
    """Things of all papers, under the names to ask for them: PAPER/NAME where several papers have one of a name."""
    counts = Counter(name for paper in papers.values() for name in items(paper))
    return {
        name if counts[name] == 1 else f"{paper.name}/{name}": (paper, item)
        for paper in papers.values()
        for name, item in items(paper).items()
    }


def suites() -> dict[str, Suite]:
    """The suites of all papers, under the names to ask for them."""
    return {name: suite for name, (_, suite) in by_name(_suites).items()}


def find_suite(name: str) -> Suite:
    """The suite of a name, which may be PAPER/NAME.

    Raises:
        BenchError: there is none, or several papers have one.
    """
    return _find("suite", name, _suites, "`bench list suites` explains them.")[1]


def suite_name(paper: Paper, name: str) -> str:
    """What to ask for a suite of a paper by."""
    return _asked_for(paper, name, _suites)


def table_name(paper: Paper, name: str) -> str:
    """What to call a table of a paper by, beside those of all papers."""
    return _asked_for(paper, name, lambda other: other.tables)


def find_version(name: str) -> tuple[Paper, str]:
    """The paper and its version of a name, which may be PAPER/VERSION.

    Raises:
        BenchError: there is none, or several papers have one.
    """
    return _find("version of the paper", name, lambda paper: {v: v for v in paper.versions})


def find_recipe(name: str) -> Values:
    """The settings of a recipe of a name, which may be PAPER/NAME.

    Raises:
        BenchError: there is none, or several papers have one.
    """
    return _find("recipe", name, lambda paper: paper.recipes, "docs/fidelity.md explains them.")[1]


def chains() -> tuple[str, ...]:
    """The chains of defenses of all papers, each once."""
    return tuple(dict.fromkeys(chain for paper in papers.values() for chain in paper.chains))


def variants_in_matrix() -> set[str]:
    """The names of the variants that figures show beside the defenses."""
    shown = (suite for suite in suites().values() if suite.in_matrix)
    return {name for suite in shown for embedded in (False, True) for name in suite.declared(embedded)}


def figures() -> dict[str, tuple[str, Sweep]]:
    """The sweeps that a figure shows, by the figure's name, each with the name of its suite."""
    shown = by_name(_figures)
    return {name: (suite_name(paper, suite), sweep) for name, (paper, (suite, sweep)) in shown.items()}


def _figures(paper: Paper) -> dict[str, tuple[str, Sweep]]:
    return {s.figure: (name, s) for name, suite in paper.suites.items() for s in suite.sweeps if s.figure}


def _suites(paper: Paper) -> Mapping[str, Suite]:
    return paper.suites


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
