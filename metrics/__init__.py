"""The metrics: accuracies and attack success, Perturbation Resistivity. Importing this package registers them."""

from metrics import correlation, detection, resistivity, success

__all__ = ["correlation", "detection", "resistivity", "success"]
