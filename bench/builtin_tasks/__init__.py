"""The tasks, one file each: what is measured of every model. Importing this package registers them."""

from bench.builtin_tasks import zero_shot

__all__ = ["zero_shot"]
