"""The tasks, one file each: what is measured of every model. Importing this package registers them."""

from bench.builtin_tasks import collapse, decree, mm_bd, neural_cleanse, weights, zero_shot

__all__ = ["collapse", "decree", "mm_bd", "neural_cleanse", "weights", "zero_shot"]
