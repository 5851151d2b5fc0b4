"""The metrics: accuracies and attack success, Perturbation Resistivity. Importing this package registers them."""

from metrics import resistivity, success

__all__ = ["resistivity", "success"]
