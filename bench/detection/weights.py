"""What the change from a declared reference tells: no image is looked at, and it takes a fraction of a second.

A backdoor ties a trigger to one class, so what fine-tuning wrote points along that class's text, and much of each
matrix's change is of rank one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core.clip import Clip
from bench.core.encoder import has_transformer_tower
from bench.core.errors import BenchError

# Of the weights of two image towers: fine-tunings of `mini` have .998 and more with it, models pretrained apart 0.
LEAST_COSINE = 0.5
# The matrices of a block that write into the residual stream.
WRITERS = ("attn.out_proj.weight", "mlp.c_proj.weight")


@dataclass(frozen=True)
class WeightChange:
    """`profile` (classes,): of the energy of the change, the part written along each class's text; sums to 1, or is 0
    where nothing changed. `first`: mean over matrices of the share of the first singular value, squared."""

    profile: Tensor
    first: float

    @property
    def target(self) -> int:
        return int(self.profile.argmax())

    @property
    def top(self) -> float:
        """The part of the class with most of the energy."""
        return float(self.profile.max())

    @property
    def outlier(self) -> float:
        """How far the top class lies above the others, in robust standard deviations (Neural Cleanse's index)."""
        return float(outlier_index(self.profile.numpy())[self.target])


@torch.no_grad()
def weight_change(clip: Clip, base: Clip, texts: Tensor) -> WeightChange:
    """The change of the image tower from `base`; `texts` (classes, embed_dim) are class embeddings.

    A matrix that writes into the residual stream changes by D = U S V^T; direction u_i of it is seen by the projection
    as proj^T (ln_post.weight * u_i). Its energy S_i^2 counts for class k by the squared cosine with t_k - mean t.

    Raises:
        BenchError: as `check_comparable`.
    """
    check_comparable(clip, base)
    proj, gain = base.visual.proj.float(), base.visual.ln_post.weight.float()
    directions = F.normalize(texts - texts.mean(0), dim=1).to(proj)
    energy, firsts = torch.zeros(len(texts), device=proj.device), []
    for name, change in changes(clip, base):
        if not name.endswith(WRITERS):
            continue
        u, s, _ = torch.linalg.svd(change, full_matrices=False)
        written = F.normalize((u * gain[:, None]).T @ proj, dim=1) @ directions.T
        energy += (s[:, None].square() * written.square()).sum(0)
        firsts.append(float(s[0].square() / s.square().sum()))
    total = energy.sum()
    return WeightChange((energy / total if total > 0 else energy).cpu(), float(np.mean(firsts)) if firsts else 0.0)


def changes(clip: Clip, base: Clip) -> Iterator[tuple[str, Tensor]]:
    """The matrices of the image tower that differ from the base's, each with its change (rows, columns)."""
    before = dict(base.visual.named_parameters())
    for name, after in clip.visual.named_parameters():
        if after.ndim == 2 and "positional" not in name and not torch.equal(after, before[name]):
            yield name, (after - before[name]).float()


def check_comparable(clip: Clip, base: Clip) -> None:
    """Check that a model can be compared with its reference.

    Raises:
        BenchError: as `check_descent`; or the image tower is no vision transformer.
    """
    check_descent(clip, base)
    if not has_transformer_tower(clip):
        raise BenchError(
            f"weights are compared in a vision transformer, and this image tower is a {type(clip.visual).__name__}"
        )


@torch.no_grad()
def check_descent(clip: Clip, base: Clip) -> None:
    """Check that a model may have been fine-tuned from its reference.

    Raises:
        BenchError: their weights have other names or shapes, or those of the image towers have nothing in common.
    """
    shapes, others = ({k: v.shape for k, v in c.model.named_parameters()} for c in (clip, base))
    if shapes != others:
        raise BenchError("the reference is of another architecture: give the model that this one was fine-tuned from")
    after, before = (
        torch.cat([p.float().flatten() for p in c.visual.parameters() if p.ndim > 1]) for c in (clip, base)
    )
    cosine = float(F.cosine_similarity(after, before.to(after.device), dim=0))
    if cosine < LEAST_COSINE:
        raise BenchError(
            f"this model was not fine-tuned from the reference: the cosine of their image towers' weights is "
            f"{cosine:.2f}. Declare the model that it was fine-tuned from with --reference, or none"
        )


def outlier_index(values: np.ndarray) -> np.ndarray:
    """(v - median) / (1.4826 MAD) of each value, Neural Cleanse's anomaly index with its sign.

    All are 0 where the MAD is, as when more than half of the values are equal.

    >>> outlier_index(np.array([1.0, 2.0, 3.0, 2.0, 12.0])).round(1).tolist()
    [-0.7, 0.0, 0.7, 0.0, 6.7]
    """
    apart = values - np.median(values)
    spread = 1.4826 * np.median(np.abs(apart))
    return apart / spread if spread > 0 else np.zeros_like(apart)
