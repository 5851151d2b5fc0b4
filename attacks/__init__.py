"""The attacks, one file each. Importing this package registers them."""

from attacks import badnet, blended, wanet

__all__ = ["badnet", "blended", "wanet"]
