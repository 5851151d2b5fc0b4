"""The frozen image tower as prompt tuning sees it: what is computed once, and what the prompts change."""

import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from bench import BenchError, Clip
from bench.core.encoder import Encoded, encode_tokens, tokens
from bench.core.precision import autocast

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Few-shot images inside the frozen tower.

    `hidden` (n, 1 + patches, width): what enters the first prompted block. `repelled`: the features to move away
    from, if asked for, (blocks, n, width) or (blocks, n, tokens, width). `labels` (n,).
    """

    hidden: Tensor
    repelled: Tensor | None
    labels: Tensor

    def take(self, index: Tensor) -> "Batch":
        repelled = self.repelled[:, index] if self.repelled is not None else None
        return Batch(self.hidden[index], repelled, self.labels[index])


def join(batches: list[Batch]) -> Batch:
    repelled = [b.repelled for b in batches if b.repelled is not None]
    return Batch(
        torch.cat([b.hidden for b in batches]),
        torch.cat(repelled, 1) if repelled else None,
        torch.cat([b.labels for b in batches]),
    )


@dataclass(frozen=True)
class Tower:
    """An image tower whose blocks `prompted` get prompts, and whose outputs of the blocks `repelled` are repelled.

    Blocks count from 0; no repelled block comes before the first prompted one, where its output is what it was.
    `all_tokens` repels patch tokens beside the class token.
    """

    clip: Clip
    prompted: list[int]
    repelled: list[int]
    all_tokens: bool
    precision: str

    def frozen(self, images: Tensor, labels: Tensor) -> Batch:
        """The part of a step that no prompt changes, without a graph, of uint8 images (n, 3, size, size)."""

        def parts(at_once: int) -> Batch:
            return join([self._frozen(images[i], labels[i]) for i in torch.arange(len(images)).split(at_once)])

        return within_memory(parts, len(images))[0]

    @torch.no_grad()
    def _frozen(self, images: Tensor, labels: Tensor) -> Batch:
        with autocast(self.clip.device, self.precision):
            hidden = tokens(self.clip, images, self.prompted[0])
            features = self.features(self.encode(hidden)) if self.repelled else None
        return Batch(hidden, features, labels.to(self.clip.device))

    def encode(self, hidden: Tensor, prompts: Tensor | None = None) -> Encoded:
        """The other blocks on `Batch.hidden`, with prompts (k, b, width) or as they are."""
        return encode_tokens(self.clip, hidden, self.prompted[0], prompts, self.prompted, self.all_tokens)

    def features(self, encoded: Encoded) -> Tensor:
        """The outputs of the repelled blocks: (blocks, n, width), or (blocks, n, tokens, width)."""
        outputs = encoded.class_tokens if encoded.tokens is None else encoded.tokens
        rows = [block - self.prompted[0] for block in self.repelled]
        return outputs if len(rows) == len(outputs) else outputs[rows]


def within_memory(work: Callable[[int], T], images: int) -> tuple[T, int]:
    """`work(size)`, of as many images at a time as memory holds: `size` is halved until it does not run out.

    Returns what `work` gave and the size that it took.

    Raises:
        BenchError: not even one image fits.
    """
    while True:
        # Not in an `except`: the error holds the tensors that filled the memory.
        with suppress(torch.OutOfMemoryError):
            return work(images), images
        if images == 1:
            raise BenchError(
                "out of memory with a single image. Take a smaller model, precision=bf16, or another --device"
            )
        images = (images + 1) // 2
        torch.cuda.empty_cache()
        warnings.warn(f"out of memory: going on with {images} images at a time; the result is the same", stacklevel=2)
