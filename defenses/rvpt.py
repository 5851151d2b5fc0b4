"""RVPT: Repulsive Visual Prompt Tuning (arXiv 2412.20392), the method of the paper."""

import torch.nn.functional as F
from torch import Tensor

from bench import Field, defense
from bench.core.encoder import Encoded
from defenses.prompt_tuning import Batch, PromptTuning


def feature_repelling(prompted: Tensor, frozen: Tensor, margin: float = -1.0) -> Tensor:
    """L_FR (eq. 3): mean cosine between class tokens of the prompted and of the frozen tower, in [-1, 1].

    Args:
        prompted, frozen: c^(D+1)..c^L, (L - D, n, width), raw outputs of the blocks.
        margin: cosines per image, averaged over blocks, count as no smaller than this; 1 switches repelling off.
    """
    # In fp32: under autocast, norms of half-precision features overflow.
    cosines = F.cosine_similarity(prompted.float(), frozen.float(), dim=-1)
    return cosines.mean(0).clamp(min=margin).mean()


@defense("rvpt")
class RVPT(PromptTuning):
    """Tune visual prompts to classify as before while the class tokens move away from the backdoored model's.

    L = L_CE + alpha L_FR (eq. 5). Features that do not help classification, a trigger's among them, are repelled.
    Class token alone: v1's text lost the symbol, v3 names it.
    """

    alpha: float = Field(2.0, ge=0, description="weight of the feature-repelling loss")
    margin: float = Field(-1.0, ge=-1, le=1, description="cosine below which an image is repelled no further")

    @property
    def repels(self) -> bool:
        return self.alpha > 0

    def loss(self, encoded: Encoded, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        if batch.repelled is None:
            return super().loss(encoded, batch)
        repelling = feature_repelling(encoded.class_tokens, batch.repelled, self.margin)
        return self.alpha * repelling, {"fr": repelling.item()}
