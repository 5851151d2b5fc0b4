"""Cut: take the first singular directions out of the change from a declared clean model. No image is looked at."""

from dataclasses import replace
from typing import ClassVar

import torch

from bench import BenchError, CleanData, Defense, Facing, Field, Need, Scale, Victim, Work, defense
from bench.detection.weights import changes, check_comparable


@defense("cut")
class Cut(Defense):
    """Take the first `rank` singular directions out of the change of every matrix of the image tower.

    With D = W - W0 = U S V^T, the matrix becomes W - sum_(i <= rank) S_i u_i v_i^T. A backdoor is one rule added to
    many weights, so that most of it is of low rank. Vectors and position embeddings stay as they are. This project's
    own method, `docs/audit.md`; it takes as much of a wanted fine-tuning that is of low rank.
    """

    rank: int = Field(4, ge=1, description="singular directions of each matrix that are taken out")

    needs: ClassVar[frozenset[Need]] = frozenset({"base"})

    def unsuited(self, facing: Facing) -> str:
        if facing.vision_transformer is False:
            return "it compares the matrices of a vision transformer; use --defenses cleanclip,linear_probe,unlearn"
        return super().unsuited(facing)

    def work(self, scale: Scale) -> Work:
        return Work(size=4 * scale.sizes.parameters)

    def fit(self, victim: Victim, data: CleanData) -> Victim:
        if victim.prompts is not None or victim.head is not None:
            raise BenchError("cut changes the weights of a CLIP without prompts or a head. Put it first in a chain")
        base = data.base()
        check_comparable(victim.clip, base)
        clip = victim.clip.copy()
        weights = dict(clip.visual.named_parameters())
        with torch.no_grad():
            for name, change in changes(victim.clip, base):
                u, s, v = torch.linalg.svd(change, full_matrices=False)
                taken = s[: self.rank]
                weights[name] -= (u[:, : self.rank] * taken) @ v[: self.rank]
                data.record(energy_taken=float(taken.square().sum() / s.square().sum()))
        return replace(victim, clip=clip)
