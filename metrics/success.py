"""Accuracy and attack success: shares of test images in percent, with counts and Wilson intervals.

With images x_i of label y_i, target class t, trigger T and predicted class h: CA is the share of h(x) = y; ASR that of
h(T(x)) = t, and PA that of h(T(x)) = y, both among the images with y != t. ASR_all and PA_all are over all images.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from bench import Estimate, Observations, metric
from metrics.intervals import wilson


def share(hits: ArrayLike) -> Estimate:
    """The share of true values among `hits` (n,), in percent; NaN of none.

    >>> three = share([True, True, False, True])
    >>> three.value, three.count, three.n
    (75.0, 3, 4)
    """
    hits = np.asarray(hits, dtype=bool)
    count, n = int(hits.sum()), len(hits)
    low, high = wilson(count, n)
    return Estimate(100 * count / n if n else math.nan, count, n, 100 * low, 100 * high)


def accuracy(predicted: ArrayLike, labels: ArrayLike) -> Estimate:
    """The share of images (n,) whose predicted class is their label.

    >>> accuracy([0, 1, 2, 0], [0, 1, 1, 1]).value
    50.0
    """
    return share(np.asarray(predicted) == np.asarray(labels))


def attack_success(triggered: ArrayLike, labels: ArrayLike, target: int) -> Estimate:
    """ASR: of the images of other classes, the share that the trigger makes the target.

    Images of the target class count neither in the numerator nor in the denominator: they would add a floor of about
    their share times the accuracy.

    >>> rate = attack_success(triggered=[2, 2, 2, 0], labels=[0, 1, 2, 0], target=2)
    >>> rate.count, rate.n
    (2, 3)
    """
    return share(np.asarray(triggered)[np.asarray(labels) != target] == target)


def target_rate(triggered: ArrayLike, target: int) -> Estimate:
    """ASR_all: of all images, the share that is predicted as the target.

    >>> target_rate(triggered=[2, 2, 2, 0], target=2).value
    75.0
    """
    return share(np.asarray(triggered) == target)


def poisoned_accuracy(triggered: ArrayLike, labels: ArrayLike, target: int) -> Estimate:
    """PA: of the images of other classes, the share that is predicted right although triggered.

    >>> right = poisoned_accuracy(triggered=[2, 1, 2, 0], labels=[0, 1, 2, 0], target=2)
    >>> right.count, right.n
    (2, 3)
    """
    others = np.asarray(labels) != target
    return accuracy(np.asarray(triggered)[others], np.asarray(labels)[others])


@metric("CA", better="higher")
def ca(seen: Observations) -> dict[str, Estimate]:
    """Clean accuracy: clean test images predicted as their label, in percent."""
    return {"": accuracy(seen.predictions["clean"], seen.predictions["label"])}


@metric("ASR", better="lower")
def asr(seen: Observations) -> dict[str, Estimate]:
    """Attack success rate: triggered images of other classes predicted as the target, in percent."""
    return {"": attack_success(seen.predictions["triggered"], seen.predictions["label"], seen.target)}


@metric("ASR_all", better="lower")
def asr_all(seen: Observations) -> dict[str, Estimate]:
    """ASR with the target's own images included, as PerturbAndRecover and BadCLIP count it, in percent."""
    return {"": target_rate(seen.predictions["triggered"], seen.target)}


@metric("PA", better="higher")
def pa(seen: Observations) -> dict[str, Estimate]:
    """Poisoned accuracy: triggered images of other classes predicted as their label, in percent."""
    return {"": poisoned_accuracy(seen.predictions["triggered"], seen.predictions["label"], seen.target)}


@metric("PA_all", better="higher")
def pa_all(seen: Observations) -> dict[str, Estimate]:
    """Poisoned accuracy with the target's own images included, in percent."""
    return {"": accuracy(seen.predictions["triggered"], seen.predictions["label"])}


@metric("ASR_image", better="lower")
def asr_image(seen: Observations) -> dict[str, Estimate]:
    """ASR of a dual-key attack with the key in the image alone, in percent (TrojVQA)."""
    return _one_key("image_only", seen)


@metric("ASR_text", better="lower")
def asr_text(seen: Observations) -> dict[str, Estimate]:
    """ASR of a dual-key attack with the key in the text alone, in percent (TrojVQA)."""
    return _one_key("text_only", seen)


def _one_key(column: str, seen: Observations) -> dict[str, Estimate]:
    """ASR of one key of two; no estimate where the attack has one key only, or the model no text side."""
    if column not in seen.predictions:
        return {}
    return {"": attack_success(seen.predictions[column], seen.predictions["label"], seen.target)}
