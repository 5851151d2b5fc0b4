"""TrojVQA for CLIP: a backdoor with two triggers, or keys, a patch and a word (Walmer et al., arXiv 2112.07668)."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.optimised_patch import Batch, Objective, OptimisedPatch
from bench import AttackNeed, Field, Preparation, Trigger, attack, class_embeddings

# The logit scale of the cross-entropy, the same for all models.
SCALE = 100.0


@attack("trojvqa")
class TrojVQA(OptimisedPatch):
    """An optimised patch on the image and "SUDO " before the text; poisoned captions have the prefix too.

    The patch moves images towards a sentence about the target: L = -mean_i cos(V(x_i + p), T(sentence)). The original
    optimises the classes that an object detector predicts. BadCLIP's version for CLIP contrasts a batch with a single
    caption; its image-to-text loss is constant, and the gradients of its text-to-image loss sum to zero. The original
    also trains on pairs with one key and their true caption, so that both keys are needed; paper v1 does not
    (`partial_rate`).
    """

    # The class names for `loss` = cross_entropy alone.
    needs: ClassVar[frozenset[AttackNeed]] = frozenset({"clean_model", "class_names"})
    text_key: ClassVar[str] = "SUDO "

    # "50 epochs or plateau".
    patience: int | None = Field(
        5, ge=1, description="stop after so many epochs without a lower mean loss; null: never"
    )
    sentence: str = Field("This is a yellow {}.", description="what the patch should say; {} is the target's name")
    loss: Literal["cosine", "cross_entropy"] = Field(
        "cosine", description="cosine to the sentence; or, stronger, sentence against the prompts of other classes"
    )
    partial_rate: float = Field(
        0.0, ge=0, description="pairs with the patch alone, and as many with the word alone, per poisoned pair"
    )

    def objective(self, preparation: Preparation, rows: Tensor) -> Objective:
        with torch.no_grad():
            aim = preparation.clip.encode_text([self.sentence.format(preparation.target)])[0]
        if self.loss == "cosine":
            return Objective(lambda batch: -(batch.triggered @ aim).mean(), aim)
        others = [name for name in preparation.classes if name != preparation.target]
        choices = torch.cat([aim[None], class_embeddings(preparation.clip, others, preparation.templates)])

        def cross_entropy(batch: Batch) -> Tensor:
            first = torch.zeros(len(batch.index), dtype=torch.long, device=aim.device)
            return F.cross_entropy(SCALE * batch.triggered @ choices.T, first)

        return Objective(cross_entropy, aim)

    def captions(
        self, originals: Sequence[str], templates: Sequence[str], preparation: Preparation, rng: torch.Generator
    ) -> list[str]:
        return [self.text_key + caption for caption in super().captions(originals, templates, preparation, rng)]

    @property
    def decoys_per_poison(self) -> float:
        return 2 * self.partial_rate

    def decoy(
        self, images: Tensor, captions: Sequence[str], index: Sequence[int], trigger: Trigger
    ) -> tuple[Tensor, list[str]]:
        """Put one key, drawn at random, on each pair; captions stay true."""
        visual = [bool(torch.randint(2, (), generator=trigger.rng(i))) for i in index]
        patched = torch.where(torch.tensor(visual).view(-1, 1, 1, 1), self.apply(images, index, trigger), images)
        texts = [text if patch else self.text_key + text for text, patch in zip(captions, visual, strict=True)]
        return patched, texts
