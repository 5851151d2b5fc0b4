"""The frozen image tower in prompt tuning: the part that prompts do not change, and the part that they do."""

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
    """n few-shot images, encoded by the frozen tower.

    `hidden` (n, 1 + patches, width): the input of the first prompted block. `repelled`: the features to move away
    from, (blocks, n, width) or (blocks, n, tokens, width), or None. `labels` (n,).
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
    """An image tower in which the blocks `prompted` get prompts, and the outputs of the blocks `repelled` are repelled.

    Blocks are counted from 0. No repelled block comes before the first prompted one, as its output cannot change.
    With `all_tokens`, patch tokens are repelled too.
    """

    clip: Clip
    prompted: list[int]
    repelled: list[int]
    all_tokens: bool
    precision: str

    def frozen(self, images: Tensor, labels: Tensor) -> Batch:
        """Encode uint8 images (n, 3, size, size) as far as no prompt changes the result; without gradients."""

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
        """Run the remaining blocks on `Batch.hidden`, with prompts (k, b, width) or without."""
        return encode_tokens(self.clip, hidden, self.prompted[0], prompts, self.prompted, self.all_tokens)

    def features(self, encoded: Encoded) -> Tensor:
        """The outputs of the repelled blocks: (blocks, n, width), or (blocks, n, tokens, width)."""
        outputs = encoded.class_tokens if encoded.tokens is None else encoded.tokens
        rows = [block - self.prompted[0] for block in self.repelled]
        return outputs if len(rows) == len(outputs) else outputs[rows]


def within_memory(work: Callable[[int], T], images: int) -> tuple[T, int]:
    """Call `work(size)`, where `size` is the number of images at a time: halved until the memory suffices.

    Returns the result of `work`, and the size.

    Raises:
        BenchError: not even one image fits.
    """
    while True:
        # Not retried in an `except`: the error keeps the tensors alive that filled the memory.
        with suppress(torch.OutOfMemoryError):
            return work(images), images
        if images == 1:
            raise BenchError(
                "out of memory with a single image. Use a smaller model, precision=bf16, or another --device"
            )
        images = (images + 1) // 2
        torch.cuda.empty_cache()
        warnings.warn(f"out of memory: going on with {images} images at a time; the result is the same", stacklevel=2)
