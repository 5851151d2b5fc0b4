"""Deep visual prompt tuning: what VPT and RVPT share.

Prompts P^D..P^(L-1), b a block, enter blocks D+1..L of the frozen image tower and are tuned on few-shot images with
cross-entropy against the class texts (paper eq. 2, 4). A subclass may add a loss on the class tokens (RVPT, eq. 3).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from bench import BenchError, CleanData, Defense, Field, Labelled, Victim
from bench.core.contrastive import autocast, shuffled_batches
from bench.core.encoder import Encoded, encode_tokens, layers, tokens, width
from bench.core.randomness import derive


@dataclass(frozen=True)
class Batch:
    """Few-shot images inside the frozen tower: f^D, the frozen class tokens c^(D+1)..c^L (if asked for), labels."""

    hidden: Tensor
    repelled: Tensor | None
    labels: Tensor


class PromptTuning(Defense):
    """Settings and loop of deep visual prompt tuning. The defaults are the paper's for ViT-B/32."""

    shots: int = Field(16, ge=1, description="training images a class")
    depth: int = Field(3, ge=0, description="D, the number of first blocks without prompts")
    prompts: int = Field(50, ge=0, description="b, prompts a block")
    init: Literal["normal", "vpt"] = Field("normal", description="normal: N(0, init_std^2); vpt: uniform, as VPT's")
    init_std: float = Field(0.02, ge=0, description="of normal initial prompts; unstated in the paper")
    learning_rate: float = Field(0.002, gt=0, description="of SGD, cosine per epoch")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD; unstated in the paper")
    weight_decay: float = Field(5e-4, ge=0, description="of SGD; unstated in the paper")
    warmup_epochs: int = Field(1, ge=0, description="first epochs at a constant 1e-5, as in CoOp's recipe")
    batch_size: int = Field(32, ge=1, description="images a step")
    epochs: int = Field(50, ge=0, description="passes over the images")
    min_crop: float = Field(0.08, gt=0, le=1, description="smallest area of the random resized crop; 1 is no crop")
    max_aspect: float = Field(4 / 3, ge=1, description="largest change of the aspect ratio by the crop")
    flip: bool = Field(True, description="random horizontal flip")
    views: int | None = Field(
        None, ge=1, description="augmented views of an image that are drawn once and cached; null: new each epoch"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="autocast; prompts stay in fp32")

    def loss(self, encoded: Encoded, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """What is added to the cross-entropy, and what to log of it."""
        return encoded.embedding.new_zeros(()), {}

    @property
    def repels(self) -> bool:
        """Whether the loss needs the frozen class tokens."""
        return False

    def fit(self, victim: Victim, data: CleanData) -> Victim:
        if victim.prompts is not None or victim.head is not None:
            raise BenchError("prompt tuning needs a CLIP without prompts or a head; it can follow cleanclip only")
        if self.depth >= (blocks := layers(victim.clip)):
            raise BenchError(f"depth = {self.depth}, but this image tower has {blocks} blocks: no block gets prompts")
        victim.clip.model.requires_grad_(False)
        prompts = self._initial(victim, blocks, data.rng("prompts")).requires_grad_()
        if not self.prompts:
            # b = 0 is the model as it was, bit for bit, and nothing of it can be tuned.
            return replace(victim, prompts=prompts.detach())
        texts = data.class_embeddings(victim)
        optimiser = torch.optim.SGD(
            [prompts], lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
        )
        device = victim.clip.device
        for epoch, batch in self._batches(victim, data):
            for group in optimiser.param_groups:
                group["lr"] = self._rate(epoch)
            with autocast(device, self.precision):
                encoded = encode_tokens(victim.clip, batch.hidden, self.depth, prompts)
                logits = victim.logits(encoded.embedding, texts)
                cross_entropy = F.cross_entropy(logits.float(), batch.labels)
                extra, logged = self.loss(encoded, batch)
            optimiser.zero_grad()
            (cross_entropy + extra).backward()
            optimiser.step()
            data.record(ce=cross_entropy.item(), **logged)
        return replace(victim, prompts=prompts.detach())

    def _initial(self, victim: Victim, blocks: int, rng: torch.Generator) -> Tensor:
        shape = (blocks - self.depth, self.prompts, width(victim.clip))
        if self.init == "vpt":
            patch = victim.clip.visual.conv1.kernel_size[0]
            bound = math.sqrt(6 / (3 * patch**2 + shape[-1]))
            start = (torch.rand(shape, generator=rng) * 2 - 1) * bound
        else:
            start = torch.randn(shape, generator=rng) * self.init_std
        return start.to(victim.clip.device)

    def _rate(self, epoch: int) -> float:
        if epoch < self.warmup_epochs:
            return 1e-5
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (epoch - self.warmup_epochs) / self.epochs))

    def _batches(self, victim: Victim, data: CleanData) -> Iterator[tuple[int, Batch]]:
        """Batches of all epochs. What is frozen is computed once where the views are drawn once."""
        shots = data.shots(self.shots)
        order = [
            list(shuffled_batches(len(shots), self.batch_size, 1, data.rng("batches", epoch)))
            for epoch in range(self.epochs)
        ]
        views = 1 if self.min_crop == 1 and not self.flip else self.views
        if views is None:
            for epoch, batches in enumerate(order):
                for step, index in enumerate(batches):
                    images = self._views(shots, index, derive(data.seed, "views", epoch, step))
                    yield epoch, self._frozen(victim, images, shots.labels[index])
            return
        cache = []
        for view in range(min(views, self.epochs)):
            parts = torch.arange(len(shots)).split(256)
            seeds = [derive(data.seed, "views", view, part) for part in range(len(parts))]
            frozen = [
                self._frozen(victim, self._views(shots, index, seed), shots.labels[index])
                for index, seed in zip(parts, seeds, strict=True)
            ]
            cache.append(_join(frozen))
        for epoch, batches in enumerate(order):
            whole = cache[epoch % len(cache)]
            for index in batches:
                repelled = whole.repelled[:, index] if whole.repelled is not None else None
                yield epoch, Batch(whole.hidden[index], repelled, whole.labels[index])

    def _views(self, shots: Labelled, index: Tensor, seed: int) -> Tensor:
        """One augmented view of each image of an index: uint8 (n, 3, size, size)."""
        side = shots.pixels.shape[-1]
        bicubic, aspect = v2.InterpolationMode.BICUBIC, (1 / self.max_aspect, self.max_aspect)
        crop = v2.RandomResizedCrop(side, (self.min_crop, 1.0), aspect, bicubic, antialias=True)
        flip = v2.RandomHorizontalFlip(0.5 if self.flip else 0.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.min_crop == 1:
                # Not a crop of everything: of a native image that is not square, it would still cut or squash.
                return torch.stack([flip(image) for image in shots.load(index)])
            return torch.stack([flip(crop(shots.load_native(i))) for i in index.tolist()])

    @torch.no_grad()
    def _frozen(self, victim: Victim, images: Tensor, labels: Tensor) -> Batch:
        with autocast(victim.clip.device, self.precision):
            hidden = tokens(victim.clip, images, self.depth)
            repelled = encode_tokens(victim.clip, hidden, self.depth).class_tokens if self.repels else None
        return Batch(hidden, repelled, labels.to(victim.clip.device))


def _join(batches: list[Batch]) -> Batch:
    repelled = [b.repelled for b in batches if b.repelled is not None]
    return Batch(
        torch.cat([b.hidden for b in batches]),
        torch.cat(repelled, 1) if repelled else None,
        torch.cat([b.labels for b in batches]),
    )
