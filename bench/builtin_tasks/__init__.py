"""The built-in tasks, one file each. Importing this package registers them."""

from bench.builtin_tasks import collapse, decree, mm_bd, neural_cleanse, weights, zero_shot

__all__ = ["collapse", "decree", "mm_bd", "neural_cleanse", "weights", "zero_shot"]
