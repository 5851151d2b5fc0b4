"""bench: the benchmark for backdoors in CLIP.

What the author of an attack, a defense, a metric or a data set needs is here, and stays stable:

    from bench import Attack, Field, attack

    @attack("stripe")
    class Stripe(Attack): ...
"""

from bench.core.attack import Attack, Preparation, Trigger, attack, attacks, mentions, stamp
from bench.core.clip import Clip
from bench.core.cost import Scale, Work
from bench.core.dataset import Dataset, Geometry, dataset, datasets
from bench.core.defense import CleanData, Defense, Facing, Need, defense, defenses
from bench.core.errors import BenchError
from bench.core.images import Captioned, Images, Labelled
from bench.core.metric import Estimate, Metric, Observations, OverCells, cell_metric, cell_metrics, metric, metrics
from bench.core.randomness import generator
from bench.core.settings import Field, Settings
from bench.core.task import Case, Task, task, tasks
from bench.core.victim import Part, Victim, class_embeddings, part

__version__ = "0.1.0"

__all__ = [
    "Attack",
    "BenchError",
    "Captioned",
    "Case",
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
    "Preparation",
    "Scale",
    "Settings",
    "Task",
    "Trigger",
    "Victim",
    "Work",
    "attack",
    "attacks",
    "cell_metric",
    "cell_metrics",
    "class_embeddings",
    "dataset",
    "datasets",
    "defense",
    "defenses",
    "generator",
    "mentions",
    "metric",
    "metrics",
    "part",
    "stamp",
    "task",
    "tasks",
]
