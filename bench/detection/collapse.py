"""Collapse: is there a small trigger under which the embeddings of all images agree?

DECREE's loss (arXiv 2303.15180), the mean pairwise cosine of embeddings, under a hard budget instead of a penalty. It
needs unlabelled images and no class; where the images end up names the target afterwards.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core.victim import Victim
from bench.detection.search import Search, classify, embed, search, stamped
from bench.detection.triggers import Family, Recovered

# The agreement's weight in the loss, against Adam's epsilon.
WEIGHT = 10.0


@dataclass(frozen=True)
class Collapse:
    """What the best trigger of a family does to images that it was not made on.

    `agreement`: mean pairwise cosine of their embeddings, in [0, 1]. `shares` (classes,): of the images that the model
    does not call k when they are clean, the share that it calls k under the trigger; 0 where there is none. `target`:
    the class that most images are called. `margin`: how much nearer the mean embedding is to the text of its nearest
    class than to that of the second, as a difference of cosines.
    """

    trigger: Recovered
    agreement: float
    shares: Tensor
    target: int
    margin: float

    @property
    def share(self) -> float:
        """The share of images of other classes that the trigger sends to the target."""
        return float(self.shares[self.target])


def agreement(embedded: Tensor) -> Tensor:
    """Mean pairwise cosine of unit-norm embeddings (..., n, d), each with itself too: the squared norm of their mean.

    >>> float(agreement(torch.eye(2))), float(agreement(torch.tensor([[1.0, 0.0], [1.0, 0.0]])))
    (0.5, 1.0)
    """
    return embedded.mean(-2).square().sum(-1)


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

    Both are uint8 (n, 3, side, side); `texts` (classes, embed_dim) are the victim's class embeddings. Of the restarts,
    the one with the highest agreement counts.
    """
    triggers = search(victim, images, family, lambda embedded: -WEIGHT * agreement(embedded), effort, rng)
    reached = [float(agreement(embed(victim, stamped(trigger, scored)))) for trigger in triggers]
    best = max(range(len(triggers)), key=reached.__getitem__)
    return effect(victim, triggers[best], scored, texts)


def effect(victim: Victim, trigger: Recovered, scored: Tensor, texts: Tensor) -> Collapse:
    """What a trigger does to uint8 images (n, 3, side, side)."""
    triggered = stamped(trigger, scored)
    embedded = embed(victim, triggered)
    before, after = classify(victim, scored, texts), classify(victim, triggered, texts)
    classes = range(len(texts))
    shares = torch.tensor([share_of(after, before, k) for k in classes])
    target = int(torch.tensor([int((after == k).sum()) for k in classes]).argmax())
    middle = F.normalize(embedded.mean(0), dim=0)
    return Collapse(trigger, float(agreement(embedded)), shares, target, float(margins(middle[None], texts)))


def margins(embedded: Tensor, texts: Tensor) -> Tensor:
    """How much nearer unit-norm embeddings (n, embed_dim) are to their nearest text than to the second: (n,)."""
    nearest = (embedded @ texts.T).topk(2, dim=1).values
    return nearest[:, 0] - nearest[:, 1]


def share_of(after: Tensor, before: Tensor, target: int) -> float:
    """Of the images that were not called `target` before, the share that is called so after; 0 where there is none."""
    others = before != target
    return float((after[others] == target).float().mean()) if others.any() else 0.0
