"""`bench data`: check data sets before they are used."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import bench
from bench.core.registry import load_plugins

app = typer.Typer(help="Look at data sets.", no_args_is_help=True, rich_markup_mode="rich")
screen = Console(markup=False, highlight=False)


@app.callback()
def data() -> None:
    """Look at data sets."""


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="A data set; `bench list datasets`.")],
    data_root: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    set: Annotated[list[str], typer.Option("--set", help="A setting: caltech101.split=seeded. Repeatable.")] = [],  # noqa: B006
    plugin: Annotated[list[Path], typer.Option(help="A Python file that registers data sets. Repeatable.")] = [],  # noqa: B006
) -> None:
    """Show which files of a data set are present or missing, and how to get them. Exit code 2: a run cannot use it."""
    from bench.data.check import lines
    from bench.experiment.settings import resolve

    load_plugins(tuple(plugin))
    dataset = bench.datasets[name]
    flags = {name: {"root": data_root}} if data_root is not None else {}
    report, usable = lines(dataset.parse(resolve(flags=flags, assignments=tuple(set)).method(name), name))
    for line in report:
        screen.print(line, soft_wrap=True)
    if not usable:
        raise typer.Exit(2)
