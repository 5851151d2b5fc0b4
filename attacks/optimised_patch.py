"""Patches that are optimised on the clean model before poisoning, the common part of TrojVQA and BadCLIP."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from attacks.patch import paste, read_patch, too_large
from bench import Attack, BenchError, Captioned, Clip, Facing, Field, Preparation, Scale, Trigger, Work, mentions
from bench.core.progress import step
from bench.training.fine_tuning import shuffled_batches


@dataclass(frozen=True)
class Batch:
    """The n pairs of one step.

    `index` (n,): their numbers. `images`: float RGB in [0, 1], (n, 3, h, w), without the patch. `triggered`: unit-norm
    embeddings (n, embed_dim) of the images with the patch, differentiable in the patch.
    """

    index: Tensor
    images: Tensor
    triggered: Tensor


@dataclass(frozen=True)
class Objective:
    """What a patch is optimised for: the loss of a batch, and the unit-norm embedding `aim` (embed_dim,).

    Only the loss is minimised; the cosine of triggered images to `aim` is logged to show the progress.
    """

    loss: Callable[[Batch], Tensor]
    aim: Tensor


class OptimisedPatch(Attack):
    """A square patch, the same on all images, optimised on the frozen clean model; subclasses define the objective.

    The patch starts as N(0.5, 0.25^2), is optimised by Adam and clipped to [0, 1] after every step. BadCLIP's code
    clips it only when it is pasted, so pixels out of range get no gradient and never return.
    """

    size: int = Field(16, ge=1, description="side of the patch", unit="px")
    place: Literal["center", "lower_right"] = Field("center", description="where the patch goes")
    patch_image: Path | None = Field(
        None,
        description="a picture of `size` x `size` px: that patch, made elsewhere, instead of an optimised one",
    )
    images: int = Field(10_000, ge=1, description="images to optimise on, of captions that do not name the target")
    epochs: int = Field(50, ge=0, description="passes over them, at most; 0 leaves a random patch")
    batch_size: int = Field(64, ge=2, description="images a step")
    patch_learning_rate: float = Field(1e-3, gt=0, description="of Adam, for the patch")
    patience: int | None = Field(
        None, ge=1, description="stop after so many epochs without a lower mean loss; null: never"
    )

    def objective(self, preparation: Preparation, rows: Tensor) -> Objective:
        """The objective; `rows` (n,) are the numbers of the pairs from which batches are drawn."""
        raise NotImplementedError(f"{type(self).__name__} must define objective(preparation, rows)")

    def view(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Augment clean images, uint8 (n, 3, h, w), before the patch is pasted; the default returns them unchanged."""
        return images

    def unsuited(self, facing: Facing) -> str:
        return too_large(self.size, facing)

    def work(self, scale: Scale) -> Work:
        steps = 0 if self.patch_image is not None else self.images * self.epochs
        return Work(tuned=steps, size=12 * scale.sizes.image_size**2)

    def prepare(self, preparation: Preparation) -> dict[str, Tensor]:
        """Optimise the patch. Logs the loss and the mean cosine to the aim before every step.

        Raises:
            BenchError: every caption names the target, or `patch_image` cannot be read or has another size.
        """
        if self.patch_image is not None:
            return {"patch": read_patch(self.patch_image, self.size)}
        others = named(preparation, False)
        if not len(others):
            raise BenchError(
                f"every caption names '{preparation.target}': there is nothing to optimise the patch on. "
                "Give --pairs with other captions too"
            )
        rows = others[torch.randperm(len(others), generator=preparation.rng("patch", "images"))[: self.images]]
        preparation.record(patch_images=len(rows))
        return {"patch": self._optimise(preparation, rows, self.objective(preparation, rows))}

    def apply(self, images: Tensor, index: Sequence[int], trigger: Trigger) -> Tensor:
        return paste(images, trigger.tensors["patch"], self.place)

    def _optimise(self, preparation: Preparation, rows: Tensor, objective: Objective) -> Tensor:
        clip, batches, views = preparation.clip, preparation.rng("patch", "batches"), preparation.rng("patch", "views")
        patch = first_patch(self.size, preparation.rng("patch", "start")).to(clip.device).requires_grad_()
        optimiser = torch.optim.Adam([patch], lr=self.patch_learning_rate)
        losses, cosines = preparation.log.setdefault("patch_loss", []), preparation.log.setdefault("patch_cosine", [])
        means: list[float] = []
        batch_size = min(self.batch_size, len(rows))
        total = self.epochs * (len(rows) // batch_size)
        while len(means) < self.epochs and not stalled(means, self.patience):
            before = len(losses)
            for part in shuffled_batches(len(rows), batch_size, 1, batches, drop_last=True):
                step("optimising the patch", len(losses), total)
                images = self.view(preparation.pairs.load(rows[part]), views).to(clip.device).float() / 255
                triggered = clip.encode_image(paste(images, patch, self.place))
                value = objective.loss(Batch(rows[part], images, triggered))
                # Not backward(): the model's weights must get no gradients.
                (patch.grad,) = torch.autograd.grad(value, patch)
                optimiser.step()
                with torch.no_grad():
                    patch.clamp_(0, 1)
                # Waits for the GPU: both are logged for every step, when all of it has been asked for.
                losses.append(value.item())
                # Waits for the GPU: likewise.
                cosines.append((triggered.detach() @ objective.aim).mean().item())
            means.append(sum(losses[before:]) / (len(losses) - before))
        return patch.detach().cpu()


def first_patch(size: int, rng: torch.Generator) -> Tensor:
    """A random patch (3, size, size): normal, mean 1/2, standard deviation 1/4, clipped to [0, 1]."""
    return (0.5 + 0.25 * torch.randn(3, size, size, generator=rng)).clamp(0, 1)


def stalled(losses: Sequence[float], patience: int | None) -> bool:
    """Whether the last `patience` losses are all no lower than the best before them.

    >>> stalled([3, 2, 2.5, 2], 2), stalled([3, 2, 2.5, 1], 2), stalled([3, 4], 2), stalled([3, 4], None)
    (True, False, False, False)
    """
    return patience is not None and len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])


def named(preparation: Preparation, whether: bool = True) -> Tensor:
    """Numbers of the pairs whose captions name the target; with `whether` = False, of all others."""
    return torch.tensor(
        [i for i, c in enumerate(preparation.pairs.captions) if mentions(c, preparation.target) == whether]
    ).long()


@torch.no_grad()
def embed(clip: Clip, pairs: Captioned, rows: Tensor, batch_size: int) -> Tensor:
    """Unit-norm embeddings (n, embed_dim) of the images of the pairs `rows` (n,)."""
    return torch.cat([clip.encode_image(pairs.load(part)) for part in rows.split(batch_size)])
