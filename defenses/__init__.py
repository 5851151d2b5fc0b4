"""The defenses, one file each. Importing this package registers them."""

from defenses import cleanclip, linear_probe, none, rvpt, vpt

__all__ = ["cleanclip", "linear_probe", "none", "rvpt", "vpt"]
