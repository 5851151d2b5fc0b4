"""RVPT: Repulsive Visual Prompt Tuning (arXiv 2412.20392)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import BenchError, Field, defense
from defenses.prompt_tuning import PromptTuning

Distance = Literal["cosine", "l1", "l2"]
Permutation = Literal["split", "overlap", "intertwine", "mix"]


def feature_repelling(prompted: Tensor, frozen: Tensor, margin: float = -1.0, distance: Distance = "cosine") -> Tensor:
    """L_FR (eq. 3): the mean similarity between features of the prompted and of the frozen tower.

    Args:
        prompted, frozen: class tokens after the repelled blocks, (blocks, n, width), or all tokens, (blocks, n, tokens,
            width); all have the same weight.
        margin: lower bound of an image's cosine, averaged over blocks and tokens; 1 switches repelling off. L1 and L2
            ignore it.
        distance: the similarity is the cosine, in [-1, 1], or minus the L1 or L2 distance of unit-norm features.
    """
    # In fp32: under autocast, norms of half-precision features overflow.
    prompted, frozen = prompted.float(), frozen.float()
    if distance == "cosine":
        return _per_image(F.cosine_similarity(prompted, frozen, dim=-1)).clamp(min=margin).mean()
    difference = F.normalize(prompted, dim=-1) - F.normalize(frozen, dim=-1)
    return -_per_image(torch.linalg.vector_norm(difference, ord=int(distance[1]), dim=-1)).mean()


def _per_image(similarities: Tensor) -> Tensor:
    return (similarities.mean(-1) if similarities.ndim == 3 else similarities).mean(0)


def arrange(permutation: Permutation, blocks: range) -> tuple[list[int], list[int]]:
    """The blocks that get prompts, and the blocks whose outputs are repelled; equally many.

    Each is half of `blocks`; of an odd number, the first is left out. The paper names its arrangements and shows them
    in a figure without describing them. Our reading: split prompts the first half and repels the second; overlap does
    both to the second half; intertwine alternates; mix does both to every second block.

    >>> arrange("split", range(8)), arrange("overlap", range(8))
    (([0, 1, 2, 3], [4, 5, 6, 7]), ([4, 5, 6, 7], [4, 5, 6, 7]))
    >>> arrange("intertwine", range(8)), arrange("mix", range(8))
    (([0, 2, 4, 6], [1, 3, 5, 7]), ([1, 3, 5, 7], [1, 3, 5, 7]))
    """
    pairs = list(blocks)[len(blocks) % 2 :]
    half = len(pairs) // 2
    prompted = {"split": pairs[:half], "overlap": pairs[half:], "intertwine": pairs[::2], "mix": pairs[1::2]}
    repelled = {"split": pairs[half:], "overlap": pairs[half:], "intertwine": pairs[1::2], "mix": pairs[1::2]}
    return prompted[permutation], repelled[permutation]


@defense("rvpt")
class RVPT(PromptTuning):
    """Tune visual prompts for classification while class tokens move away from those of the backdoored model.

    L = L_CE + alpha L_FR (eq. 5). Features that do not help classification, such as the trigger's, are repelled. Only
    class tokens are, as v3 says (in v1's text the symbol is missing). The other values of `distance`, `permutation`,
    `tokens` and `margin` are the paper's ablations.
    """

    alpha: float = Field(2.0, ge=0, description="weight of the feature-repelling loss")
    margin: float = Field(-1.0, ge=-1, le=1, description="cosine below which an image is repelled no further")
    distance: Distance = Field("cosine", description="cosine, or l1, l2: the distance of features at unit norm, grown")
    permutation: Permutation | None = Field(
        None,
        description="where prompts and repelled features are, half as many; null: both at all blocks after D",
    )
    tokens: Literal["class", "all"] = Field("class", description="what is repelled: class tokens, or patch tokens too")

    def model_post_init(self, context: object) -> None:
        super().model_post_init(context)
        if self.distance != "cosine" and self.margin != -1:
            raise BenchError(
                f"rvpt.margin is a cosine, and rvpt.distance = {self.distance} has none: leave one at its default"
            )

    @property
    def repels(self) -> bool:
        return self.alpha > 0

    @property
    def all_tokens(self) -> bool:
        return self.tokens == "all"

    def arrangement(self, total: int) -> tuple[list[int], list[int]]:
        prompted, repelled = super().arrangement(total)
        if self.permutation is None:
            return prompted, repelled
        if len(prompted) < 2:
            raise BenchError(f"rvpt.permutation = {self.permutation} needs two blocks or more. Lower rvpt.depth")
        return arrange(self.permutation, range(prompted[0], prompted[-1] + 1))

    def loss(self, prompted: Tensor, frozen: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        repelling = feature_repelling(prompted, frozen, self.margin, self.distance)
        return self.alpha * repelling, {"fr": repelling.detach()}
