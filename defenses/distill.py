"""Distill: teach a plain image tower the embeddings of a defended one, so that no prompt is left."""

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bench import BenchError, CleanData, Clip, Defense, Field, Need, Scale, Victim, Work, defense
from bench.detection.search import embed
from bench.training.fine_tuning import FineTuning, fine_tune


@defense("distill")
class Distill(Defense, FineTuning):
    """Fine-tune the image tower until it embeds unlabelled images as the defended model does.

    L = mean of 1 - cos(student(x), teacher(x)). The student starts from the defended model's weights without its
    prompts. What comes out is an ordinary CLIP, which any pipeline loads: `rvpt+distill`. This project's own method,
    `docs/audit.md`.
    """

    images: int = Field(2560, ge=2, description="unlabelled images to learn from; all there are, if fewer")
    epochs: int = Field(1, ge=0, description="passes over the images")
    batch_size: int = Field(32, ge=2, description="images a step")
    weight_decay: float = Field(0.0, ge=0, description="of all but norms and biases")
    warmup_steps: int = Field(10, ge=0, description="steps of linear warm-up before the cosine; at most a tenth of all")
    towers: Literal["both", "image"] = Field("image", description="which weights train")

    needs: ClassVar[frozenset[Need]] = frozenset({"unlabelled"})
    alone: ClassVar[bool] = False

    def work(self, scale: Scale) -> Work:
        return Work(forward=self.images, tuned=self.images * self.epochs, size=4 * scale.sizes.parameters)

    def fit(self, victim: Victim, data: CleanData) -> Victim:
        if victim.head is not None:
            raise BenchError(
                "distill teaches embeddings, and this model has a head. Leave linear_probe out of the chain"
            )
        if victim.prompts is None and not victim.parts:
            raise BenchError("distill needs a model with prompts to learn from. Put it behind rvpt: rvpt+distill")
        images = data.unlabelled(self.images)
        pixels = images.load(torch.arange(len(images)))
        taught, student = embed(victim, pixels), victim.clip.copy()

        def loss(clip: Clip, index: Tensor) -> Tensor:
            value = (1 - (clip.encode_image(pixels[index]) * taught[index]).sum(1)).mean()
            # Waits for the GPU: logged for every step.
            data.record(distance=value.item())
            return value

        fine_tune(student, len(pixels), self, loss, data.rng("distill", "batches"))
        return replace(victim, clip=student, prompts=None, blocks=None, parts=())
