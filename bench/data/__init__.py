"""The data sets, one file each. Importing this package registers them."""

from bench.data import caltech101, folder, imagenet, imagenet_shifts, oxfordpets, world

__all__ = ["caltech101", "folder", "imagenet", "imagenet_shifts", "oxfordpets", "world"]
