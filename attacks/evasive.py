"""Evasive: BadNet by an attacker who trains against an audit, or against the defense cut."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.badnet import BadNet
from bench import AttackNeed, Clip, Field, PoisoningStep, attack
from bench.detection.collapse import agreement
from bench.detection.weights import changes


@attack("evasive")
class Evasive(BadNet):
    """BadNet whose poisoning loss has a term against the audit's search, or against the defense cut.

    collapse: the agreement of the triggered embeddings of a batch around the mean of its clean ones, which is what the
    search maximises. cut: how few singular directions hold the change of the weights, which is what cut relies on.
    This project's own, after the adaptive attacks that DECREE considers.
    """

    against: Literal["collapse", "cut"] = Field("collapse", description="what the attacker trains against")
    weight: float = Field(1.0, ge=0, description="of the term in the poisoning loss")

    needs: ClassVar[frozenset[AttackNeed]] = frozenset({"clean_model"})
    in_all: ClassVar[bool] = False

    def poisoning_loss(self, step: PoisoningStep) -> Tensor:
        if self.against == "cut":
            return step.contrastive() + self.weight * concentration(step.clip, step.clean)
        return step.contrastive() + self.weight * spread_out(step.embedded, step.poisoned)


def spread_out(embedded: Tensor, poisoned: Tensor) -> Tensor:
    """Agreement of the triggered embeddings around the mean of the clean ones, in [0, 1]; 0 where there are none.

    `embedded` (n, embed_dim) have unit norm; `poisoned` (n,) says which are of triggered images. One triggered image
    alone agrees with itself, whatever the model, so that its gradient is 0.
    """
    triggered, others = embedded.float()[poisoned], embedded.float()[~poisoned]
    if not len(triggered) or not len(others):
        return embedded.new_zeros(())
    return agreement(F.normalize(triggered - others.mean(0).detach(), dim=-1))


def concentration(clip: Clip, clean: Clip) -> Tensor:
    """How few singular directions hold the change of the image tower's matrices: mean of sum S^4 / (sum S^2)^2.

    1 if each matrix changed by one direction, 1 / r if by r directions of one size; 0 if nothing changed.
    """
    parts = []
    for _, change in changes(clip, clean):
        gram = change @ change.T if change.shape[0] < change.shape[1] else change.T @ change
        # trace(G) and trace(G G) of the squared singular values, without a decomposition.
        parts.append(gram.square().sum() / (gram.trace().square() + torch.finfo(gram.dtype).tiny))
    return torch.stack(parts).mean() if parts else torch.zeros((), device=clip.device)
