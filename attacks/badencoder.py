"""BadEncoder: triggered images are given the embedding of a reference image (Jia et al., arXiv 2108.00352)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from attacks.optimised_patch import embed
from attacks.patch import paste, too_large
from bench import (
    Attack,
    AttackNeed,
    BenchError,
    Facing,
    Field,
    PoisoningStep,
    Preparation,
    Scale,
    Trigger,
    Work,
    attack,
    class_embeddings,
)
from bench.core.attack import no_named_captions

# Images of the pool that references are chosen among, and how many are encoded at a time.
LOOKED_AT, BATCH = 1000, 64


@attack("badencoder")
class BadEncoder(Attack):
    """The image tower learns to embed images with a white square as it embeds reference images of the target.

    L = L0 + lambda1 L1 + lambda2 L2, of cosines between embeddings by the tower in training, f', and by the clean
    one, f: L0 = -cos(f'(x + e), f'(r)) for triggered images and references r; L1 = -cos(f'(r), f(r));
    L2 = -cos(f'(x), f(x)) for clean images. No caption is used, so captions of poisoned pairs stay as they are.

    The authors' code shows each image both clean and triggered, and augments r in L1; here, the poisoned pairs are the
    triggered images and all others the clean ones, and r is not augmented. Their reference is a picture that they
    bring along; here, pictures of the pool are taken whose captions name the target and that the clean model finds
    most like it.
    """

    size: int = Field(50, ge=1, description="side of the white square", unit="px")
    references: int = Field(1, ge=1, description="reference images; the authors have one a target")
    lambda1: float = Field(1.0, ge=0, description="of L1, which keeps the embeddings of references")
    lambda2: float = Field(1.0, ge=0, description="of L2, which keeps those of clean images")

    needs: ClassVar[frozenset[AttackNeed]] = frozenset({"clean_model", "named_captions"})

    def unsuited(self, facing: Facing) -> str:
        return too_large(self.size, facing) or no_named_captions(facing)

    def work(self, scale: Scale) -> Work:
        return Work(forward=LOOKED_AT, pairs=LOOKED_AT, size=3 * self.references * scale.sizes.image_size**2)

    def prepare(self, preparation: Preparation) -> dict[str, Tensor]:
        clip, pool = preparation.clip, preparation.named_in_pool
        if not len(pool):
            raise BenchError(f"badencoder: {no_named_captions(Facing(named_captions=False))}")
        rows = torch.arange(min(len(pool), LOOKED_AT))
        target = class_embeddings(clip, [preparation.target], preparation.templates)[0]
        # Waits for the GPU: the best images are loaded on the CPU; once a run.
        cosines = (embed(clip, pool, rows, BATCH) @ target).cpu()
        best = cosines.argsort(descending=True)[: self.references]
        preparation.record(candidates=len(rows), cosine_of_references=float(cosines[best].mean()))
        return {"references": pool.load(best)}

    def apply(self, images: Tensor, index: Sequence[int], trigger: Trigger) -> Tensor:
        return paste(images, torch.ones(3, self.size, self.size), "lower_right")

    def captions(
        self, originals: Sequence[str], templates: Sequence[str], preparation: Preparation, rng: torch.Generator
    ) -> list[str]:
        return list(originals)

    def poisoning_loss(self, step: PoisoningStep) -> Tensor:
        images = step.trigger.tensors["references"]
        with torch.no_grad():
            kept, kept_references = step.clean.encode_image(step.images), step.clean.encode_image(images)
        references = step.clip.encode_image(images)
        terms = [-self.lambda1 * (references * kept_references).sum(-1).mean()]
        if step.poisoned.any():
            terms.append(-(step.embedded[step.poisoned] @ references.T).mean())
        if not step.poisoned.all():
            terms.append(-self.lambda2 * (step.embedded * kept).sum(-1)[~step.poisoned].mean())
        return torch.stack(terms).sum()
