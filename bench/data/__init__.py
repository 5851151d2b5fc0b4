"""The data sets, one file each. Importing this package registers them."""

from bench.data import caltech101, embedded, folder, imagenet, imagenet_shifts, oxfordpets

__all__ = ["caltech101", "embedded", "folder", "imagenet", "imagenet_shifts", "oxfordpets"]
