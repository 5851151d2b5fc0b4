"""The auditor MM-BD (Wang et al., arXiv 2205.06900): does one class have a much larger margin than the others?"""

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bench.builtin_tasks.auditor import Auditor, Finding
from bench.core.clip import untrained
from bench.core.progress import track
from bench.core.settings import Field
from bench.core.task import Case, task
from bench.core.victim import Victim
from bench.detection.search import unit
from metrics.detection import detection_metrics


@task("mm_bd")
class MMBD(Auditor):
    """The largest margin of each class over images from noise. No image of the data is looked at.

    The score is minus the logarithm to base 10 of p = 1 - F(m)^classes, with F a gamma distribution fitted to the
    margins of the other classes and m the largest; the authors call a model backdoored below p = 0.05. Settings are
    those of the authors' code.
    """

    headline: ClassVar[tuple[str, ...]] = ("mm_bd_score", "mm_bd_target")

    starts: int = Field(30, ge=1, description="images from noise, a class")
    steps: int = Field(300, ge=1, description="steps of SGD")
    rate: float = Field(0.01, gt=0, description="learning rate")
    momentum: float = Field(0.2, ge=0, lt=1, description="of SGD")

    def examine(self, victim: Victim, images: Tensor, texts: Tensor, case: Case, rng: torch.Generator) -> Finding:
        side = images.shape[-1]
        margins = np.array([self._margin(victim, label, texts, side, rng) for label in range(len(texts))])
        return Finding(-math.log10(max(p_largest(margins), 1e-300)), int(margins.argmax()))

    def _margin(self, victim: Victim, label: int, texts: Tensor, side: int, rng: torch.Generator) -> float:
        noise = torch.rand((self.starts, 3, side, side), generator=rng).to(victim.clip.device).requires_grad_()
        optimiser = torch.optim.SGD([noise], lr=self.rate, momentum=self.momentum)
        with untrained(victim.clip.model):
            for _ in track(range(self.steps), "looking for the largest margin"):
                optimiser.zero_grad()
                (-_margins(victim, noise, label, texts).sum()).backward()
                optimiser.step()
                with torch.no_grad():
                    noise.clamp_(0, 1)
        with torch.no_grad():
            return float(_margins(victim, noise, label, texts).max())


def _margins(victim: Victim, images: Tensor, label: int, texts: Tensor) -> Tensor:
    logits = victim.clip.scale * unit(victim, images) @ texts.T
    own = torch.zeros(len(texts), dtype=torch.bool, device=logits.device)
    own[label] = True
    return logits[:, label] - logits.masked_fill(own, -torch.inf).max(1).values


def p_largest(margins: np.ndarray) -> float:
    """The chance that the largest of margins (classes,) comes from the gamma distribution of the others."""
    # Imported late: it takes nearly as long to import as torch.
    from scipy import stats

    null = np.delete(margins, margins.argmax())
    if len(null) < 2 or np.ptp(null) == 0:
        return 1.0
    shape, place, scale = stats.gamma.fit(null)
    return float(-np.expm1(len(margins) * stats.gamma.logcdf(margins.max(), shape, loc=place, scale=scale)))


detection_metrics("mm_bd")
