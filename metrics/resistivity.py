"""Perturbation Resistivity: how similar a model's features of an image x and of its perturbed version x + d are.

Version 1 of the paper (arXiv 2412.20392) defines it as E[cos(f(x), f(x + d))] / E[cos(g(x), g(x + d))] with penultimate
features f and logits g; version 3 as E[cos(f_v(x), f_v(x + d))] with embeddings f_v. Means are over images.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from bench import Estimate, Observations, metric
from metrics.intervals import mean_interval, ratio_interval, ratio_of_means


def resistivity_ratio(features: ArrayLike, logits: ArrayLike) -> Estimate:
    """Version 1, from cosines of features (n,) and logits (n,): a ratio of means, not a mean of ratios. May exceed 1.

    >>> resistivity_ratio(features=[0.75, 0.75], logits=[1.0, 0.5]).value
    1.0
    """
    features, logits = np.asarray(features, dtype=float), np.asarray(logits, dtype=float)
    value = float(ratio_of_means(features, logits))
    return Estimate(value, np.nan, len(features), *ratio_interval(features, logits))


def resistivity_cos(embedding: ArrayLike) -> Estimate:
    """Version 3, from cosines of embeddings (n,); at most 1.

    >>> resistivity_cos([0.5, 1.0]).value
    0.75
    """
    embedding = np.asarray(embedding, dtype=float)
    return Estimate(float(embedding.mean()), np.nan, len(embedding), *mean_interval(embedding))


@metric("PR_ratio", better="higher")
def pr_ratio(observations: Observations) -> dict[str, Estimate]:
    """Perturbation Resistivity of paper v1: mean cosine of penultimate features over that of logits."""
    return {name: resistivity_ratio(rows["penultimate"], rows["logits"]) for name, rows in _perturbations(observations)}


@metric("PR_cos", better="higher")
def pr_cos(observations: Observations) -> dict[str, Estimate]:
    """Perturbation Resistivity of paper v3: mean cosine of image embeddings."""
    return {name: resistivity_cos(rows["embedding"]) for name, rows in _perturbations(observations)}


def _perturbations(observations: Observations) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each perturbation; none if the cell was run without perturbations."""
    if observations["similarities"].empty:
        return
    for name, rows in observations["similarities"].groupby("perturbation", sort=False):
        yield str(name), rows
