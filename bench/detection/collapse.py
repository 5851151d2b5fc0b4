"""Collapse: is there a small trigger under which a model gives all images the same class?

The search is class-free, DECREE's (arXiv 2303.15180) with two changes: embeddings agree around the mean of clean ones,
and a hard budget stands in place of a penalty. The score is of predictions: a trigger that moves all embeddings
alike, as any model has, does not count as long as the predicted classes still differ.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core.victim import Victim
from bench.detection.search import Search, answer, classify, embed, search, stamped
from bench.detection.triggers import Family, Recovered

# The agreement's weight in the loss, against Adam's epsilon.
WEIGHT = 10.0


@dataclass(frozen=True)
class Collapse:
    """What a trigger does to images that it was not made on.

    `score`: how much more the predictions agree than those of the clean images, see `beyond`. `shares` (classes,): of
    the images that the model does not call k when they are clean, the share that it calls k under the trigger; 0 where
    there is none. `target`: the class that most images are called.
    """

    trigger: Recovered
    score: float
    shares: Tensor
    target: int

    @property
    def share(self) -> float:
        """The share of images of other classes that the trigger sends to the target."""
        return float(self.shares[self.target])


def agreement(rows: Tensor) -> Tensor:
    """Mean inner product of all pairs of rows (..., n, d), each with itself too: the squared norm of their mean.

    Of unit-norm embeddings it is the mean pairwise cosine. Of probabilities of classes it is the chance that two
    images, each given a class at random by its probabilities, are given the same one.

    >>> float(agreement(torch.eye(2))), float(agreement(torch.tensor([[1.0, 0.0], [1.0, 0.0]])))
    (0.5, 1.0)
    """
    return rows.mean(-2).square().sum(-1)


def beyond(reached: float, clean: float) -> float:
    """How far agreement went from that of clean images to full agreement, as Cohen's kappa: 1 is all the way.

    >>> round(beyond(0.6, 0.2), 3), beyond(1.0, 1.0)
    (0.5, 0.0)
    """
    return (reached - clean) / (1 - clean) if clean < 1 else 0.0


def collapse(
    victim: Victim,
    images: Tensor,
    scored: Tensor,
    texts: Tensor,
    family: Family,
    effort: Search,
    rng: torch.Generator,
) -> Collapse:
    """Look for a trigger of the family that makes the embeddings of `images` agree; measure it on the `scored` ones.

    Both are uint8 (n, 3, side, side); `texts` (classes, embed_dim) are the victim's class embeddings. The loss is
    -c, with c the mean pairwise cosine of the embeddings minus the mean of those of the clean images. Of the triggers
    that the search follows to the end, the one with the highest score counts.
    """
    centre = embed(victim, images).mean(0)

    def objective(embedded: Tensor) -> Tensor:
        return -WEIGHT * agreement(F.normalize(embedded - centre, dim=-1))

    triggers = search(victim, images, family, objective, effort, rng)
    return max((effect(victim, one, scored, texts) for one in triggers), key=lambda found: found.score)


def effect(victim: Victim, trigger: Recovered, scored: Tensor, texts: Tensor) -> Collapse:
    """What a trigger does to uint8 images (n, 3, side, side)."""
    clean, before = answer(victim, scored, texts)
    triggered, after = answer(victim, stamped(trigger, scored), texts)
    classes = range(len(texts))
    shares = torch.tensor([share_of(after, before, k) for k in classes])
    target = int(torch.tensor([int((after == k).sum()) for k in classes]).argmax())
    return Collapse(trigger, beyond(float(agreement(triggered)), float(agreement(clean))), shares, target)


def share_of(after: Tensor, before: Tensor, target: int) -> float:
    """Of the images that were not called `target` before, the share that is called so after; 0 where there is none."""
    others = before != target
    return float((after[others] == target).float().mean()) if others.any() else 0.0


def success(victim: Victim, trigger: Recovered, images: Tensor, texts: Tensor, target: int) -> float:
    """Of images that the model does not call `target`, the share that it calls so under the trigger."""
    before, after = (classify(victim, given, texts) for given in (images, stamped(trigger, images)))
    return share_of(after, before, target)
