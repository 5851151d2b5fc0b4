"""The defenses, one file each. Importing this package registers them."""

from defenses import cleanclip, cut, distill, linear_probe, none, rvpt, unlearn, vpt

__all__ = ["cleanclip", "cut", "distill", "linear_probe", "none", "rvpt", "unlearn", "vpt"]
