"""The data sets, one file each. Importing this package registers them."""

from bench.data import embedded, folder

__all__ = ["embedded", "folder"]
