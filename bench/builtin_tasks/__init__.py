"""The built-in tasks, one file each. Importing this package registers them."""

from bench.builtin_tasks import zero_shot

__all__ = ["zero_shot"]
