"""CleanCLIP: fine-tune the whole model on clean pairs (Bansal et al., arXiv 2303.03323)."""

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from bench import BenchError, Captioned, CleanData, Clip, Defense, Field, Need, Scale, Victim, Work, defense
from bench.core.distributed import processes, rank
from bench.core.geometry import Geometry
from bench.core.randomness import seeded
from bench.training.eda import Source, Synonyms, augment, check_source, installed_source, normalise, synonyms_from
from bench.training.fine_tuning import FineTuning, contrastive_loss, fine_tune, matching_loss


def within_loss(
    images: Tensor, image_views: Tensor, texts: Tensor, text_views: Tensor, scale: Tensor | float
) -> Tensor:
    """L_in = 1/2 [CE(s V V'^T, I) + CE(s T T'^T, I)]: images and texts are matched with their augmented views.

    All embeddings are unit-norm (n, embed_dim); one direction per modality, as in the authors' code.
    """
    return (matching_loss(images, image_views, scale) + matching_loss(texts, text_views, scale)) / 2


@defense("cleanclip")
class CleanCLIP(Defense, FineTuning):
    """Contrastive fine-tuning on clean pairs, across modalities and between each sample and its augmented view.

    L = lambda_cross L_cross + lambda_in L_in. The loss within a modality ties an image to its own content and so
    loosens the backdoor's tie between the trigger and captions of the target. Defaults are those of RVPT's paper, v1;
    v3 uses 250,000 pairs, a much stronger baseline. AutoAugment's ImageNet policy augments images, EDA texts.
    """

    pairs: int = Field(100_000, ge=2, description="clean pairs to fine-tune on; all there are, if fewer")
    learning_rate: float = Field(
        5e-6, gt=0, description="peak learning rate of AdamW; the paper takes 3e-6 for WaNet and ISSBA on ImageNet"
    )
    epochs: int = Field(10, ge=0, description="passes over the pairs")
    batch_size: int = Field(64, ge=2, description="pairs a step; the contrast is within the batch")
    lambda_cross: float = Field(1.0, ge=0, description="weight of the contrast between images and texts")
    lambda_in: float = Field(1.0, ge=0, description="weight of the contrast within a modality; 0 is plain fine-tuning")
    synonyms: Source = Field(
        "auto", description="text views with WordNet's synonyms, without, or with if it is installed; the log tells"
    )
    text_views: Literal["fresh", "once"] = Field(
        "fresh",
        description="edited captions: new ones in every step; once: one a caption for all epochs, as CleanCLIP does",
    )

    needs: ClassVar[frozenset[Need]] = frozenset({"pairs"})
    shares_batches: ClassVar[bool] = True

    def work(self, scale: Scale) -> Work:
        # Each pair is seen in two views.
        return Work(contrasted=2 * self.pairs * self.epochs, size=4 * scale.sizes.parameters, pairs=self.pairs)

    def fit(self, victim: Victim, data: CleanData) -> Victim:
        if victim.prompts is not None or victim.head is not None:
            raise BenchError(
                "cleanclip fine-tunes a CLIP without prompts or a head. Put it first in a chain: cleanclip+rvpt"
            )
        pairs = data.pairs(self.pairs)
        if len(pairs) < 2:
            raise BenchError(f"cleanclip contrasts pairs with each other, and got {len(pairs)}. Give a longer --pairs")
        synonyms = synonyms_from(self.synonyms, "cleanclip")
        data.record(
            pairs=len(pairs),
            skipped_pairs=len(pairs.skipped),
            captions_without_letters=sum(not normalise(caption) for caption in pairs.captions),
            wordnet=float(synonyms is not None),
        )
        clip = victim.clip.copy()
        tokens = clip.tokenize(pairs.captions)
        edited_once: Tensor | None = None
        if self.text_views == "once" and self.lambda_in:
            rng = data.rng("cleanclip", "texts", "once")
            edited_once = clip.tokenize(augmented_texts(pairs, torch.arange(len(pairs)), rng, synonyms))
        steps = count()
        # Both parts of each step's loss, on their device: to ask for them now would hold up the step.
        parts: list[Tensor] = []
        # Views are not cached.
        geometry = Geometry.of(clip, cache=Path())

        def loss(clip: Clip, index: Tensor) -> Tensor:
            images, texts = clip.encode_image(pairs.load(index)), clip.encode_text(tokens[index])
            cross = contrastive_loss(images, texts, clip.scale)
            if self.lambda_in == 0:
                parts.append(cross.detach()[None])
                return self.lambda_cross * cross
            # The seed depends on the step, not the pair, so every epoch has new views.
            step = next(steps) * processes() + rank()
            views = augmented_images(pairs, index, geometry, data.rng("cleanclip", "images", step))
            if edited_once is None:
                drawn = augmented_texts(pairs, index, data.rng("cleanclip", "texts", step), synonyms)
                edited = clip.tokenize(drawn)
            else:
                edited = edited_once[index]
            within = within_loss(images, clip.encode_image(views), texts, clip.encode_text(edited), clip.scale)
            parts.append(torch.stack([cross.detach(), within.detach()]))
            return self.lambda_cross * cross + self.lambda_in * within

        fine_tune(clip, len(pairs), self, loss, data.rng("cleanclip", "batches"), pairs.ahead)
        for name, curve in zip(("cross", "within"), torch.stack(parts).T.tolist() if parts else (), strict=False):
            data.log.setdefault(name, []).extend(curve)
        return replace(victim, clip=clip)

    def installed(self) -> dict[str, Any]:
        return installed_source(self.synonyms)

    def check_installed(self) -> None:
        if self.lambda_in:
            check_source(self.synonyms, "cleanclip")


def augmented_images(pairs: Captioned, index: Tensor, geometry: Geometry, rng: torch.Generator) -> Tensor:
    """One augmented view of each image of an index (n,): uint8 (n, 3, size, size).

    AutoAugment is applied at the native size; then the image is resized and cropped as usual. `rng` gives the seed.
    """
    # Imported late: it takes longer to import than torch.
    from torchvision.transforms.v2 import AutoAugment

    natives, policy = pairs.load_natives(index), AutoAugment()
    # AutoAugment can use torch's global generator only.
    with seeded(rng.initial_seed()):
        return torch.stack([geometry.square(policy(image)) for image in natives])


def augmented_texts(pairs: Captioned, index: Tensor, rng: torch.Generator, synonyms: Synonyms | None) -> list[str]:
    """One augmented view of each caption of an index (n,)."""
    return [augment(pairs.captions[i], rng, synonyms) for i in index.tolist()]
