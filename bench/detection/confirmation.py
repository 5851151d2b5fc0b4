"""Does a trigger towards the suspected class work, and only on this model? A second search, aimed at one class."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core.victim import Victim
from bench.detection.collapse import share_of
from bench.detection.search import Objective, Search, classify, search, stamped
from bench.detection.triggers import Family, Recovered

# The factor between cosines and logits: lower than CLIP's 100, so that gradients do not vanish.
SCALE = 20.0
BATCH = 8


@dataclass(frozen=True)
class Confirmation:
    """The success of a trigger aimed at a class, on images of other classes: on the model, on the reference (None
    without one), and of a trigger aimed at a `control` class with the same effort."""

    trigger: Recovered
    target: int
    success: float
    on_reference: float | None
    control: int
    control_success: float


def aimed_at(targets: Tensor, texts: Tensor) -> Objective:
    """Cross-entropy towards one class a trigger: `targets` (count,), `texts` (classes, embed_dim)."""

    def objective(embedded: Tensor) -> Tensor:
        logits = SCALE * embedded @ texts.T
        wanted = targets.to(logits.device)[:, None].expand(logits.shape[:2])
        return (
            F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").unflatten(0, wanted.shape).mean(1)
        )

    return objective


def confirm(
    victim: Victim,
    reference: Victim | None,
    images: Tensor,
    scored: Tensor,
    texts: Tensor,
    family: Family,
    target: int,
    effort: Search,
    rng: torch.Generator,
) -> Confirmation:
    """Aim triggers of a family at `target` and at a control class; images are uint8 (n, 3, side, side)."""
    others = [k for k in range(len(texts)) if k != target]
    control = others[int(torch.randint(len(others), (), generator=rng))]
    pair = effort.model_copy(update={"restarts": 2, "batch_size": BATCH})
    objective = aimed_at(torch.tensor([target, control]), texts)
    trigger, other = search(victim, images, family, objective, pair, rng)
    on_reference = None if reference is None else success(reference, trigger, scored, texts, target)
    return Confirmation(
        trigger,
        target,
        success(victim, trigger, scored, texts, target),
        on_reference,
        control,
        success(victim, other, scored, texts, control),
    )


def success(victim: Victim, trigger: Recovered, images: Tensor, texts: Tensor, target: int) -> float:
    """Of images that the model does not call `target`, the share that it calls so under the trigger."""
    before, after = (classify(victim, given, texts) for given in (images, stamped(trigger, images)))
    return share_of(after, before, target)
