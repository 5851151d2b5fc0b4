"""The settings of a run, and how they are read: preset < config file < flags < --set."""

import os
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml

from bench import papers
from bench.core.attack import Attack, attacks
from bench.core.dataset import Dataset, datasets
from bench.core.defense import Defense, defenses
from bench.core.errors import BenchError, unknown
from bench.core.registry import Registry
from bench.core.settings import Field, Settings, merge, nest
from bench.core.task import Task, tasks
from bench.models import ModelSettings
from bench.training.fine_tuning import FineTuning
from bench.training.pretraining import Pretraining

# The name of a run's own variant, the only one without a suite.
BASE = ""


class Poisoning(FineTuning):
    """How a backdoor is implanted; defaults are paper v1's (500K pairs of CC3M, 1,500 of them poisoned)."""

    pairs: int = Field(500_000, ge=2, description="image-text pairs of the fine-tuning set")
    count: int = Field(1500, ge=1, description="poisoned ones among them; they replace their clean originals")
    pool: int | None = Field(
        None, ge=2, description="pairs searched by an attack that only some suit (label_consistent); null: `pairs`"
    )
    halves: bool = Field(
        True,
        description="--pairs in halves, the attacker's and the defender's; false: the attacker takes from all of them, "
        "as the authors do, and the defender may get clean originals of poisoned pairs",
    )


class Evaluation(Settings):
    """Which images are evaluated."""

    split: Literal["test", "val"] = Field("test", description="settings are chosen on val, numbers reported on test")
    limit: int | None = Field(None, ge=1, description="evaluate so many random images, always the same; null is all")
    batch_size: int = Field(256, ge=1, description="images at once")
    dataset: str | None = Field(None, description="the data set of the test images; null is the run's own")


class Execution(Settings):
    """How a run is executed. Numbers depend on it only by rounding errors."""

    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 ...")
    workers: int | None = Field(None, ge=1, description="processes; null: one a core on the CPU, one on a GPU")
    threads: int = Field(1, ge=1, description="threads of each process on the CPU; part of the numbers' last bits")
    rounding: int = Field(
        0,
        ge=0,
        description="with which rounding errors a run is repeated in another folder: 1, 2 ... move the weights of "
        "backdoored models as another processor would; 0: as they are",
    )
    gpus: int = Field(1, ge=1, description="GPUs that share the batches of a fine-tuning: poisoning, CleanCLIP")
    executor: Literal["local", "ray"] = Field("local", description="local processes, or a Ray cluster")
    gpu_share: float | None = Field(
        None,
        ge=0,
        description="ray: GPUs, or a part of one, per work unit; null: `gpus` if the device is a GPU, else 0",
    )
    memory_gb: float | None = Field(None, gt=0, description="ray: memory that a work unit needs; null: none", unit="GB")
    pairs_cache: Literal["auto", "disk", "none"] = Field(
        "auto", description="keep decoded pairs on disk; auto: if they take at most half of what is free"
    )

    def processes_on(self, device: str) -> int:
        """Worker processes: the cores of the machine over the threads of each, or one on a GPU."""
        if self.workers is not None:
            return self.workers
        # The cores that this process may use: a scheduler may give it fewer than the machine has.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, cores // self.threads) if device == "cpu" else 1


class Experiment(Settings):
    """All settings that determine a run's numbers, except the lists of attacks, defenses, tasks and seeds."""

    model: ModelSettings = Field(ModelSettings(), description="the clean CLIP")
    dataset: str = Field("world", description="the zero-shot data set: the attacker's, tuned and tested on")
    tuned_on: str | None = Field(None, description="another data set to tune defenses on; null is the run's own")
    pairs: Path | None = Field(None, description="image-text pairs: table, folder or shards; null: the data set's own")
    target: str = Field("banana", description="the target class, by its name in the data set")
    poison: Poisoning = Field(Poisoning(), description="the poisoning recipe")
    evaluate: Evaluation = Field(Evaluation(), description="which images are evaluated")
    methods: dict[str, dict[str, Any]] = Field(
        {}, description="settings of attacks, defenses, tasks, data sets, by name"
    )
    against: dict[str, dict[str, dict[str, Any]]] = Field(
        {}, description="attack: defense: settings that differ against this attack"
    )

    @property
    def tested_on(self) -> str:
        """The data set of the evaluation."""
        return self.evaluate.dataset or self.dataset

    @property
    def embedded(self) -> bool:
        """Whether the data set is one that bench draws itself."""
        return datasets[self.dataset].embedded

    @property
    def place(self) -> dict[str, str]:
        """The columns `model`, `target` and `dataset` of cells with these settings."""
        return {"model": self.model.label, "target": self.target.lower(), "dataset": self.tested_on}

    def attack(self, name: str) -> Attack:
        return attacks[name].parse(self.method(name), name)

    def defense(self, name: str, against: str = "") -> Defense:
        """A defense with its settings; `against` is the name of the attack, if its settings may differ for it."""
        return defenses[name].parse(self.method(name, against), name)

    def task(self, name: str) -> Task:
        return tasks[name].parse(self.method(name), name)

    def data(self, name: str) -> Dataset:
        return datasets[name].parse(self.method(name), name)

    def method(self, name: str, against: str = "") -> dict[str, Any]:
        """The settings of a method that are set; for a defense, with those that differ `against` an attack."""
        return merge(self.methods.get(name, {}), self.against.get(against, {}).get(name, {}))


class RunSettings(Experiment):
    """The settings of a run: the experiment, which cells are run, and how they are executed."""

    attacks: tuple[str, ...] = Field(("badnet", "blended", "wanet"), description="names, or all")
    defenses: tuple[str, ...] = Field(("none", "linear_probe", "vpt", "rvpt"), description="names and chains, or all")
    tasks: tuple[str, ...] = Field(("zero_shot",), description="what is measured: names, or all")
    seeds: tuple[Annotated[int, pydantic.Field(ge=0, lt=2**63)], ...] = Field(
        (0,), min_length=1, description="one backdoored model per attack and seed"
    )
    took: float = Field(60.0, ge=0, le=100, description="undefended ASR below which an attack did not take", unit="%")
    execution: Execution = Field(Execution(), description="how the run is executed")
    pretrain: Pretraining = Field(Pretraining(), description="how `bench pretrain` trains a CLIP from scratch")

    @property
    def experiment(self) -> dict[str, Any]:
        """The settings of the experiment alone, as JSON; if equal, numbers may be in one table."""
        return self.model_dump(mode="json", include=set(Experiment.model_fields))

    @property
    def single_defenses(self) -> tuple[str, ...]:
        """The defenses, also those inside chains, each once."""
        return tuple(dict.fromkeys(name for chain in self.defenses for name in chain.split("+")))


# The registries whose methods a run's settings may name.
METHODS: tuple[Registry[Any], ...] = (attacks, defenses, tasks, datasets)
# The settings of a run by the names of its variants; `BASE` is always there.
Variants = Mapping[str, RunSettings]


def presets() -> dict[str, str]:
    """The presets by name, with the first comment line of each."""
    first_lines = {}
    for entry in sorted(files("bench.presets").iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".yaml"):
            first_lines[entry.name.removesuffix(".yaml")] = entry.read_text().splitlines()[0].removeprefix("# ")
    return first_lines


def resolve(
    preset: str = "mini",
    config: Path | None = None,
    flags: dict[str, Any] | None = None,
    assignments: tuple[str, ...] = (),
    paper: str | None = None,
    suite: dict[str, Any] | None = None,
    recipe: str | None = None,
) -> RunSettings:
    """The settings of a run.

    In this order, later ones win: preset, version of a paper, recipe, config file, suite, flags, `--set key=value`.

    Raises:
        BenchError: a preset, method or setting is unknown (with a suggestion), or a value is out of range.
    """
    if preset not in presets():
        raise unknown("preset", preset, presets(), "`bench list presets` explains them.")
    values = _preset(preset)
    if paper is not None:
        values = _in_version(values, paper, preset)
    if recipe is not None:
        values = merge(values, papers.find_recipe(recipe).settings)
    if config is not None:
        if not config.is_file():
            raise BenchError(
                f"--config {config}: no such file. Give a YAML file of settings; `bench show run` lists them"
            )
        values = merge(values, _read(_text(config), str(config)))
    values = merge(merge(values, suite or {}), flags or {})
    for assignment in assignments:
        values = merge(values, _assignment(assignment))
    return _checked(values)


def _preset(name: str) -> dict[str, Any]:
    """What a preset sets, on top of the one that it names as `preset`, if any."""
    values = _read(files("bench.presets").joinpath(f"{name}.yaml").read_text(), f"preset {name}")
    return merge(_preset(values.pop("preset")), values) if "preset" in values else values


def _in_version(values: dict[str, Any], paper: str, preset: str) -> dict[str, Any]:
    """The settings of a preset as a version of its paper has them."""
    of, name = papers.find_version(paper)
    if preset not in of.presets:
        fitting = f"--preset {' or '.join(of.presets)}" if of.presets else "no preset"
        raise BenchError(f"--paper {paper} goes with {fitting}, not with {preset}")
    version = of.versions[name]
    lists = {kind: values[kind] for kind in ("attacks", "defenses") if kind in values}
    kept = {kind: [method for method in methods if method not in version.without] for kind, methods in lists.items()}
    return merge(values | kept, version.settings)


def overlay(run: RunSettings, values: dict[str, Any]) -> RunSettings:
    """A run with some settings replaced, and checked as in `resolve`."""
    dumped = run.model_dump(mode="json")
    return _checked(merge(dumped | dumped.pop("methods"), values))


def _checked(values: dict[str, Any]) -> RunSettings:
    known = set(RunSettings.model_fields) - {"methods"}
    methods = {name: v for name, v in values.items() if name not in known}
    for name in methods:
        if not any(name in registry for registry in METHODS):
            everything = [*known, *(method for registry in METHODS for method in registry)]
            raise unknown("setting", name, everything, "`bench show run` lists them.")
        if not isinstance(methods[name], dict):
            raise BenchError(f"setting {name} = {methods[name]!r}: write {name}.KEY=VALUE. `bench show {name}`")
    run = RunSettings.parse({k: v for k, v in values.items() if k in known} | {"methods": methods}, "")
    names = _expand(run)
    for attack, particular in names.against.items():
        attacks[attack]
        for name in particular:
            defenses[name].parse(names.method(name, attack), f"against.{attack}.{name}")
    for name in {*names.attacks, *names.single_defenses, *names.tasks, *methods}:
        for registry in METHODS:
            if name in registry:
                registry[name].parse(names.method(name), name)
    return names


def _expand(run: RunSettings) -> RunSettings:
    """Replace `all` by every method that it includes, and check that all names are known."""
    all_attacks = [name for name in attacks if attacks[name].in_all]
    all_tasks = [name for name in tasks if tasks[name].in_all]
    alone = sorted((name for name in defenses if defenses[name].alone), key=lambda name: name != "none")
    everything = tuple(alone) + papers.chains()
    chosen = [name for entry in run.attacks for name in (all_attacks if entry == "all" else (entry,))]
    chains = [name for entry in run.defenses for name in (everything if entry == "all" else (entry,))]
    measured = [name for entry in run.tasks for name in (all_tasks if entry == "all" else (entry,))]
    for what, names in (("attacks", chosen), ("defenses", chains), ("tasks", measured)):
        if not names:
            raise BenchError(f"--{what} names none. `bench list {what}` lists them; `--{what} all` takes all.")
    for name in chosen:
        attacks[name]
    for name in measured:
        tasks[name]
    for chain in chains:
        for part in chain.split("+"):
            defenses[part]
    for dataset in (run.dataset, run.tuned_on, run.evaluate.dataset):
        if dataset is not None:
            datasets[dataset]
    unique = {"attacks": chosen, "defenses": chains, "tasks": measured, "seeds": run.seeds}
    return run.model_copy(update={name: tuple(dict.fromkeys(values)) for name, values in unique.items()})


def _read(text: str, where: str) -> dict[str, Any]:
    values = _yaml(text, where) or {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise BenchError(f"{where} must be a mapping of settings, such as `rvpt: {{alpha: 3}}`")
    return values


def _text(config: Path) -> str:
    try:
        return config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"--config {config} cannot be read as text: {error}") from None


class _Loader(yaml.SafeLoader):
    """YAML in which 4e-4 is a number; YAML 1.1 takes it for a text and wants 4.0e-4."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise BenchError(f"{where} is no YAML: {error}") from None


def _assignment(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise BenchError(f"--set {text}: write key=value, such as --set rvpt.alpha=3")
    return nest(key, _yaml(value, f"--set {text}"))
