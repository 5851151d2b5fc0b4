"""The face, of one checkpoint: `bench audit FILE`, `bench audit calibrate`, `bench purify FILE`."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from bench.core.names import comma_separated

# Of decoded images, in the folder of a report.
CACHE = "data"
screen = Console(markup=False, highlight=False)
# Apart from the report, which may go into a file.
progress = Console(stderr=True, markup=False, highlight=False)


class FileOrCommand(TyperGroup):
    """`bench audit FILE` is short for `bench audit checkpoint FILE`."""

    default = "checkpoint"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [self.default, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=FileOrCommand,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Is a checkpoint backdoored, towards what? `bench audit FILE` is short for `bench audit checkpoint FILE`.",
)

Checkpoint = Annotated[Path, typer.Argument(help="A file of weights, or a folder with an open_clip_config.json.")]
Model = Annotated[str, typer.Option(help="The architecture of a file: mini, or an open_clip name (ViT-B-32).")]
Reference = Annotated[
    str | None,
    typer.Option(help="What it was fine-tuned from: mini, a tag of open_clip's (openai), or a file or folder."),
]
Images = Annotated[
    Path | None, typer.Option(help="A folder of images, labelled or not; default of mini: the embedded world's.")
]
Classes = Annotated[
    str | None, typer.Option(help="Names among which the target is looked for: a file, a name a line, or a data set.")
]
Families = Annotated[
    str, typer.Option(help="Kinds of triggers to look for, by comma; square:0.2: a fifth of the side.")
]
Budget = Annotated[str, typer.Option(help="quick, standard or thorough.")]
CalibrationFile = Annotated[
    Path | None, typer.Option("--calibration", help="A file of `bench audit calibrate`; default: the shipped one.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of all that is drawn.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]


@app.command("checkpoint")
def checkpoint(
    file: Checkpoint,
    model: Model = "mini",
    reference: Reference = None,
    images: Images = None,
    classes: Classes = None,
    families: Families = "square,blend,warp",
    budget: Budget = "standard",
    calibration: CalibrationFile = None,
    out: Annotated[Path, typer.Option(help="A folder for the report.")] = Path("audit"),
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Audit a checkpoint: exit code 0 nothing found, 3 suspicious, 4 backdoored, 2 cannot tell."""
    from bench.checkpoints.auditing import audit_subject, calibration_for
    from bench.checkpoints.subject import open_subject
    from bench.detection.calibration import effort_of
    from bench.experiment.resources import open_device
    from bench.matrix.watch import following
    from reports.audit import write_audit

    names = comma_separated(families)
    subject = open_subject(file, model, reference, images, classes, out / CACHE, open_device(device))
    effort = effort_of(budget)
    known = calibration_for(subject, effort, calibration, names)
    with following(progress, f"audit of {file}"):
        found = audit_subject(subject, names, effort, known, seed)
    screen.print(write_audit(found, subject, out, known), soft_wrap=True)
    raise typer.Exit(found.exit_code)


@app.command("calibrate")
def calibrate(
    out: Annotated[Path, typer.Option(help="The file to write: JSON, for --calibration.")],
    negatives: Annotated[
        int, typer.Option(help="Clean models to make; p is no smaller than 1 / (negatives + 1).")
    ] = 60,
    attacks: Annotated[str, typer.Option(help="Backdoored models to audit beside, by comma, for error rates.")] = "",
    targets: Annotated[str, typer.Option(help="Their target classes, by comma; default: the preset's.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Backdoored models of each attack and target.")] = 1,
    work: Annotated[Path | None, typer.Option(help="Where the models are kept; default: beside the file.")] = None,
    preset: Annotated[str, typer.Option(help="The reference, data and recipe; `bench list presets`.")] = "mini",
    set: Annotated[list[str], typer.Option("--set", help="One setting, key=value. Repeatable.")] = [],  # noqa: B006
    budget: Budget = "standard",
    workers: Annotated[int | None, typer.Option(help="Processes; numbers do not depend on it.")] = None,
) -> None:
    """Fine-tune the reference on honest data many times and audit each: what p values are read from.

    Interrupted, the same command goes on where it was. Models that are in the file `--out` already are not made again.
    """
    from bench.checkpoints.calibrate import calibrate as make
    from bench.core.registry import load_plugins
    from bench.detection.calibration import effort_of, read_calibration
    from bench.experiment.settings import resolve
    from reports.calibration import calibration_text

    load_plugins()
    flags = {} if workers is None else {"execution": {"workers": workers}}
    run = resolve(preset, None, flags, tuple(set))
    names, towards = comma_separated(attacks), comma_separated(targets)
    command = f"bench audit calibrate --preset {preset} --negatives {negatives} --budget {budget}"
    command += f" --attacks {attacks} --seeds {seeds}" if names else ""
    command += f" --targets {targets}" if towards else ""
    command += "".join(f" --set {one}" for one in set)
    zoo = work or out.with_name(f"{out.stem}_zoo")
    earlier = read_calibration(out) if out.is_file() else None
    known = () if earlier is None else earlier.negatives + earlier.positives
    made = make(run, effort_of(budget), zoo, negatives, names, towards, seeds, known, command, screen)
    made.save(out)
    screen.print(calibration_text(made), soft_wrap=True)
    screen.print(f"wrote {out}; `bench audit FILE --calibration {out}` reads it")


def purify(
    file: Checkpoint,
    out: Annotated[Path, typer.Option(help="A new folder for the purified model.")],
    method: Annotated[str, typer.Option(help="auto, cut, unlearn, distill or rvpt.")] = "auto",
    model: Model = "mini",
    reference: Reference = None,
    images: Images = None,
    classes: Classes = None,
    families: Families = "square,blend,warp",
    budget: Budget = "standard",
    calibration: CalibrationFile = None,
    preset: Annotated[str | None, typer.Option(help="Settings of the methods; default: mini's for its size.")] = None,
    set: Annotated[list[str], typer.Option("--set", help="One setting, such as cut.rank=2. Repeatable.")] = [],  # noqa: B006
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Write a checkpoint without its backdoor. Exit code 5, and nothing written: it lost 3 points of clean accuracy."""
    from bench.checkpoints.auditing import calibration_for
    from bench.checkpoints.purify import METHODS, purify_subject
    from bench.checkpoints.subject import open_subject, preset_for
    from bench.core.errors import unknown
    from bench.core.registry import load_plugins
    from bench.detection.calibration import effort_of
    from bench.experiment.resources import open_device
    from bench.experiment.settings import resolve
    from bench.matrix.watch import following
    from reports.purified import check_new, write_purified

    load_plugins()
    check_new(out)
    chosen = next((name for name in METHODS if name == method), None)
    if chosen is None:
        raise unknown("method", method, METHODS)
    names = comma_separated(families)
    effort = effort_of(budget)
    with TemporaryDirectory() as cache:
        subject = open_subject(file, model, reference, images, classes, Path(cache), open_device(device), repairs=True)
        settings = resolve(preset or preset_for(subject.clip), assignments=tuple(set))
        known = calibration_for(subject, effort, calibration, names)
        with following(progress, f"purifying {file}"):
            purified = purify_subject(subject, chosen, settings, effort, known, names, seed)
    screen.print(write_purified(purified, subject, out, known), soft_wrap=True)
    if purified.refused:
        raise typer.Exit(5)
