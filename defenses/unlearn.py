"""Recover and unlearn: find triggers that work, then teach the tower to embed stamped images as clean ones."""

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bench import BenchError, CleanData, Clip, Defense, Field, Need, Scale, Victim, Work, defense
from bench.detection.collapse import collapse, success
from bench.detection.search import Search, aimed_at, embed, search, stamped
from bench.detection.triggers import FAMILIES, FamilyName, Recovered, families
from bench.training.fine_tuning import FineTuning, fine_tune

# Images that triggers are made on; as many others say how well they work.
MADE_ON = 64
AIMED_BATCH = 8


@defense("unlearn")
class Unlearn(Defense, FineTuning):
    """Rounds of looking for triggers and of unlearning all that were found so far.

    A round aims a trigger of each family at the target, which is the class that collapse (`docs/audit.md`) names.
    L = 1 - cos(student(x), f(x)) + 1 - cos(student(T(x)), f(x)), with f the model as it was given and T one of the
    triggers. It ends when no trigger works on more than `enough` of the images. This project's own method.
    """

    version: ClassVar[int] = 3

    families: tuple[FamilyName, ...] = Field(
        tuple(FAMILIES), min_length=1, description="kinds of triggers to look for; square:0.2: of another size"
    )
    target: str | None = Field(None, description="the class to aim at; null: the one that collapse finds")
    rounds: int = Field(3, ge=1, description="rounds at most")
    enough: float = Field(0.15, ge=0, le=1, description="a trigger that works on a smaller share is left alone")
    steps: int = Field(40, ge=1, description="steps of the search for a trigger")
    restarts: int = Field(
        2, ge=1, description="triggers of a family looked for at once; of squares and warps, the best of many"
    )
    images: int = Field(320, ge=4, description="unlabelled images; all there are, if fewer")
    epochs: int = Field(3, ge=0, description="passes over the images, a round")
    batch_size: int = Field(16, ge=2, description="images a step, each clean and stamped")
    weight_decay: float = Field(0.0, ge=0, description="of all but norms and biases")
    warmup_steps: int = Field(4, ge=0, description="steps of linear warm-up before the cosine; at most a tenth of all")
    towers: Literal["both", "image"] = Field("image", description="which weights train")

    needs: ClassVar[frozenset[Need]] = frozenset({"unlabelled", "class_names"})

    def work(self, scale: Scale) -> Work:
        searched = 16 * self.steps * self.restarts * len(self.families) * (1 + self.rounds)
        tuned = 2 * self.images * self.epochs * self.rounds
        return Work(tuned=searched + tuned, size=4 * scale.sizes.parameters)

    def fit(self, victim: Victim, data: CleanData) -> Victim:
        if victim.prompts is not None or victim.head is not None or victim.parts:
            raise BenchError("unlearn fine-tunes a CLIP without prompts or a head. Put it first in a chain")
        images = data.unlabelled(self.images)
        pixels = images.load(torch.arange(len(images)))
        made_on = min(MADE_ON, len(pixels) // 2)
        making, others = pixels[:made_on], pixels[made_on : 2 * made_on]
        texts, wanted = data.class_embeddings(victim), embed(victim, pixels)
        target = self._target(victim, making, others, texts, data)
        student, bank = victim.clip.copy(), list[Recovered]()
        for number in range(self.rounds):
            found = self._triggers(Victim(student), making, others, texts, target, data, number)
            if not found:
                break
            bank += found
            self._forget(student, pixels, wanted, bank, data, number)
        return replace(victim, clip=student)

    def _target(self, victim: Victim, making: Tensor, others: Tensor, texts: Tensor, data: CleanData) -> int:
        if self.target is not None:
            if self.target not in data.train.classes:
                raise BenchError(
                    f"unlearn.target = {self.target} is no class of the data: {', '.join(data.train.classes)}"
                )
            return data.train.classes.index(self.target)
        effort = Search(steps=self.steps, restarts=self.restarts)
        found = [
            collapse(victim, making, others, texts, family, effort, data.rng("unlearn", family.name))
            for family in families(self.families)
        ]
        return max(found, key=lambda one: one.score).target

    def _triggers(
        self, victim: Victim, making: Tensor, others: Tensor, texts: Tensor, target: int, data: CleanData, number: int
    ) -> list[Recovered]:
        """Triggers aimed at the target that still work, at most one a family and restart."""
        effort = Search(steps=self.steps, batch_size=AIMED_BATCH, restarts=self.restarts)
        objective = aimed_at(target, texts)
        kept = []
        for family in families(self.families):
            rng = data.rng("unlearn", family.name, number)
            for trigger in search(victim, making, family, objective, effort, rng):
                works = success(victim, trigger, others, texts, target)
                data.record(**{f"works_{family.name}": works})
                kept += [trigger] if works >= self.enough else []
        return kept

    def _forget(
        self, student: Clip, pixels: Tensor, wanted: Tensor, bank: list[Recovered], data: CleanData, number: int
    ) -> None:
        """Teach the student, in place, to embed images with a trigger and without as it was given to embed them."""
        picks = data.rng("unlearn", "picks", number)

        def loss(clip: Clip, index: Tensor) -> Tensor:
            trigger = bank[int(torch.randint(len(bank), (), generator=picks))]
            both = torch.cat([pixels[index], stamped(trigger, pixels[index])])
            apart = 1 - (clip.encode_image(both) * wanted[index].repeat(2, 1)).sum(1)
            # Waits for the GPU: logged for every step.
            data.record(apart=apart.mean().item())
            return 2 * apart.mean()

        fine_tune(student, len(pixels), self, loss, data.rng("unlearn", "batches", number))
