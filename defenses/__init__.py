"""The defenses, one file each. Importing this package registers them."""

from defenses import linear_probe, none, rvpt, vpt

__all__ = ["linear_probe", "none", "rvpt", "vpt"]
