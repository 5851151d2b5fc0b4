"""`bench paper`: all tables and figures of a paper, measured on the embedded world into one folder."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from bench.core.errors import BenchError, unknown
from bench.core.names import comma_separated
from bench.core.registry import load_plugins

if TYPE_CHECKING:
    from bench.matrix.paper_runs import PaperRun

screen = Console(markup=False, highlight=False)


def paper(
    name: Annotated[str, typer.Argument(help="`bench list papers`.")],
    seeds: Annotated[str, typer.Option(help="Seeds of runs without variants, by comma.")] = "0,1,2",
    variant_seeds: Annotated[str, typer.Option(help="Seeds of suites with variants, such as ablations.")] = "0",
    suites: Annotated[str, typer.Option(help="Run these suites alone, by comma.")] = "",
    attacks: Annotated[str, typer.Option(help="Run these attacks alone, by comma.")] = "",
    set: Annotated[list[str], typer.Option("--set", help="One setting of all runs: key=value. Repeatable.")] = [],  # noqa: B006
    plugin: Annotated[list[Path], typer.Option(help="A Python file of methods or papers. Repeatable.")] = [],  # noqa: B006
    out: Annotated[Path, typer.Option(help="The results folder.")] = Path("results/paper"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the runs and their time; make nothing.")] = False,
    times: Annotated[list[Path], typer.Option(help="Of the dry run: folders of earlier runs on this machine.")] = [],  # noqa: B006
) -> None:
    """Measure all tables and figures of a paper on the embedded world. Interrupted, the same command goes on."""
    from bench.matrix.paper_runs import paper_runs
    from bench.papers import papers

    load_plugins(tuple(plugin))
    if name not in papers:
        raise unknown("paper", name, papers)
    given = (_numbers("--seeds", seeds), _numbers("--variant-seeds", variant_seeds))
    runs = paper_runs(papers[name], *given, set, comma_separated(suites), comma_separated(attacks))
    if dry_run:
        _forecast(runs, out, [out, *times])
        return
    failed = _run(runs, out, tuple(plugin))
    _report(out, f"{name}/{next(iter(papers[name].versions))}" if papers[name].numbers else None)
    if failed:
        screen.print("these runs are not whole; the same command tries them again:")
        for line in failed:
            screen.print(f"  {line}", soft_wrap=True)
        raise typer.Exit(1)


def _run(runs: Sequence["PaperRun"], out: Path, plugins: tuple[Path, ...]) -> list[str]:
    """Run one after the other; why which of them are not whole."""
    from bench.matrix.runner import run_matrix

    failed = []
    for number, run in enumerate(runs, 1):
        screen.rule(f"{number} of {len(runs)}: {run.name}")
        for variant, reason in run.left_out.items():
            screen.print(f"left out: {variant}, because {reason}", soft_wrap=True)
        try:
            ended = run_matrix(run.variants, out, plugins, screen)
        except KeyboardInterrupt:
            screen.print("interrupted. Finished work is kept: the same command goes on from there.")
            raise typer.Exit(130) from None
        except BenchError as error:
            failed.append(f"{run.name}: {error}")
            continue
        failed += [f"{run.name}: {label}: {reason}" for label, reason in ended.failures.items()]
    return failed


def _report(out: Path, published: str | None) -> None:
    from bench.results.folder import ResultsFolder
    from reports.figures import draw_all
    from reports.page import write_page
    from reports.report import write_report

    folder = ResultsFolder(out)
    screen.print("\n" + write_report(folder, published), soft_wrap=True)
    drawn = draw_all(folder)
    for figure in drawn:
        screen.print(f"{figure.name}: {figure.missing or figure.title}", soft_wrap=True)
    screen.print(f"wrote {write_page(folder, drawn)}")


def _forecast(runs: Sequence["PaperRun"], out: Path, folders: Sequence[Path]) -> None:
    """Print each run, what it has to make that no run before it makes, and for how long."""
    from bench.experiment.settings import BASE
    from bench.matrix.dry_run import plan_at_hand, show_missing
    from bench.matrix.forecast import LikeTimes
    from bench.matrix.runner import unmade
    from bench.results.store import Store

    usual = runs[-1].variants[BASE]
    known, planned, missing = LikeTimes(folders, usual.model), dict[str, float | None](), list[str]()
    table = Table("run", "seeds", "cells", "to make", "hours of one process", box=None)
    for run in runs:
        plan, lacking = plan_at_hand(run.variants, out)
        missing += lacking
        todo = [node for node in unmade(plan, Store(out)) if node.id not in planned]
        of_run = {node.id: known.of(node, run.variants[node.variant]) for node in todo}
        planned |= of_run
        seeds = ",".join(map(str, run.variants[BASE].seeds))
        table.add_row(run.name, seeds, str(len(plan.cells)), str(len(todo)), _hours(of_run.values()))
    screen.print(table)
    processes, times = usual.execution.processes_on("cpu"), list(planned.values())
    screen.print(f"{len(times)} artefacts to make; hours in {processes} process(es): {_hours(times, processes)}")
    if None in times:
        screen.print(
            f"For {times.count(None)} of them there is no like artefact in {', '.join(map(str, folders))}. "
            "A run of one attack and all defenses, in one of these or in a folder of --times, tells more.",
            soft_wrap=True,
        )
    show_missing(missing, screen)


def _hours(seconds: Iterable[float | None], processes: int = 1) -> str:
    """The sum of those that are known."""
    times = list(seconds)
    known = [time for time in times if time is not None]
    if times and not known:
        return "unknown"
    return f"{sum(known) / processes / 3600:.2f}" + (" or more" if None in times else "")


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, comma_separated(text)))
    except ValueError:
        raise BenchError(f"{option} {text}: write whole numbers, such as {option} 0,1,2") from None
