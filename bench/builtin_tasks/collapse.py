"""The auditor collapse: is there a small trigger under which a model gives all images the same class?"""

from typing import ClassVar

import torch
from torch import Tensor

from bench.builtin_tasks.auditor import Auditor, Finding
from bench.core.randomness import derive
from bench.core.settings import Field
from bench.core.task import Case, task
from bench.core.victim import Victim
from bench.detection.collapse import collapse
from bench.detection.search import Search
from bench.detection.triggers import FAMILIES, FamilyName, families
from metrics.detection import detection_metrics


@task("collapse")
class CollapseAuditor(Auditor):
    """Collapse, `docs/audit.md`: the highest score over families of triggers. No clean model is needed."""

    version: ClassVar[int] = 3
    headline: ClassVar[tuple[str, ...]] = ("collapse_score", "collapse_target")

    families: tuple[FamilyName, ...] = Field(
        tuple(FAMILIES), min_length=1, description="kinds of triggers to look for; square:0.2: of another size"
    )
    made_on: int = Field(
        64, ge=2, description="of the images, those that triggers are made on; the others measure them"
    )
    steps: int = Field(40, ge=1, description="steps of Adam")
    batch_size: int = Field(16, ge=2, description="images a step")
    restarts: int = Field(
        2, ge=1, description="triggers of a family looked for at once; of squares and warps, the best of many"
    )

    def examine(self, victim: Victim, images: Tensor, texts: Tensor, case: Case, rng: torch.Generator) -> Finding:
        # Of fewer images than asked for, the same share.
        made_on = min(max(2, self.made_on * len(images) // self.images), len(images) - 2)
        effort, seed = Search(steps=self.steps, batch_size=self.batch_size, restarts=self.restarts), rng.initial_seed()
        found = {
            one.name: collapse(
                victim,
                images[:made_on],
                images[made_on:],
                texts,
                one,
                effort,
                torch.Generator().manual_seed(derive(seed, one.name)),
            )
            for one in families(self.families)
        }
        best = max(found.values(), key=lambda one: one.score)
        return Finding(best.score, best.target, {name: one.score for name, one in found.items()})


detection_metrics("collapse")
