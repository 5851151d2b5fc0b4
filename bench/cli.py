"""The face: `bench run`, `list`, `show`, `triggers`, `report`, `pretrain`.

Each command imports what it needs: torch alone takes longer than `bench --help`.
"""

import inspect
import signal
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import bench
from bench import cli_audit, cli_data, cli_gate, cli_paper
from bench.core.errors import BenchError, unknown
from bench.core.names import comma_separated
from bench.core.registry import load_plugins, origin

if TYPE_CHECKING:
    from bench.core.settings import Settings
    from bench.results.folder import ResultsFolder

app = typer.Typer(
    help="Backdoor attacks on CLIP against defenses: numbers with intervals.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
# Paths and names may hold brackets, which are no markup.
screen = Console(markup=False, highlight=False)
KINDS = (
    "attacks", "defenses", "tasks", "metrics", "datasets", "presets", "papers", "recipes", "suites", "models",
)  # fmt: skip
# The kinds of methods that `bench show` looks for, the slowest to import last.
SHOWN = {"attacks": "attack", "defenses": "defense", "tasks": "task", "metrics": "metric", "datasets": "data set"}

RUN_EXAMPLES = (
    "bench run --attacks all --defenses rvpt,vpt --seeds 0,1,2",
    "bench run --preset smoke --dry-run",
    "bench run --dataset folder --data-root DIR --target NAME --pairs pairs.csv "
    "--model ViT-B-32 --pretrained openai --preset vit-b-32",
)


def _examples(commands: Sequence[str]) -> str:
    """Examples as they stand below the options in `--help`, a paragraph each."""
    return "\n\n".join(["For example:", *commands])


def _names(text: str | None) -> tuple[str, ...] | None:
    return comma_separated(text) if text is not None else None


def _seeds(text: str | None) -> tuple[int, ...] | None:
    try:
        return tuple(map(int, names)) if (names := _names(text)) is not None else None
    except ValueError:
        raise BenchError(f"--seeds {text}: write whole numbers, such as --seeds 0,1,2") from None


def _with(tasks: str | None, auditors: str | None) -> tuple[str, ...] | None:
    """The tasks of a run with auditors, which are tasks; of auditors alone, zero-shot classification stays."""
    if auditors is None:
        return _names(tasks)
    load_plugins(only="tasks")
    from bench.builtin_tasks.auditor import Auditor

    known = [name for name in bench.tasks if issubclass(bench.tasks[name], Auditor)]
    chosen = known if auditors == "all" else _names(auditors) or ()
    if not chosen:
        raise BenchError(f"--auditors names none. Known: {', '.join(known)}; `--auditors all` takes all.")
    for name in chosen:
        if name not in known:
            raise unknown("auditor", name, known)
    return (*(_names(tasks) or ("zero_shot",)), *chosen)


# The flags that say how a run is executed.
EXECUTION = ("device", "workers", "executor")
# Groups of options in `--help`.
WHAT, MODEL, DATA = "What to run", "Model", "Data"
SETTINGS, HOW, DRY_RUN = "Settings", "Execution", "Dry run"


def _option(group: str, help: str, *names: str, **limits: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=group, **limits)


# B006 below: Typer wants a list as the default of a repeatable option, and nothing changes it.
Attacks = Annotated[str | None, _option(WHAT, "Attacks, by comma, or all.")]
Model = Annotated[str | None, _option(MODEL, "mini, an open_clip name (ViT-B-32), hf-hub:..., local-dir:...")]
Pretrained = Annotated[str | None, _option(MODEL, "open_clip's weights, such as openai.")]
Checkpoint = Annotated[Path | None, _option(MODEL, "A local file of weights: .safetensors, or .pt of tensors.")]
Backdoored = Annotated[
    Path | None, _option(MODEL, "Weights that were backdoored elsewhere: defend these, poison nothing.")
]
DataSet = Annotated[str | None, _option(DATA, "`bench list datasets`.", "--dataset")]
DataRoot = Annotated[Path | None, _option(DATA, "Where the data set lies.")]
Target = Annotated[str | None, _option(DATA, "The target class, by name.")]
Pairs = Annotated[Path | None, _option(DATA, "Image-text pairs: a CSV of image paths and captions.")]
Preset = Annotated[str, _option(SETTINGS, "Settings to start from; `bench list presets`.")]
Config = Annotated[Path | None, _option(SETTINGS, "A YAML file of settings, on top of the preset.")]
Set = Annotated[list[str], _option(SETTINGS, "One setting: key=value, such as rvpt.alpha=3. Repeatable.", "--set")]
Plugin = Annotated[list[Path], _option(SETTINGS, "A Python file that registers methods. Repeatable.")]
Out = Annotated[Path, _option(HOW, "The results folder.")]
Device = Annotated[str | None, _option(HOW, "auto, cpu, cuda, cuda:1 ...")]


def _settings(
    preset: str,
    config: Path | None,
    assignments: list[str],
    plugins: list[Path],
    model: str | None = None,
    pretrained: str | None = None,
    checkpoint: Path | None = None,
    dataset: str | None = None,
    data_root: Path | None = None,
    backdoored: Path | None = None,
    paper: str | None = None,
    suite: str | None = None,
    recipe: str | None = None,
    **flags: Any,
):
    from bench.experiment.settings import resolve
    from bench.experiment.suites import suite_settings

    load_plugins(tuple(plugins))
    declared = suite_settings(suite)
    values: dict[str, Any] = {k: v for k, v in flags.items() if v is not None}
    values["execution"] = {name: values.pop(name) for name in EXECUTION if name in values}
    options = {"name": model, "pretrained": pretrained, "checkpoint": checkpoint, "backdoored": backdoored}
    if chosen := {k: v for k, v in options.items() if v is not None}:
        values["model"] = chosen
    if dataset is not None:
        values["dataset"] = dataset
    if data_root is not None:
        named = dataset or resolve(preset, config, {}, tuple(assignments)).dataset
        if bench.datasets[named].embedded:
            raise BenchError("--data-root needs --dataset NAME, such as --dataset folder")
        values[named] = {"root": data_root}
    return resolve(preset, config, values, tuple(assignments), paper, declared, recipe)


@app.command(epilog=_examples(RUN_EXAMPLES))
def run(
    attacks: Attacks = None,
    defenses: Annotated[str | None, _option(WHAT, "Defenses and chains (a+b), by comma, or all.")] = None,
    tasks: Annotated[str | None, _option(WHAT, "What is measured, by comma, or all.")] = None,
    auditors: Annotated[str | None, _option(WHAT, "Detectors of backdoored models, by comma, or all.")] = None,
    seeds: Annotated[str | None, _option(WHAT, "Seeds, by comma.")] = None,
    suite: Annotated[str | None, _option(WHAT, "The cells of a table or figure; `bench list suites`.")] = None,
    model: Model = None,
    pretrained: Pretrained = None,
    checkpoint: Checkpoint = None,
    backdoored: Backdoored = None,
    dataset: DataSet = None,
    data_root: DataRoot = None,
    target: Target = None,
    pairs: Pairs = None,
    preset: Preset = "mini",
    paper: Annotated[str | None, _option(SETTINGS, "A paper's version, such as v3, on a preset of it.")] = None,
    recipe: Annotated[str | None, _option(SETTINGS, "Another way to run a paper; `bench list recipes`.")] = None,
    config: Config = None,
    set: Set = [],  # noqa: B006
    plugin: Plugin = [],  # noqa: B006
    out: Out = Path("results"),
    device: Device = None,
    workers: Annotated[int | None, _option(HOW, "Processes; numbers do not depend on it.")] = None,
    executor: Annotated[str | None, _option(HOW, "local, or ray: a Ray cluster.")] = None,
    dry_run: Annotated[bool, _option(DRY_RUN, "Print cells, sharing, and costs; make nothing.", "--dry-run")] = False,
    speed: Annotated[
        float, _option(DRY_RUN, "Speed of the GPU for the estimate, relative to an RTX 3090.", min=0.01)
    ] = 1.0,
) -> None:
    """Run attacks against defenses. Interrupted, the same command goes on where it was."""
    from bench.experiment.suites import variants_of
    from bench.matrix.dry_run import dry_run as show_dry_run
    from bench.matrix.runner import run_matrix
    from bench.matrix.schedule import NOT_TRIED
    from bench.papers import version_of
    from bench.results.folder import ResultsFolder

    settings = _settings(
        preset, config, set, plugin, model, pretrained, checkpoint, dataset, data_root,
        backdoored, paper, suite, recipe, attacks=_names(attacks), defenses=_names(defenses),
        tasks=_with(tasks, auditors), seeds=_seeds(seeds), target=target, pairs=pairs, device=device, workers=workers,
        executor=executor,
    )  # fmt: skip
    variants, left_out = variants_of(settings, suite)
    for name, reason in left_out.items():
        screen.print(f"left out: {name}, because {reason}")
    if dry_run:
        show_dry_run(variants, out, screen, speed)
        return
    try:
        ended = run_matrix(variants, out, tuple(plugin), screen)
    except KeyboardInterrupt:
        screen.print("interrupted. Finished work is kept: the same command goes on from there.")
        raise typer.Exit(130) from None
    if ended.shown:
        _write_report(ResultsFolder(out), version_of(preset, paper))
    else:
        screen.print(f"no cell of this run is finished; the tables in {out} are as they were")
    if ended.failures:
        failed = {label: reason for label, reason in ended.failures.items() if reason != NOT_TRIED}
        blocked = f", and {n} that need them" if (n := len(ended.failures) - len(failed)) else ""
        screen.print(f"{len(failed)} of the run's artefacts failed{blocked}; the same command tries them again:")
        for label, reason in failed.items():
            screen.print(f"  {label}: {reason}")
        raise typer.Exit(1)


@app.command()
def report(
    out: Annotated[Path, typer.Argument(help="A results folder.")] = Path("results"),
    published: Annotated[str | None, typer.Option(help="Show a paper's numbers beside: a version, such as v1.")] = None,
    html: Annotated[bool, typer.Option("--html", help="Write one page with all of it, too: report.html.")] = False,
) -> None:
    """Write tables, figures, tidy results, predictions and trigger pictures of a results folder anew."""
    from bench.experiment.resources import open_device
    from bench.results.folder import ResultsFolder
    from reports.figures import draw_all

    folder = ResultsFolder(out, open_device("auto"))
    _write_report(folder, published)
    drawn = draw_all(folder)
    for figure in drawn:
        screen.print(f"{figure.name}: {figure.missing or figure.title}", soft_wrap=True)
    if html:
        from reports.page import write_page

        screen.print(f"wrote {write_page(folder, drawn)}")


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="The folder to write; an earlier export in it is added to.")],
    results: Annotated[Path, typer.Argument(help="A results folder.")] = Path("results"),
) -> None:
    """Copy results without models and triggers, to publish them: every number can be computed from the copy."""
    from bench.results.export import export as copy
    from bench.results.folder import ResultsFolder

    alone = copy(ResultsFolder(results), out)
    screen.print(
        f"wrote {out}: all observations and tables; of {alone} models the card alone. `bench verify {out}` computes "
        "the numbers again, and `bench run --out` goes on there.", soft_wrap=True,
    )  # fmt: skip


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(help=", ".join(KINDS))],
    plugin: Plugin = [],  # noqa: B006
) -> None:
    """List what there is, a line each."""
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS, "For example: bench list attacks")
    load_plugins(tuple(plugin), only=kind)
    table = Table(box=None, show_header=False, pad_edge=False)
    for row in _listed(kind):
        table.add_row(*row)
    screen.print(table)


def _listed(kind: str) -> Iterable[Sequence[str]]:
    """Each thing of a kind, and what it is."""
    if kind == "presets":
        from bench.experiment.settings import presets

        return presets().items()
    if kind == "papers":
        from bench.papers import papers

        return [(name, paper.title) for name, paper in papers.items()]
    if kind == "recipes":
        from bench.papers import recipes

        return [(name, recipe.shows) for name, recipe in recipes().items()]
    if kind == "suites":
        from bench.papers import suites

        return [(name, suite.shows) for name, suite in suites().items()]
    if kind == "models":
        from bench.models import known_models

        return known_models()
    registry = getattr(bench, kind)
    if kind == "metrics":
        over_cells = [(name, _summary(bench.cell_metrics[name])) for name in bench.cell_metrics]
        return [*((name, _summary(registry[name])) for name in registry), *over_cells]
    return [(name, _summary(registry[name]), _conditions(registry[name])) for name in registry]


def _conditions(method: Any) -> str:
    """What a method takes, and whether `all` leaves it out."""
    left_out = not getattr(method, "in_all", True) or not getattr(method, "alone", True)
    return "; ".join(filter(None, [_needs(method), "not in all" if left_out else ""]))


def _needs(method: Any) -> str:
    """What an attack or a defense takes beside the model and pairs, in words."""
    return ", ".join(sorted(need.replace("_", " ") for need in getattr(method, "needs", ())))


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="An attack, defense, metric, data set, recipe, or `run`.")],
    plugin: Plugin = [],  # noqa: B006
) -> None:
    """Show a method's description, source file, and settings with default, range and unit; or what a recipe sets."""
    if name == "run":
        load_plugins(tuple(plugin))
        return _show(name, "settings of a run", _run_settings())
    known = ["run"]
    # One kind after the other: to import all of them takes three times as long.
    for kind, singular in SHOWN.items():
        load_plugins(tuple(plugin), only=kind)
        registry = getattr(bench, kind)
        if name in registry and kind == "metrics":
            metric = registry[name]
            screen.print(f"{name}, better {metric.better}, {origin(metric.measure)}")
            screen.print((metric.measure.__doc__ or "").strip())
            return None
        if name in registry:
            return _show(name, singular, registry[name])
        known += registry
    from bench.papers import recipes

    if name in recipes():
        return _show_recipe(name)
    known += recipes()
    raise unknown("method", name, known, "`bench list attacks` and the like explain them.")


def _show(name: str, kind: str, method: Any) -> None:
    screen.print(f"{name} ({kind}), {origin(method)}\n")
    screen.print(inspect.cleandoc(method.__doc__ or "") + "\n")
    if needs := _needs(method):
        screen.print(f"It may take: {needs}.\n")
    screen.print(_settings_table(method))


@app.command()
def triggers(
    attacks: Attacks = None,
    images: Annotated[int, _option(WHAT, "Test images to show.", min=1)] = 3,
    model: Model = None,
    pretrained: Pretrained = None,
    checkpoint: Checkpoint = None,
    dataset: DataSet = None,
    data_root: DataRoot = None,
    target: Target = None,
    pairs: Pairs = None,
    preset: Preset = "mini",
    config: Config = None,
    set: Set = [],  # noqa: B006
    plugin: Plugin = [],  # noqa: B006
    out: Out = Path("results"),
) -> None:
    """Draw triggers on test images: clean, triggered, difference x 10. Triggers of an earlier run in OUT are reused."""
    import torch

    from bench.core.attack import stamp_images
    from bench.experiment.resources import open_resources
    from bench.experiment.settings import BASE
    from bench.matrix.plan import make_plan, read_fingerprints
    from bench.matrix.stages.trigger import training_triggers
    from bench.results.store import CACHE, Store
    from reports.triggers import draw_triggers

    settings = _settings(
        preset, config, set, plugin, model, pretrained, checkpoint, dataset, data_root,
        attacks=_names(attacks), target=target, pairs=pairs,
    )  # fmt: skip
    resources = open_resources({BASE: settings}, out / CACHE, "cpu")[BASE]
    index = torch.arange(min(images, len(resources.test)))
    clean = resources.test.load(index)
    plan = make_plan({BASE: settings}, {BASE: read_fingerprints(resources)})
    stamped = {
        attack: stamp_images(resources.attack(attack), trigger.at_test(), resources.test, index)
        for attack, trigger in training_triggers(plan, settings.seeds[0], resources, Store(out))
    }
    draw_triggers(clean, stamped, out / "triggers" / "gallery.png")
    screen.print(f"wrote {out / 'triggers' / 'gallery.png'}")


@app.command()
def pretrain(
    out: Annotated[
        Path | None,
        _option(HOW, "A new folder for the model; an embedded model without weights needs none."),
    ] = None,
    architecture: Annotated[
        Path | None, _option(MODEL, "An open_clip_config.json; default: that of the preset's model.")
    ] = None,
    pairs: Pairs = None,
    preset: Preset = "mini",
    config: Config = None,
    set: Set = [],  # noqa: B006
    seed: Annotated[int, _option(HOW, "Of weights and data.")] = 0,
    device: Device = None,
    threads: Annotated[int, _option(HOW, "Threads on the CPU.", min=1)] = 1,
) -> None:
    """Train a small CLIP from scratch, on the embedded world or on your pairs.

    `--model local-dir:OUT` then uses it; an embedded model that was made without --out is used by its name. The same
    command goes on with an interrupted training.
    """
    import torch

    from bench.experiment.resources import open_device
    from bench.matrix.watch import following
    from bench.models import configuration, embedded_weights, pretrained_folder
    from bench.training.from_scratch import architecture as read_architecture
    from bench.training.from_scratch import train_from_scratch

    settings = _settings(preset, config, set, [])
    name = settings.model.name
    if out is None and (pairs or architecture or not settings.model.embedded or embedded_weights(name)):
        raise BenchError("--out names a new folder for the model: bench pretrain --out DIR")
    out, use = (out, f"local-dir:{out}") if out else (pretrained_folder(name), name)
    described = read_architecture(architecture) if architecture else configuration(settings.model)
    torch.set_num_threads(threads)

    def say(line: str) -> None:
        screen.print(line)

    where = open_device(device or "auto")
    with following(screen, f"model {out}"):
        card = train_from_scratch(out, described, settings.pretrain, seed, pairs, where, say)
    accuracies = card.get("zero_shot_accuracy", {}).items()
    result = "".join(f", zero-shot {seen['percent']:.1f} % of {seen['n']} of {data}" for data, seen in accuracies)
    say(f"wrote {out}{result}. Use it with --model {use}")


def _write_report(folder: "ResultsFolder", published: str | None = None) -> None:
    from reports.report import write_report

    screen.print("\n" + write_report(folder, published), soft_wrap=True)


def _run_settings() -> "type[Settings]":
    from bench.experiment.settings import RunSettings

    return RunSettings


def _summary(item: Any) -> str:
    """The first line of a method's docstring; for a metric, its function's."""
    item = getattr(item, "measure", item)
    return next(iter((item.__doc__ or "").strip().splitlines()), "")


def _show_recipe(name: str) -> None:
    """What a recipe sets, beside the defaults; a preset may set something else than these."""
    from bench.experiment.settings import METHODS
    from bench.papers import find_recipe
    from reports.command import flat

    recipe = find_recipe(name)
    screen.print(f"{name} (recipe): {recipe.shows}\n")
    table = Table("setting", "value", "default", "what it is", box=None, pad_edge=False)
    for setting, value in flat(recipe.settings).items():
        owner, _, key = setting.partition(".")
        methods = [registry[owner] for registry in METHODS if owner in registry]
        field = methods[0].model_fields.get(key) if methods else _run_settings().model_fields.get(owner)
        if key and not methods and field is not None:
            field = getattr(field.annotation, "model_fields", {}).get(key)
        default, _, _, what = _row(field) if field is not None else ("", "", "", "")
        table.add_row(setting, str(value), default, what)
    screen.print(table)


def _settings_table(method: "type[Settings]") -> Table:
    table = Table("setting", "default", "range", "unit", "what it is", box=None, pad_edge=False)
    for name, field in method.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, bench.Settings):
            for inner, inner_field in kind.model_fields.items():
                table.add_row(f"{name}.{inner}", *_row(inner_field))
        else:
            table.add_row(name, *_row(field))
    return table


def _row(field: Any) -> tuple[str, str, str, str]:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [f"{sign} {getattr(m, key)}" for m in field.metadata for key, sign in signs.items() if hasattr(m, key)]
    choices = getattr(field.annotation, "__args__", ())
    if not bounds and choices and all(isinstance(c, str) for c in choices):
        bounds = [" | ".join(choices)]
    unit = (field.json_schema_extra or {}).get("unit", "") if isinstance(field.json_schema_extra, dict) else ""
    return str(field.default), ", ".join(bounds), unit, field.description or ""


# Behind the commands above, as `bench --help` lists them in this order.
app.add_typer(cli_gate.app)
app.add_typer(cli_data.app, name="data")
app.command()(cli_paper.paper)
app.add_typer(cli_audit.app, name="audit")
app.command()(cli_audit.purify)


def main() -> None:
    """The `bench` command: errors of the user are a message and exit code 2; SIGTERM is treated as Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        app(standalone_mode=True)
    except BenchError as error:
        Console(stderr=True, markup=False, highlight=False).print(f"error: {error}", soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
