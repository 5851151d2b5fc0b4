"""Accuracy and attack success: shares of test images in percent, with counts and Wilson intervals.

With images x_i of label y_i, target class t, trigger T and predicted class h: CA is the share of h(x) = y; ASR that of
h(T(x)) = t, and PA that of h(T(x)) = y, both among the images with y != t. ASR_all and PA_all are over all images.
"""

import math
from collections.abc import Callable
from functools import wraps

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from bench.core.metric import Better, Estimate, Hits, Observations, metric
from metrics.intervals import wilson

# ASR, in percent, below which an attack did not take, where the results do not bring the setting of their run.
TOOK = 60.0


def share(hits: ArrayLike) -> Estimate:
    """The share of true values among `hits` (n,), in percent; NaN if n = 0.

    >>> three = share([True, True, False, True])
    >>> three.value, three.count, three.n
    (75.0, 3, 4)
    """
    hits = np.asarray(hits, dtype=bool)
    count, n = int(hits.sum()), len(hits)
    low, high = wilson(count, n)
    return Estimate(100 * count / n if n else math.nan, count, n, 100 * low, 100 * high)


def share_metric(name: str, better: Better, task: str = "zero_shot") -> Callable[[Hits], Hits]:
    """Register a metric that is a share, in percent, by the function of its hits.

    The function returns a boolean for each counted row, or None if the metric is not defined for the model.
    """

    def add(hits: Hits) -> Hits:
        @wraps(hits)
        def measure(observations: Observations) -> dict[str, Estimate]:
            counted = hits(observations)
            return {} if counted is None else {"": share(counted)}

        metric(name, better, task, hits)(measure)
        return hits

    return add


@share_metric("CA", better="higher")
def ca(observations: Observations) -> pd.Series:
    """Clean accuracy: clean test images predicted as their label, in percent."""
    return observations["predictions"]["clean"] == observations["predictions"]["label"]


@share_metric("ASR", better="lower")
def asr(observations: Observations) -> pd.Series:
    """Attack success rate: triggered images of other classes predicted as the target, in percent."""
    return _others(observations, observations["predictions"]["triggered"] == observations.target)


@share_metric("ASR_all", better="lower")
def asr_all(observations: Observations) -> pd.Series:
    """ASR with images of the target class included, as PerturbAndRecover and BadCLIP count it, in percent."""
    return observations["predictions"]["triggered"] == observations.target


@share_metric("PA", better="higher")
def pa(observations: Observations) -> pd.Series:
    """Poisoned accuracy: triggered images of other classes predicted as their label, in percent."""
    return _others(observations, observations["predictions"]["triggered"] == observations["predictions"]["label"])


@share_metric("PA_all", better="higher")
def pa_all(observations: Observations) -> pd.Series:
    """Poisoned accuracy with images of the target class included, in percent."""
    return observations["predictions"]["triggered"] == observations["predictions"]["label"]


@share_metric("ASR_image", better="lower")
def asr_image(observations: Observations) -> pd.Series | None:
    """ASR of a dual-key attack with the key in the image alone, in percent (TrojVQA)."""
    return _one_key("image_only", observations)


@share_metric("ASR_text", better="lower")
def asr_text(observations: Observations) -> pd.Series | None:
    """ASR of a dual-key attack with the key in the text alone, in percent (TrojVQA)."""
    return _one_key("text_only", observations)


def _others(observations: Observations, hits: pd.Series) -> pd.Series:
    """The rows of images of other classes; those of the target class would count as hits without any attack."""
    return hits[observations["predictions"]["label"] != observations.target]


def _one_key(column: str, observations: Observations) -> pd.Series | None:
    """ASR of one key of two; None if the attack has only one key, or the model has no text side."""
    if column not in observations["predictions"]:
        return None
    return _others(observations, observations["predictions"][column] == observations.target)
