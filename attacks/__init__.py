"""The attacks, one file each. Importing this package registers them."""

from attacks import badclip, badnet, blended, issba, label_consistent, trojvqa, wanet

__all__ = ["badclip", "badnet", "blended", "issba", "label_consistent", "trojvqa", "wanet"]
