"""bench: the benchmark for backdoors in CLIP.

What the author of an attack, a defense, a metric or a data set needs is here, and stays stable:

    from bench import Attack, Field, attack

    @attack("stripe")
    class Stripe(Attack): ...

A name is imported when it is first asked for, so that a command pays for no more than it uses.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.core.attack import Attack, Preparation, Trigger, attack, attacks, mentions, stamp
    from bench.core.clip import Clip
    from bench.core.dataset import Dataset, Geometry, dataset, datasets
    from bench.core.defense import CleanData, Defense, defense, defenses
    from bench.core.errors import BenchError
    from bench.core.images import Captioned, Images, Labelled
    from bench.core.metric import Estimate, Metric, Observations, metric, metrics
    from bench.core.randomness import generator
    from bench.core.settings import Field, Settings
    from bench.core.victim import Victim, class_embeddings
    from bench.matrix.loading import load_defended

__version__ = "0.1.0"

# The same for the interpreter: the module of each name.
_MODULES = {
    "bench.core.attack": ("Attack", "Preparation", "Trigger", "attack", "attacks", "mentions", "stamp"),
    "bench.core.clip": ("Clip",),
    "bench.core.dataset": ("Dataset", "Geometry", "dataset", "datasets"),
    "bench.core.defense": ("CleanData", "Defense", "defense", "defenses"),
    "bench.core.errors": ("BenchError",),
    "bench.core.images": ("Captioned", "Images", "Labelled"),
    "bench.core.metric": ("Estimate", "Metric", "Observations", "metric", "metrics"),
    "bench.core.randomness": ("generator",),
    "bench.core.settings": ("Field", "Settings"),
    "bench.core.victim": ("Victim", "class_embeddings"),
    "bench.matrix.loading": ("load_defended",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Attack",
    "BenchError",
    "Captioned",
    "CleanData",
    "Clip",
    "Dataset",
    "Defense",
    "Estimate",
    "Field",
    "Geometry",
    "Images",
    "Labelled",
    "Metric",
    "Observations",
    "Preparation",
    "Settings",
    "Trigger",
    "Victim",
    "attack",
    "attacks",
    "class_embeddings",
    "dataset",
    "datasets",
    "defense",
    "defenses",
    "generator",
    "load_defended",
    "mentions",
    "metric",
    "metrics",
    "stamp",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
