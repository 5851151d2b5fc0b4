"""Papers as data: a folder for each, with settings, suites, tables and published numbers.

The folders in this package are bench's own. A plug-in file adds others:

    from pathlib import Path

    import bench.papers

    bench.papers.register(Path(__file__).parent / "my_paper")
"""

from pathlib import Path

from bench.papers.library import (
    chains,
    drawings,
    figures,
    find_recipe,
    find_suite,
    find_version,
    papers,
    recipes,
    register,
    register_all,
    suite_name,
    suites,
    sweeps,
    table_name,
    variants_in_matrix,
    version_of,
)
from bench.papers.paper import Axis, Method, Paper, PaperFigure, PaperTable, Place, Recipe, Suite, Sweep

__all__ = [
    "Axis",
    "Method",
    "Paper",
    "PaperFigure",
    "PaperTable",
    "Place",
    "Recipe",
    "Suite",
    "Sweep",
    "chains",
    "drawings",
    "figures",
    "find_recipe",
    "find_suite",
    "find_version",
    "papers",
    "recipes",
    "register",
    "suite_name",
    "suites",
    "sweeps",
    "table_name",
    "variants_in_matrix",
    "version_of",
]

register_all(Path(__file__).parent)
