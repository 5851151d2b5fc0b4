"""The contract of a defense: a backdoored model and clean data in, a defended model out."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from bench.core.errors import BenchError
from bench.core.images import Captioned, Images, Labelled, few_shot
from bench.core.log import Logged
from bench.core.randomness import generator
from bench.core.registry import Registry
from bench.core.settings import Settings
from bench.core.victim import Victim


@dataclass(frozen=True)
class CleanData(Logged):
    """What a defender has: clean labelled images, clean pairs, the classes' names. None of it is of the test split.

    `target` is the attack's target class, None where `train` has no such class; only the ablation that leaves its
    images out may look at it. `open_pairs(n)` reads n clean image-text pairs. `used` takes the ids of the images
    drawn, `skipped` which of them could not be read; both are stored with the defended model, as the log is. `check`
    refuses images that a defender may not have.
    """

    train: Labelled
    templates: tuple[str, ...]
    seed: int
    target: int | None
    open_pairs: Callable[[int], Captioned] | None = None
    used: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    check: Callable[[Images], object] | None = None

    def rng(self, *purpose: str | int) -> torch.Generator:
        return generator(self.seed, "defense", *purpose)

    def shots(self, k: int, without: int | None = None) -> Labelled:
        """k training images a class, the same ones for every defense of a run; `without` leaves one class out."""
        return self._give(few_shot(self.train, k, generator(self.seed, "few-shot"), without))

    def all_images(self) -> Labelled:
        """All training images; files are decoded now."""
        return self._give(self.train.decoded())

    def _give(self, images: Labelled) -> Labelled:
        if self.check is not None:
            self.check(images)
        self.used[:], self.skipped[:] = images.ids, images.skipped
        return images

    def pairs(self, n: int) -> Captioned:
        """n clean pairs, or as many as there are.

        Raises:
            BenchError: there are none.
        """
        if self.open_pairs is None:
            raise BenchError("this defense fine-tunes on clean pairs, and there are none. Give --pairs FILE.csv")
        return self.open_pairs(n)

    def class_embeddings(self, victim: Victim) -> Tensor:
        return victim.class_embeddings(self.train.classes, self.templates)


class Defense(Settings):
    """A defense. Fields are settings; `fit` does the work."""

    # Raise it when a change of the code changes what the defense does: stored results of the old one are not reused.
    version: ClassVar[int] = 1
    # Whether the defended model still classifies by class texts; an attack with a key in the text needs that.
    zero_shot: ClassVar[bool] = True

    def fit(self, victim: Victim, data: CleanData) -> Victim:
        """Defend `victim`, which must not be changed, with clean data.

        Raises:
            BenchError: the victim or the data are not what this defense needs.
        """
        raise NotImplementedError(f"{type(self).__name__} must define fit(victim, data)")


defenses: Registry[type[Defense]] = Registry("defense", Defense)
DefenseClass = TypeVar("DefenseClass", bound=type[Defense])


def defense(name: str) -> Callable[[DefenseClass], DefenseClass]:
    """Register a subclass of `Defense` as a defense."""
    return defenses.register(name)
