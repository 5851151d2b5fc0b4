"""bench: the benchmark for backdoors in CLIP.

What the author of an attack, a defense, a metric or a data set needs is here, and stays stable:

    from bench import Attack, Field, attack

    @attack("stripe")
    class Stripe(Attack): ...
"""

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
