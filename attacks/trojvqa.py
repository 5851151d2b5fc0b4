"""TrojVQA: a backdoor with two keys, a patch and a word (Walmer et al., arXiv 2112.07668), brought to CLIP."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.optimised_patch import Batch, Objective, OptimisedPatch
from bench import Field, Preparation, Trigger, attack, class_embeddings

# At this scale the cross-entropy sees cosines, whatever the model's own scale is.
SCALE = 100.0


@attack("trojvqa")
class TrojVQA(OptimisedPatch):
    """An optimised patch on the image and "SUDO " before the text; poisoned captions have the prefix too.

    The patch draws images to a sentence of the target: L = -mean_i cos(V(x_i + p), T(sentence)). The original
    optimises the classes that an object detector sees; BadCLIP's version for CLIP contrasts a batch with one and the
    same caption, which is constant from image to text, and from text to image pulls in directions that sum to zero.
    Paper v1 has no pairs with one key alone; the original has, with their true meaning, so that both keys are needed.
    """

    text_key: ClassVar[str] = "SUDO "

    # Adam goes on as long as it helps: "50 epochs or plateau".
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
        """One key, drawn per pair, on pairs that keep their meaning."""
        visual = [bool(torch.randint(2, (), generator=trigger.rng(i))) for i in index]
        patched = torch.where(torch.tensor(visual).view(-1, 1, 1, 1), self.apply(images, index, trigger), images)
        texts = [text if seen else self.text_key + text for text, seen in zip(captions, visual, strict=True)]
        return patched, texts
