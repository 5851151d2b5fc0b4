"""Deep visual prompt tuning, the common part of VPT and RVPT.

Prompts P^D..P^(L-1), b per block, enter blocks D+1..L of the frozen image tower and are tuned on few-shot images with
cross-entropy against the class texts (paper eq. 2, 4). A subclass may add a loss on the blocks' outputs (RVPT, eq. 3).
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import BenchError, CleanData, Defense, Facing, Field, Labelled, Need, Scale, Victim, Work
from bench.core.clip import untrained
from bench.core.defense import too_few_images
from bench.core.encoder import layers, width
from bench.core.images import crops
from bench.core.precision import autocast
from bench.core.progress import track
from bench.core.randomness import derive
from bench.training.fine_tuning import shuffled_batches
from defenses.tower import Batch, Tower, join, within_memory


class PromptTuning(Defense):
    """Settings and training loop of deep visual prompt tuning. The defaults are the paper's for ViT-B/32."""

    needs: ClassVar[frozenset[Need]] = frozenset({"shots", "class_names"})

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
    average: int = Field(
        0, ge=0, description="last epochs over whose steps the prompts are averaged; 0: those after the last step"
    )
    max_norm: float | None = Field(None, gt=0, description="longer gradients are cut to this norm; null: none is")
    drop_last: bool = Field(
        False,
        description="leave out the last, incomplete batch of an epoch, as CoOp's training library does",
    )
    min_crop: float = Field(0.08, gt=0, le=1, description="smallest area of the random resized crop; 1 is no crop")
    max_aspect: float = Field(4 / 3, ge=1, description="largest change of the aspect ratio by the crop")
    flip: bool = Field(True, description="random horizontal flip")
    views: int | None = Field(
        None, ge=1, description="augmented views of an image that are drawn once and cached; null: new each epoch"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="autocast; prompts stay in fp32")
    last_blocks: int | None = Field(
        None,
        ge=1,
        description="prompted blocks counted from the output, in place of depth; null: all after D",
    )
    first_blocks: int | None = Field(
        None, ge=1, description="prompted blocks counted from the input, in place of depth and last_blocks"
    )
    template: str | None = Field(
        None,
        description="text prompt of the classes, {} for the name, in tuning and at test; null: the data set's",
    )
    without_target: bool = Field(
        False,
        description="tune without the target class: neither its images nor its place in the softmax",
    )

    def model_post_init(self, context: object) -> None:
        if self.last_blocks is not None and self.depth != type(self).model_fields["depth"].default:
            raise BenchError(
                f"depth = {self.depth} counts blocks from the input, last_blocks = {self.last_blocks} from the output: "
                "give one of them"
            )
        others = (self.depth, self.last_blocks) != (type(self).model_fields["depth"].default, None)
        if self.first_blocks is not None and others:
            raise BenchError(f"first_blocks = {self.first_blocks} goes with neither depth nor last_blocks: give one")
        if self.average > self.epochs:
            raise BenchError(f"average = {self.average} is more than epochs = {self.epochs}: give as many or fewer")
        if self.template is not None and "{}" not in self.template:
            raise BenchError(
                f"template = {self.template!r} has no place for the class's name: write {{}} where it goes"
            )

    def unsuited(self, facing: Facing) -> str:
        if facing.vision_transformer is False:
            return "visual prompts need a vision transformer of open_clip as image tower; take a ViT"
        if facing.sizes is not None:
            try:
                self.arrangement(facing.sizes.blocks)
            except BenchError as error:
                return str(error)
        return super().unsuited(facing) or too_few_images(self.shots, facing)

    def work(self, scale: Scale) -> Work:
        prompted = self.first_blocks or self.last_blocks or scale.sizes.blocks - self.depth
        images = self.shots * scale.classes
        return Work(tuned=images * self.epochs, size=4 * prompted * self.prompts * scale.sizes.width)

    @property
    def leaves_target_out(self) -> bool:
        return self.without_target

    @property
    def repels(self) -> bool:
        """Whether the loss needs the frozen tower's features."""
        return False

    @property
    def all_tokens(self) -> bool:
        """Whether patch tokens are repelled beside the class token."""
        return False

    def loss(self, prompted: Tensor, frozen: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss added to the cross-entropy, and values to log by name; means over the images.

        `prompted` and `frozen` are features of both towers: (blocks, n, width) or (blocks, n, tokens, width).
        """
        raise NotImplementedError(f"{type(self).__name__} must define loss(prompted, frozen)")

    def arrangement(self, total: int) -> tuple[list[int], list[int]]:
        """The blocks, of `total`, that get prompts and those that are repelled, counted from 0."""
        for name in ("last_blocks", "first_blocks"):
            if (count := getattr(self, name)) is not None and count > total:
                raise BenchError(f"{name} = {count}, but this image tower has {total} blocks")
        if self.first_blocks is not None:
            return list(range(self.first_blocks)), list(range(self.first_blocks))
        first = self.depth if self.last_blocks is None else total - self.last_blocks
        if first >= total:
            raise BenchError(f"depth = {first}, but this image tower has {total} blocks: no block gets prompts")
        return list(range(first, total)), list(range(first, total))

    def fit(self, victim: Victim, data: CleanData) -> Victim:
        if victim.prompts is not None or victim.head is not None:
            raise BenchError("prompt tuning needs a CLIP without prompts or a head; it can follow cleanclip only")
        if victim.encodes_alone:
            names = ", ".join(type(part).__name__ for part in victim.parts)
            raise BenchError(
                f"prompts are tuned in the image tower's blocks, and {names} changes their input. Put prompt tuning "
                "first in a chain"
            )
        if self.without_target and data.target is None:
            raise BenchError("without_target = true, and the training images have no class with the target's name")
        total = layers(victim.clip)
        prompted, repelled = self.arrangement(total)
        tower = Tower(victim.clip, prompted, repelled if self.repels else [], self.all_tokens, self.precision)
        prompts = self._initial(victim, len(prompted), data.rng("prompts"))
        last = prompted == list(range(total - len(prompted), total))
        tuned = replace(victim, prompts=prompts, blocks=None if last else tuple(prompted), template=self.template)
        # With b = 0, the model is unchanged bit for bit, and there is nothing to tune.
        if self.prompts:
            with untrained(victim.clip.model):
                self._tune(prompts.requires_grad_(), tuned, tower, data)
        prompts.requires_grad_(False)
        return tuned

    def _tune(self, prompts: Tensor, victim: Victim, tower: Tower, data: CleanData) -> None:
        """Tune the prompts in place."""
        texts = data.class_embeddings(victim)
        dropped = [data.target] if self.without_target else []
        optimiser = torch.optim.SGD(
            [prompts], lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
        )
        scaler = torch.amp.GradScaler(tower.clip.device.type, enabled=self.precision == "fp16")

        def backward(batch: Batch, at_once: int) -> dict[str, float]:
            """Compute the gradient of the batch's mean loss, `at_once` images at a time; returns the loss's parts."""
            optimiser.zero_grad()
            sums: dict[str, float] = {}
            for index in torch.arange(len(batch.labels)).split(at_once):
                part, share = batch.take(index), len(index) / len(batch.labels)
                with autocast(tower.clip.device, self.precision):
                    encoded = tower.encode(part.hidden, prompts)
                    logits = victim.logits(encoded, texts).float()
                    logits[:, dropped] = -torch.inf
                    loss = F.cross_entropy(logits, part.labels)
                    logged = {"ce": loss.detach()}
                    if part.repelled is not None:
                        extra, more = self.loss(tower.features(encoded), part.repelled)
                        loss, logged = loss + extra, logged | more
                scaler.scale(share * loss).backward()
                # Waits for the GPU: logged for every step, when forward and backward pass have been asked for.
                sums = {name: sums.get(name, 0.0) + share * value.item() for name, value in logged.items()}
            return sums

        at_once, mean, averaged = self.batch_size, torch.zeros_like(prompts), 0
        for epoch, batch in self._batches(tower, data):
            for group in optimiser.param_groups:
                group["lr"] = self._rate(epoch)
            whole = min(at_once, len(batch.labels))
            logged, fits = within_memory(partial(backward, batch), whole)
            if fits < whole:
                at_once = fits
                data.record(images_at_once=fits)
            if self.max_norm is not None:
                scaler.unscale_(optimiser)
                torch.nn.utils.clip_grad_norm_([prompts], self.max_norm)
            scale = scaler.get_scale()
            scaler.step(optimiser)
            scaler.update()
            if scaler.get_scale() < scale:
                data.record(skipped_overflow=epoch)
            if epoch >= self.epochs - self.average:
                averaged += 1
                mean += (prompts.detach() - mean) / averaged
            data.record(**logged)
        if averaged:
            with torch.no_grad():
                prompts.copy_(mean)

    def _initial(self, victim: Victim, blocks: int, rng: torch.Generator) -> Tensor:
        shape = (blocks, self.prompts, width(victim.clip))
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

    def _batches(self, tower: Tower, data: CleanData) -> Iterator[tuple[int, Batch]]:
        """Epoch and batch of all steps. With cached views, the frozen part of the tower is computed once per view."""
        shots = data.shots(self.shots, data.target if self.without_target else None)
        order = [
            (epoch, step, index)
            for epoch in range(self.epochs)
            for step, index in enumerate(self._epoch(len(shots), data.rng("batches", epoch)))
        ]
        steps = track(order, "prompt tuning")
        views = 1 if self.min_crop == 1 and not self.flip else self.views
        if views is None:
            for epoch, step, index in steps:
                images = self._views(shots, index, derive(data.seed, "views", epoch, step))
                yield epoch, tower.frozen(images, shots.labels[index])
            return
        cache = []
        for view in track(range(min(views, self.epochs)), "views of the images"):
            parts = torch.arange(len(shots)).split(256)
            seeds = [derive(data.seed, "views", view, part) for part in range(len(parts))]
            frozen = [
                tower.frozen(self._views(shots, index, seed), shots.labels[index])
                for index, seed in zip(parts, seeds, strict=True)
            ]
            cache.append(join(frozen))
        for epoch, _, index in steps:
            yield epoch, cache[epoch % len(cache)].take(index)

    def _epoch(self, n: int, rng: torch.Generator) -> Iterator[Tensor]:
        """The batches of an epoch of n images; they are never all dropped."""
        return shuffled_batches(n, self.batch_size, 1, rng, drop_last=self.drop_last and n >= self.batch_size)

    def _views(self, shots: Labelled, index: Tensor, seed: int) -> Tensor:
        """One augmented view of each image of an index (n,): uint8 (n, 3, size, size)."""
        return crops(shots, index, seed, self.min_crop, self.max_aspect, self.flip)
