"""The auditor collapse: does a small trigger make the embeddings of all images agree?"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from bench.builtin_tasks.auditor import Auditor, Finding
from bench.core.randomness import derive
from bench.core.settings import Field
from bench.core.task import Case, task
from bench.core.victim import Victim
from bench.detection.calibration import score
from bench.detection.collapse import Collapse, collapse
from bench.detection.search import Search
from bench.detection.triggers import FAMILIES
from metrics.detection import detection_metrics


@task("collapse")
class CollapseAuditor(Auditor):
    """DECREE's loss under a hard budget: the largest excess of agreement over families of triggers, `docs/audit.md`.

    `baselines` is what each family reaches on a clean model, from a calibration; by default the clean model of the run
    is searched, too, with the same images and draws.
    """

    headline: ClassVar[tuple[str, ...]] = ("collapse_score", "collapse_target")

    families: tuple[Literal["square", "blend", "warp"], ...] = Field(
        ("square", "blend", "warp"), min_length=1, description="kinds of triggers to look for"
    )
    made_on: int = Field(
        64, ge=2, description="of the images, those that triggers are made on; the others measure them"
    )
    steps: int = Field(40, ge=1, description="steps of Adam")
    batch_size: int = Field(16, ge=2, description="images a step")
    restarts: int = Field(2, ge=1, description="triggers of a family that are looked for at once")
    baselines: dict[str, float] | None = Field(
        None, description="agreement that each family reaches on a clean model; null: searched on the clean model"
    )

    def examine(self, victim: Victim, images: Tensor, texts: Tensor, case: Case, rng: torch.Generator) -> Finding:
        found = self._agreements(victim, images, texts, rng.initial_seed())
        reached = {name: one.agreement for name, one in found.items()}
        baselines = self.baselines
        if baselines is None:
            clean = self._agreements(Victim(case.base), images, texts, rng.initial_seed())
            baselines = {name: one.agreement for name, one in clean.items()}
        excess = {name: score({name: value}, baselines) for name, value in reached.items()}
        best = max(excess, key=excess.__getitem__)
        return Finding(excess[best], found[best].target, reached)

    def _agreements(self, victim: Victim, images: Tensor, texts: Tensor, seed: int) -> dict[str, Collapse]:
        # Of fewer images than asked for, the same share.
        made_on = max(2, self.made_on * len(images) // self.images)
        effort = Search(steps=self.steps, batch_size=self.batch_size, restarts=self.restarts)
        return {
            name: collapse(
                victim,
                images[:made_on],
                images[made_on:],
                texts,
                FAMILIES[name](),
                effort,
                torch.Generator().manual_seed(derive(seed, name)),
            )
            for name in self.families
        }


detection_metrics("collapse")
