"""The auditor DECREE (Feng et al., arXiv 2303.15180): how small a trigger makes all embeddings agree?"""

from typing import ClassVar

import torch
from torch import Tensor

from bench.builtin_tasks.auditor import Finding
from bench.builtin_tasks.mask_search import MaskSearch
from bench.core.settings import Field
from bench.core.task import Case, task
from bench.core.victim import Victim
from bench.detection.collapse import agreement
from bench.detection.masked import smallest_mask
from metrics.detection import detection_metrics


@task("decree")
class Decree(MaskSearch):
    """The smallest mask and pattern under which embeddings agree. No class is used, and none is named.

    The score is 1 - L1 / (3 H W), with the L1 norm of the mask over all channels. Settings are those of the authors'
    code for CLIP.
    """

    headline: ClassVar[tuple[str, ...]] = ("decree_score",)

    rate: float = Field(0.5, gt=0, description="learning rate of Adam; a fifth after a fifth of the epochs")
    epochs: int = Field(
        1000, ge=1, description="steps, each of them a check; the rate falls to a tenth after half of them"
    )
    cost_factor: float = Field(5.0, gt=1, description="factor by which the weight rises and falls")

    def examine(self, victim: Victim, images: Tensor, texts: Tensor, case: Case, rng: torch.Generator) -> Finding:
        weighing = self.weighing(self.cost_factor, self.cost_factor)
        size = smallest_mask(victim, images, _agree, weighing, self.rate_at, self.epochs, 1, self.batch_size, rng)
        # The same mask for all three channels.
        return Finding(1 - size / images.shape[-1] ** 2)

    def rate_at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        done = epoch / self.epochs
        return self.rate * (1 if done < 0.2 else 0.2 if done < 0.5 else 0.1)


def _agree(embedded: Tensor) -> tuple[Tensor, float]:
    reached = agreement(embedded)
    return -reached, float(reached.detach())


detection_metrics("decree")
