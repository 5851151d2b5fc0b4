"""`bench data`: get data sets, and check them before they are used."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import bench
from bench.core.errors import unknown
from bench.core.registry import load_plugins

app = typer.Typer(help="Get data sets, and look at them.", no_args_is_help=True, rich_markup_mode="rich")
screen = Console(markup=False, highlight=False)


@app.callback()
def data() -> None:
    """Get data sets, and look at them."""


@app.command()
def get(
    name: Annotated[str, typer.Argument(help="A data set; `bench list datasets`; or cc3m.")],
    data_root: Annotated[Path, typer.Option(help="Where it is to lie.")],
    mirror: Annotated[
        str | None, typer.Option(help="An address that has the publisher's files by their names.")
    ] = None,
) -> None:
    """Download a data set and unpack it; or say whom to ask for it, and how to lay it out (exit code 2).

    Interrupted, the same command goes on where it was. What is there already is not fetched again.
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from bench.core.progress import Step, listening
    from bench.data.check import lines
    from bench.data.download import get as get_archive
    from bench.data.on_request import on_request

    load_plugins()
    if report := on_request(name):
        screen.print(report, soft_wrap=True)
        raise typer.Exit(2)
    dataset = bench.datasets[name].parse({"root": data_root}, name)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=screen, disable=not screen.is_terminal) as bars:
        shown = bars.add_task("", visible=False)

        def show(step: Step) -> None:
            bars.update(shown, description=step.what, completed=step.done, total=step.total, visible=True)

        with listening(show):
            for archive in getattr(dataset, "archives", ()):
                fetched = get_archive(archive, data_root, mirror)
                bars.print(f"{archive.gives}: {'downloaded' if fetched else 'is there'}")
    found, usable = lines(dataset)
    for line in found:
        screen.print(line, soft_wrap=True)
    if not usable:
        raise typer.Exit(2)


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="A data set; `bench list datasets`; or cc3m.")],
    data_root: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    set: Annotated[list[str], typer.Option("--set", help="A setting: caltech101.split=seeded. Repeatable.")] = [],  # noqa: B006
    plugin: Annotated[list[Path], typer.Option(help="A Python file that registers data sets. Repeatable.")] = [],  # noqa: B006
) -> None:
    """Show which files of a data set are present or missing, and how to get them. Exit code 2: a run cannot use it."""
    from bench.data.check import lines
    from bench.data.on_request import CC3M, pairs_lines
    from bench.experiment.settings import resolve

    load_plugins(tuple(plugin))
    if name == CC3M:
        report, usable = pairs_lines(data_root)
        for line in report:
            screen.print(line, soft_wrap=True)
        raise typer.Exit(0 if usable else 2)
    if name not in bench.datasets:
        raise unknown("dataset", name, [*bench.datasets, CC3M], "`bench list datasets` explains them.")
    dataset = bench.datasets[name]
    flags = {name: {"root": data_root}} if data_root is not None else {}
    report, usable = lines(dataset.parse(resolve(flags=flags, assignments=tuple(set)).method(name), name))
    for line in report:
        screen.print(line, soft_wrap=True)
    if not usable:
        raise typer.Exit(2)
