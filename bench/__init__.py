"""bench: the benchmark for backdoors in CLIP.

The stable names for authors of attacks, defenses, tasks, metrics and data sets:

    from bench import Attack, Field, attack

    @attack("stripe")
    class Stripe(Attack): ...

Names are imported on first use, so that commands start quickly.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.api import audit, evaluate, open, run
    from bench.core.attack import (
        Attack,
        AttackNeed,
        Facing,
        PoisoningStep,
        Preparation,
        Trigger,
        attack,
        attacks,
        mentions,
        stamp,
    )
    from bench.core.clip import Clip
    from bench.core.cost import Scale, Work
    from bench.core.dataset import Dataset, Geometry, dataset, datasets
    from bench.core.defense import CleanData, Defense, Need, defense, defenses
    from bench.core.errors import BenchError
    from bench.core.images import Captioned, Images, Labelled
    from bench.core.metric import Estimate, Metric, Observations, OverCells, cell_metric, cell_metrics, metric, metrics
    from bench.core.randomness import generator
    from bench.core.settings import Field, Settings
    from bench.core.task import Case, Task, task, tasks
    from bench.core.victim import Part, Victim, class_embeddings, part
    from bench.results.folder import ResultsFolder
    from bench.results.records import Cell

__version__ = "0.1.0"

# The same for the interpreter: the module of each name.
_MODULES = {
    "bench.api": ("audit", "evaluate", "open", "run"),
    "bench.core.attack": (
        "Attack",
        "AttackNeed",
        "Facing",
        "PoisoningStep",
        "Preparation",
        "Trigger",
        "attack",
        "attacks",
        "mentions",
        "stamp",
    ),
    "bench.core.clip": ("Clip",),
    "bench.core.cost": ("Scale", "Work"),
    "bench.core.dataset": ("Dataset", "Geometry", "dataset", "datasets"),
    "bench.core.defense": ("CleanData", "Defense", "Need", "defense", "defenses"),
    "bench.core.errors": ("BenchError",),
    "bench.core.images": ("Captioned", "Images", "Labelled"),
    "bench.core.metric": (
        "Estimate",
        "Metric",
        "Observations",
        "OverCells",
        "cell_metric",
        "cell_metrics",
        "metric",
        "metrics",
    ),
    "bench.core.randomness": ("generator",),
    "bench.core.settings": ("Field", "Settings"),
    "bench.core.task": ("Case", "Task", "task", "tasks"),
    "bench.core.victim": ("Part", "Victim", "class_embeddings", "part"),
    "bench.results.folder": ("ResultsFolder",),
    "bench.results.records": ("Cell",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Attack",
    "AttackNeed",
    "BenchError",
    "Captioned",
    "Case",
    "Cell",
    "CleanData",
    "Clip",
    "Dataset",
    "Defense",
    "Estimate",
    "Facing",
    "Field",
    "Geometry",
    "Images",
    "Labelled",
    "Metric",
    "Need",
    "Observations",
    "OverCells",
    "Part",
    "PoisoningStep",
    "Preparation",
    "ResultsFolder",
    "Scale",
    "Settings",
    "Task",
    "Trigger",
    "Victim",
    "Work",
    "attack",
    "attacks",
    "audit",
    "cell_metric",
    "cell_metrics",
    "class_embeddings",
    "dataset",
    "datasets",
    "defense",
    "defenses",
    "evaluate",
    "generator",
    "mentions",
    "metric",
    "metrics",
    "open",
    "part",
    "run",
    "stamp",
    "task",
    "tasks",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
