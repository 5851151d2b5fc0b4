"""The commands for finished results: `bench verify`, `compare`, `baseline`, `check`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

import bench
from bench.core.errors import BenchError
from bench.core.names import comma_separated

if TYPE_CHECKING:
    from bench.results.folder import ResultsFolder

app = typer.Typer(rich_markup_mode="rich")
screen = Console(markup=False, highlight=False)

Results = Annotated[Path, typer.Argument(help="A results folder.")]


@app.command()
def verify(out: Results = Path("results")) -> None:
    """Recompute every number from the stored predictions and compare; exit code 1 if something differs."""
    from reports.verify import verify as verify_results

    result = verify_results(_open(out))
    _say(result.text())
    if result.problems:
        raise typer.Exit(1)


@app.command()
def compare(
    out: Results,
    first: Annotated[str, typer.Argument(help="A defense or chain.")],
    second: Annotated[str, typer.Argument(help="Another one.")],
    attack: Annotated[str | None, typer.Option(help="One attack; default: all.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the table to this file, too.")] = None,
) -> None:
    """Differences of ASR and CA of two defenses on the same images, with intervals and McNemar's test."""
    from reports.compare import compare as compare_defenses
    from reports.compare import to_markdown

    table, unpaired = compare_defenses(_open(out), first, second, attack)
    _say(to_markdown(table, first, second))
    if unpaired:
        _say(f"\nLeft out, as only one of the two is finished: {unpaired}.")
    if csv is not None:
        _write(csv, table.to_csv(index=False))


@app.command()
def baseline(
    results: Annotated[Path, typer.Argument(help="A results folder; or a baseline, to add reruns to it.")],
    out: Annotated[Path, typer.Option(help="The file to write: JSON.")],
    others: Annotated[
        list[Path] | None,
        typer.Argument(help="Results or baselines of the same settings from elsewhere: how far they differ."),
    ] = None,
    reruns: Annotated[
        int,
        typer.Option(min=0, help="Defend the same models so often again, with other rounding errors, and add that."),
    ] = 0,
) -> None:
    """Write the numbers of a results folder, seed by seed, as the baseline that `bench check` compares with.

    Reruns are kept in RESULTS/reruns; interrupted, the same command goes on.
    """
    from reports.baseline import add_rerun, refuse_single_seeds, to_json

    made = _baseline_of(results)
    refuse_single_seeds(made)
    for other in others or ():
        add_rerun(made, _baseline_of(other), str(other), str(results))
    for rerun in _rerun(results, reruns):
        add_rerun(made, _baseline_of(rerun), str(rerun), str(results), may_repeat=True)
    _write(out, to_json(made))
    unfinished = 0 if _is_baseline(results) else len(_open(results).unfinished)
    left_out = f", {unfinished} left out as unfinished" if unfinished else ""
    _say(f"wrote {out}: {len(made['cells'])} cells{left_out}. `bench check RESULTS --baseline {out}` compares with it.")


@app.command()
def check(
    out: Results,
    baseline: Annotated[Path, typer.Option(help="The file that `bench baseline` wrote.")],
    tolerance: Annotated[
        float, typer.Option(min=0, max=100, help="Percentage points beyond the prediction interval that are accepted.")
    ] = 0.0,
    judged: Annotated[
        str | None, typer.Option("--metrics", help="Metrics to judge, by comma; default: those of the main tables.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write the verdicts as JUnit XML, too.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write them as Markdown, too, for a CI's summary.")] = None,
    explained: Annotated[bool, typer.Option("--explain", help="Say which changes would be seen.")] = False,
) -> None:
    """Compare with a baseline: exit code 1 if a number is worse beyond chance or missing, 2 if not comparable."""
    from reports.baseline import make_baseline, read_baseline
    from reports.gate import exit_code, explain, judge, to_junit, to_markdown

    before = read_baseline(baseline)
    now = make_baseline(_open(out))
    names = None if judged is None else tuple(dict.fromkeys(comma_separated(judged)))
    if names == ():
        raise BenchError("--metrics names none. `bench list metrics` lists them")
    for name in names or ():
        bench.metrics[name]
    findings = judge(before, now, names, tolerance)
    text = to_markdown(findings, before, now, tolerance)
    if explained:
        text += "\n" + explain(findings)
    if junit is not None:
        _write(junit, to_junit(findings))
    if markdown is not None:
        _write(markdown, text)
    _say(text)
    raise typer.Exit(exit_code(findings))


def _rerun(results: Path, times: int) -> list[Path]:
    """The folders of reruns of a results folder."""
    from bench.matrix.rerun import rerun

    if times and _is_baseline(results):
        raise BenchError(
            f"{results} is a baseline. Reruns need the models: `bench baseline RESULTS --reruns {times} --out FILE`"
        )
    folders = {draw: results / "reruns" / str(draw) for draw in range(1, times + 1)}
    for draw, folder in folders.items():
        screen.rule(f"rerun {draw} of {times}")
        rerun(_open(results), folder, draw, console=screen)
    return list(folders.values())


def _baseline_of(path: Path) -> dict[str, Any]:
    """The baseline in a file, or of a results folder."""
    from reports.baseline import make_baseline, read_baseline

    return read_baseline(path) if _is_baseline(path) else make_baseline(_open(path))


def _is_baseline(path: Path) -> bool:
    return path.is_file() or path.suffix == ".json"


def _open(out: Path) -> "ResultsFolder":
    from bench.results.folder import ResultsFolder

    return ResultsFolder(out)


def _write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    except OSError as error:
        raise BenchError(f"{file} cannot be written: {error.strerror}. Give another file.") from None


def _say(text: str) -> None:
    screen.print(text, soft_wrap=True)
