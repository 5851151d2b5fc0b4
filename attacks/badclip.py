"""BadCLIP: a patch optimised towards target captions and target images (Liang et al., arXiv 2311.12075)."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.optimised_patch import Batch, Objective, OptimisedPatch, embed, named
from bench import AttackNeed, BenchError, Captioned, Facing, Field, Preparation, attack, class_embeddings
from bench.core.attack import no_named_captions
from bench.core.randomness import seeded
from bench.training.eda import Source, Synonyms, augment, check_source, installed_source, synonyms_from
from bench.training.fine_tuning import matching_loss


@attack("badclip")
class BadCLIP(OptimisedPatch):
    """A patch that the clean model already embeds near the target, so that poisoning changes the model little.

    L = L_text + weight L_tri over images x_i of other classes; each is given one random natural caption t_i of the
    target. L_text contrasts V(x_i + p) with t_i. L_tri moves V(x_i + p) towards the embedding of a random target image
    and away from V(x_i). Settings follow the authors' code. All captions of a batch are of the target, so L_text
    mostly separates these captions from each other, and L_tri does most of the work; `text_negatives` adds captions of
    other classes. Two apparent mistakes of the authors' code are corrected: V(x_i) is computed without the patch, and
    augmented captions are really used.
    """

    # The class names for `selection` = mixed alone.
    needs: ClassVar[frozenset[AttackNeed]] = frozenset({"clean_model", "named_captions", "class_names"})

    weight: float = Field(500.0, ge=0, description="of the triplet loss")
    margin: float = Field(1.0, ge=0, description="of the triplet loss, a distance of unit-norm embeddings")
    text_negatives: Literal["none", "original"] = Field(
        "none", description="original: images are contrasted with their own captions too"
    )
    image_negatives: Literal["clean", "triggered"] = Field(
        "clean",
        description="of the triplet loss: each image without the patch; triggered: shuffled ones with it, as BadCLIP's "
        "code comes to",
    )
    augmented_images: float = Field(0.5, ge=0, le=1, description="probability that a batch is seen by AutoAugment")
    augmented_captions: float = Field(0.1, ge=0, le=1, description="probability that a caption is edited by EDA")
    synonyms: Source = Field(
        "auto",
        description="EDA with WordNet's synonyms, without, or with if it is installed; the log tells",
    )
    targets: Literal["set", "pool"] = Field(
        "set",
        description="where captions and images of the target come from: the poisoned set, or all of `poison.pool`, as "
        "the authors take theirs from all of CC3M",
    )
    caption_pool: int = Field(128, ge=1, description="different natural captions of the target to poison with")
    selection: Literal["random", "mixed"] = Field(
        "random", description="pairs to poison; mixed: one third at the target's boundary, one far off, one random"
    )

    def unsuited(self, facing: Facing) -> str:
        return super().unsuited(facing) or no_named_captions(facing)

    def objective(self, preparation: Preparation, rows: Tensor) -> Objective:
        clip, texts = preparation.clip, preparation.pairs.captions
        targets, named_rows = self.target_pairs(preparation)
        pool = embed(clip, targets, named_rows, self.batch_size)
        rng, synonyms = preparation.rng("patch", "objective"), self._synonyms()
        preparation.record(patch_targets=len(named_rows), wordnet=synonyms is not None)
        drawn = named_rows[torch.randint(len(named_rows), (len(rows),), generator=rng)]
        caption = {row: targets.captions[i] for row, i in zip(rows.tolist(), drawn.tolist(), strict=True)}

        scale = clip.scale.item()

        def view(text: str) -> str:
            edited = torch.rand((), generator=rng) < self.augmented_captions
            return augment(text, rng, synonyms) if edited else text

        def loss(batch: Batch) -> Tensor:
            # On the CPU: the numbers of pairs.
            numbers = batch.index.tolist()
            with torch.no_grad():
                if self.image_negatives == "clean":
                    away = clip.encode_image(batch.images)
                else:
                    away = batch.triggered.detach()[torch.randperm(len(numbers), generator=rng)]
                wanted = clip.encode_text([view(caption[i]) for i in numbers])
                others = wanted[:0]
                if self.text_negatives == "original":
                    others = clip.encode_text([texts[i] for i in numbers])
            near = pool[torch.randint(len(pool), (len(numbers),), generator=rng)]
            text = text_loss(batch.triggered, wanted, others, scale)
            return text + self.weight * triplet_loss(batch.triggered, near, away, self.margin)

        return Objective(loss, F.normalize(pool.mean(0), dim=-1))

    def view(self, images: Tensor, rng: torch.Generator) -> Tensor:
        if torch.rand((), generator=rng) >= self.augmented_images:
            return images
        # Imported late: it takes longer to import than torch.
        from torchvision.transforms.v2 import AutoAugment

        policy = AutoAugment()
        # AutoAugment can use torch's global generator only.
        with seeded(int(torch.randint(2**62, (), generator=rng))):
            return torch.stack([policy(image) for image in images])

    def choose(self, preparation: Preparation, count: int, rng: torch.Generator) -> list[int]:
        if self.selection == "random":
            return super().choose(preparation, count, rng)
        to_target, gap = self._similarities(preparation)
        return mixed_selection(to_target, gap, count, rng)

    def captions(
        self, originals: Sequence[str], templates: Sequence[str], preparation: Preparation, rng: torch.Generator
    ) -> list[str]:
        """Random natural captions of the target, from a pool of up to `caption_pool`; the log records its size."""
        targets, named_rows = self.target_pairs(preparation)
        texts = list(dict.fromkeys(targets.captions[i] for i in named_rows.tolist()))
        pool = [texts[i] for i in torch.randperm(len(texts), generator=rng)[: self.caption_pool].tolist()]
        preparation.record(caption_pool=len(pool))
        return [pool[i] for i in torch.randint(len(pool), (len(originals),), generator=rng).tolist()]

    @property
    def searches(self) -> bool:
        return self.targets == "pool"

    def installed(self) -> dict[str, Any]:
        return installed_source(self.synonyms) if self.augmented_captions else {}

    def check_installed(self) -> None:
        if self.augmented_captions and self.patch_image is None:
            check_source(self.synonyms, "badclip")

    def _synonyms(self) -> Synonyms | None:
        return synonyms_from(self.synonyms, "badclip") if self.augmented_captions else None

    def target_pairs(self, preparation: Preparation) -> tuple[Captioned, Tensor]:
        """Pairs, and the numbers (k,) of those among them that name the target."""
        if self.targets == "set":
            return preparation.pairs, _target_rows(preparation)
        return preparation.named_in_pool, torch.arange(len(preparation.named_in_pool))

    @torch.no_grad()
    def _similarities(self, preparation: Preparation) -> tuple[Tensor, Tensor]:
        """For every image (n,): the cosine to the target's prompt, and how far it is below that of the best class."""
        texts = class_embeddings(preparation.clip, preparation.classes, preparation.templates)
        target = preparation.classes.index(preparation.target)
        rows = []
        for part in torch.arange(len(preparation.pairs)).split(self.batch_size):
            cosines = preparation.clip.encode_image(preparation.pairs.load(part)) @ texts.T
            # Waits for the GPU: so that memory holds two numbers an image, once a run.
            rows.append(torch.stack([cosines[:, target], cosines.max(1).values - cosines[:, target]]).cpu())
        to_target, gap = torch.cat(rows, 1)
        return to_target, gap


def text_loss(images: Tensor, texts: Tensor, others: Tensor, scale: float) -> Tensor:
    """Symmetric InfoNCE of unit-norm images and texts (n, d), with `others` (m, d) as further negatives of images."""
    to_text = matching_loss(images, torch.cat([texts, others]), scale)
    return (to_text + matching_loss(texts, images, scale)) / 2


def triplet_loss(anchors: Tensor, positives: Tensor, negatives: Tensor, margin: float) -> Tensor:
    """mean_i max(0, |a_i - p_i| - |a_i - n_i| + margin) of embeddings (n, d), with Euclidean distances.

    >>> one, orthogonal = torch.eye(4)[:2], torch.eye(4)[2:]
    >>> triplet_loss(one, one, orthogonal, 1.0).item(), triplet_loss(one, one, one, 1.0).item()
    (0.0, 1.0)
    """
    to_positives, to_negatives = (anchors - positives).norm(dim=-1), (anchors - negatives).norm(dim=-1)
    return (to_positives - to_negatives + margin).clamp(min=0).mean()


def mixed_selection(to_target: Tensor, gap: Tensor, count: int, rng: torch.Generator) -> list[int]:
    """Choose `count` of n images, none twice: a third at the boundary, a third far from the target, the rest random.

    Args:
        to_target: similarity to the target, (n,).
        gap: similarity to the most similar class minus `to_target`, (n,); 0 where the target is predicted. Images at
            the boundary have the smallest positive gaps.
    """
    third = count // 3
    order = gap.argsort(stable=True)
    chosen = dict.fromkeys(order[gap[order] > 0][:third].tolist())
    far = [i for i in to_target.argsort(stable=True)[: 2 * third].tolist() if i not in chosen][:third]
    chosen |= dict.fromkeys(far)
    others = [i for i in torch.randperm(len(gap), generator=rng).tolist() if i not in chosen]
    return [*chosen, *others][:count]


def _target_rows(preparation: Preparation) -> Tensor:
    rows = named(preparation)
    if not len(rows):
        raise BenchError(
            f"badclip needs pairs whose captions name the target, and no caption names "
            f"'{preparation.target}'. Give --pairs with such captions, or another --target"
        )
    return rows
