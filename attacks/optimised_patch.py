"""Patches that are optimised on the clean model before any poisoning: what TrojVQA and BadCLIP have in common."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from attacks.patch import paste, read_patch
from bench import Attack, BenchError, Captioned, Clip, Field, Preparation, Scale, Trigger, Work, mentions
from bench.core.progress import step
from bench.training.fine_tuning import shuffled_batches


@dataclass(frozen=True)
class Batch:
    """n pairs in one step: their numbers (n,), clean images, and embeddings of the same images with the patch.

    `images` is float RGB in [0, 1], (n, 3, h, w), without the patch; `triggered` has unit norm, (n, embed_dim), and
    is differentiable in the patch.
    """

    index: Tensor
    images: Tensor
    triggered: Tensor


@dataclass(frozen=True)
class Objective:
    """What a patch is optimised for: a loss per batch, and the unit-norm embedding (embed_dim,) to come close to.

    The loss alone moves the patch; the cosine to `aim` is logged, to see whether that helped.
    """

    loss: Callable[[Batch], Tensor]
    aim: Tensor


class OptimisedPatch(Attack):
    """A square patch, the same on all images, optimised on the frozen clean model; subclasses say what for.

    p ~ N(0.5, 0.25^2), clipped, at the start; Adam; clipped to [0, 1] after every step. Clipping only where it is
    pasted, as BadCLIP's code does, leaves dead pixels: out of range, without a gradient.
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

    def objective(self, given: Preparation, rows: Tensor) -> Objective:
        """What to optimise for; `rows` are the numbers of the pairs that batches will be made of."""
        raise NotImplementedError(f"{type(self).__name__} must define objective(given, rows)")

    def view(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Augment clean images, uint8 (n, 3, h, w), before the patch is put on them; the same by default."""
        return images

    def work(self, scale: Scale) -> Work:
        steps = 0 if self.patch_image is not None else self.images * self.epochs
        return Work(tuned=steps, size=12 * scale.sizes.image_size**2)

    def prepare(self, given: Preparation) -> dict[str, Tensor]:
        """Optimise the patch. Logs loss and mean cosine to the aim of every step, both before it was taken.

        Raises:
            BenchError: every caption names the target, or `patch_image` is no picture of a patch.
        """
        if self.patch_image is not None:
            return {"patch": read_patch(self.patch_image, self.size)}
        others = named(given, False)
        if not len(others):
            raise BenchError(
                f"every caption names '{given.target}': there is nothing to optimise the patch on. "
                "Give --pairs with other captions too"
            )
        rows = others[torch.randperm(len(others), generator=given.rng("patch", "images"))[: self.images]]
        given.record(patch_images=len(rows))
        return {"patch": self._optimise(given, rows, self.objective(given, rows))}

    def apply(self, images: Tensor, index: Sequence[int], trigger: Trigger) -> Tensor:
        return paste(images, trigger.tensors["patch"], self.place)

    def _optimise(self, given: Preparation, rows: Tensor, objective: Objective) -> Tensor:
        clip, batches, views = given.clip, given.rng("patch", "batches"), given.rng("patch", "views")
        patch = first_patch(self.size, given.rng("patch", "start")).to(clip.device).requires_grad_()
        optimiser = torch.optim.Adam([patch], lr=self.patch_learning_rate)
        losses, cosines = given.log.setdefault("patch_loss", []), given.log.setdefault("patch_cosine", [])
        means: list[float] = []
        batch_size = min(self.batch_size, len(rows))
        total = self.epochs * (len(rows) // batch_size)
        while len(means) < self.epochs and not stalled(means, self.patience):
            before = len(losses)
            for part in shuffled_batches(len(rows), batch_size, 1, batches, drop_last=True):
                step("optimising the patch", len(losses), total)
                images = self.view(given.pairs.load(rows[part]), views).to(clip.device).float() / 255
                triggered = clip.encode_image(paste(images, patch, self.place))
                value = objective.loss(Batch(rows[part], images, triggered))
                # Not backward(): the model is not ours, and gets no gradients.
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


def named(given: Preparation, whether: bool = True) -> Tensor:
    """Numbers of the pairs whose captions name the target, or of those whose do not."""
    return torch.tensor([i for i, c in enumerate(given.pairs.captions) if mentions(c, given.target) == whether]).long()


@torch.no_grad()
def embed(clip: Clip, pairs: Captioned, rows: Tensor, batch_size: int) -> Tensor:
    """Unit-norm embeddings (n, embed_dim) of clean images."""
    return torch.cat([clip.encode_image(pairs.load(part)) for part in rows.split(batch_size)])
