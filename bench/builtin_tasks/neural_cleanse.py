"""The auditor Neural Cleanse (Wang et al., 2019): is one class reached by a much smaller trigger than the others?"""

from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.builtin_tasks.auditor import Finding
from bench.builtin_tasks.mask_search import MaskSearch
from bench.core.settings import Field
from bench.core.task import Case, task
from bench.core.victim import Victim
from bench.detection.masked import Aim, smallest_mask
from bench.detection.weights import outlier_index
from metrics.detection import detection_metrics


@task("neural_cleanse")
class NeuralCleanse(MaskSearch):
    """For each class the smallest mask that sends images there; the score is how far below the median the smallest is.

    The score is the anomaly index, (median - L1) / (1.4826 MAD) of the smallest L1; the authors call a model backdoored
    above 2. The search ends when the smallest mask has not shrunk for five times `patience` checks. Settings are those
    of the authors' code for GTSRB.
    """

    headline: ClassVar[tuple[str, ...]] = ("neural_cleanse_score", "neural_cleanse_target")

    rate: float = Field(0.1, gt=0, description="learning rate of Adam")
    checks: int = Field(1000, ge=1, description="times that the weight of the mask is reconsidered")
    steps: int = Field(31, ge=1, description="steps between two of these")
    cost_factor: float = Field(2.0, gt=1, description="factor by which it rises; it falls by its power 1.5")

    def examine(self, victim: Victim, images: Tensor, texts: Tensor, case: Case, rng: torch.Generator) -> Finding:
        weighing = self.weighing(self.cost_factor, self.cost_factor**1.5, stop=5 * self.patience)
        sizes = [
            smallest_mask(
                victim, images, _towards(label, texts, victim), weighing, lambda _: self.rate, self.checks, self.steps,
                self.batch_size, rng,
            )
            for label in range(len(texts))
        ]  # fmt: skip
        index = -outlier_index(np.array(sizes))
        named = int(np.argmin(sizes))
        return Finding(float(index[named]), named)


def _towards(label: int, texts: Tensor, victim: Victim) -> Aim:
    def aim(embedded: Tensor) -> tuple[Tensor, float]:
        logits = victim.clip.scale * embedded @ texts.T
        wanted = torch.full((len(logits),), label, device=logits.device)
        return F.cross_entropy(logits, wanted), float((logits.argmax(1) == label).float().mean())

    return aim


detection_metrics("neural_cleanse")
