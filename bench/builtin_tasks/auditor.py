"""What auditors share: a task whose number is a score of the model, and the class that it names."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor

from bench.core.attack import Attack, stamp
from bench.core.defense import with_head
from bench.core.errors import BenchError
from bench.core.metric import Observations
from bench.core.randomness import generator
from bench.core.settings import Field
from bench.core.task import Case, Task
from bench.core.victim import Victim
from bench.detection.search import classify
from metrics.detection import FINDINGS, NO_CLASS


@dataclass(frozen=True)
class Finding:
    """An auditor's score of a model, the higher the more suspicious; the index of the class that it names, if it names
    one; and the numbers behind the score."""

    score: float
    named: int = NO_CLASS
    details: dict[str, float] = field(default_factory=dict)


class Auditor(Task):
    """A detector of backdoored models. It is given random test images without labels, and the classes' names.

    `findings` has one row: `score`, `named` and `target_index` (of classes); `success` among the facts counts on how
    many of these images of other classes the model's own trigger works, and on how many not;
    `details` are the numbers behind the score. No row shows the clean model:
    the attack `benign` makes clean ones.
    """

    in_all: ClassVar[bool] = False
    clean_model_row: ClassVar[bool] = False
    published: ClassVar[tuple[str, ...]] = (FINDINGS,)
    items: ClassVar[tuple[str, ...]] = ("target_index",)

    images: int = Field(144, ge=4, description="unlabelled test images; all there are, if fewer")

    def examine(self, victim: Victim, images: Tensor, texts: Tensor, case: Case, rng: torch.Generator) -> Finding:
        """Look at one model. `images` is uint8 (n, 3, side, side), `texts` (classes, embed_dim)."""
        raise NotImplementedError(f"{type(self).__name__} must define examine(victim, images, texts, case, rng)")

    def unsuited(self, attack: Attack, chain: Sequence[str]) -> str:
        heads = with_head(chain)
        return f"{', '.join(heads)}: auditors look at embeddings, and this model has a head" if heads else ""

    def observe(self, victims: Sequence[Victim], case: Case) -> list[Observations | BenchError]:
        order = torch.randperm(len(case.images), generator=generator(case.seed, "audited images"))[: self.images]
        images, index = case.images.load(order), order
        stamped = stamp(case.attack, case.trigger, images, index)
        return [self._one(victim, images, stamped, case) for victim in victims]

    def _one(self, victim: Victim, images: Tensor, stamped: Tensor, case: Case) -> Observations | BenchError:
        texts = victim.class_embeddings(case.images.classes, case.dataset.templates)
        keyed = victim.class_embeddings(case.images.classes, case.dataset.templates, case.attack.text_key)
        try:
            others = classify(victim, images, texts) != case.target
            hits = (classify(victim, stamped, keyed) == case.target)[others]
            found = self.examine(victim, images, texts, case, generator(case.seed, "auditor"))
        except BenchError as error:
            return error
        row = {"score": found.score, "named": found.named, "target_index": case.target}
        success = [int(hits.sum()), int((~hits).sum())]
        facts = {"target": case.target, "success": success, "details": found.details}
        return Observations({FINDINGS: pd.DataFrame([row])}, facts)
