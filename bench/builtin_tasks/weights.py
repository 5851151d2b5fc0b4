"""The auditor weights: which class does the change from the clean model point at?"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from bench.builtin_tasks.auditor import Auditor, Finding
from bench.core.settings import Field
from bench.core.task import Case, task
from bench.core.victim import Victim
from bench.detection.weights import weight_change
from metrics.detection import detection_metrics


@task("weights")
class WeightsAuditor(Auditor):
    """The change of the image tower's matrices from the clean model, `docs/audit.md`; no image is looked at."""

    version: ClassVar[int] = 2
    headline: ClassVar[tuple[str, ...]] = ("weights_score", "weights_target")

    statistic: Literal["top", "outlier", "first"] = Field(
        "top",
        description="top: part of the top class; outlier: how far it lies above the others, in robust standard "
        "deviations; first: share of the first singular value, which names no class",
    )

    def examine(self, victim: Victim, images: Tensor, texts: Tensor, case: Case, rng: torch.Generator) -> Finding:
        found = weight_change(victim.clip, case.base, texts)
        values = {"top": found.top, "outlier": found.outlier, "first": found.first}
        return Finding(values[self.statistic], found.target, values)


detection_metrics("weights")
