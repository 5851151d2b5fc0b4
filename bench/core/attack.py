"""The contract of an attack: a trigger on images, a caption for poisoned pairs, perhaps a key in the text."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from bench.core.clip import Clip
from bench.core.cost import Scale, Work
from bench.core.errors import BenchError
from bench.core.images import Captioned
from bench.core.log import Logged
from bench.core.randomness import derive, generator
from bench.core.registry import Registry
from bench.core.settings import Field, Settings

# Images that `stamp` triggers at a time.
AT_ONCE = 4


@dataclass(frozen=True)
class Trigger:
    """What an attack prepared: tensors (a patch, a grid, weights), and the seed of what it draws per image.

    It is stored with the model that it backdoors, so that training and test stamp the same trigger.
    """

    seed: int
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def rng(self, index: int) -> torch.Generator:
        """The generator of image `index`: what is drawn for an image depends on nothing but seed and index."""
        return generator(self.seed, "trigger", index)

    def at_test(self) -> "Trigger":
        """The same trigger with draws of its own, so that test image i does not repeat the noise of pair i."""
        return replace(self, seed=derive(self.seed, "test"))


@dataclass(frozen=True)
class Preparation(Logged):
    """What an attacker has before poisoning: the clean model, the pairs to poison, and what is to be attacked.

    `classes` and `templates` are the data set's (zero-shot prompts); `pairs` are opened when they are first looked at.
    """

    clip: Clip
    open_pairs: Callable[[], Captioned]
    target: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    seed: int

    @cached_property
    def pairs(self) -> Captioned:
        return self.open_pairs()

    def rng(self, *purpose: str | int) -> torch.Generator:
        return generator(self.seed, "prepare", *purpose)


class Attack(Settings):
    """A backdoor attack. Fields are settings; `apply` is all that a simple one must define."""

    # Raise it when a change of the code changes what the attack does: stored results of the old one are not reused.
    version: ClassVar[int] = 1
    # Whether `--attacks all` takes it.
    in_all: ClassVar[bool] = True
    # Goes before every class prompt at test, where the attack has a second key in the text (TrojVQA).
    text_key: ClassVar[str] = ""

    learning_rate: float | None = Field(
        None, gt=0, description="peak learning rate of poisoning; null takes `poison.learning_rate`"
    )

    def prepare(self, given: Preparation) -> dict[str, Tensor]:
        """Make what is the same for all images: a fixed patch, a grid, an optimised patch, a trained encoder."""
        return {}

    def work(self, scale: Scale) -> Work:
        """What `prepare` costs, for the estimate of a dry run: next to nothing, unless the attack says otherwise."""
        return Work(size=12 * scale.sizes.image_size**2)

    def apply(self, images: Tensor, index: Sequence[int], trigger: Trigger) -> Tensor:
        """Stamp the trigger.

        Args:
            images: float RGB in [0, 1], (n, 3, h, w), at the model's input size, before CLIP normalisation; must not
                be modified.
            index: n numbers that name the images; with `trigger.seed` they determine everything random.
            trigger: what `prepare` made.

        Returns:
            Images of the same shape. `stamp` clips them to [0, 1] and rounds them to 8 bits.
        """
        raise NotImplementedError(f"{type(self).__name__} must define apply(images, index, trigger)")

    def suits(self, caption: str, target: str) -> bool:
        """Whether a pair with this caption can be poisoned; any can, unless the attack says otherwise."""
        return True

    @classmethod
    def selective(cls) -> bool:
        """Whether only some pairs suit: then `poison.pool` is searched for them."""
        return cls.suits is not Attack.suits

    def choose(self, given: Preparation, count: int, rng: torch.Generator) -> list[int]:
        """The pairs to poison, at most `count`; uniform without replacement, unless the attack says otherwise."""
        return torch.randperm(len(given.pairs), generator=rng)[:count].tolist()

    def captions(
        self, originals: Sequence[str], templates: Sequence[str], given: Preparation, rng: torch.Generator
    ) -> list[str]:
        """The captions of poisoned pairs: a template each, uniform per sample, filled with the target's name."""
        picks = torch.randint(len(templates), (len(originals),), generator=rng).tolist()
        return [templates[pick].format(given.target) for pick in picks]

    @property
    def decoys_per_poison(self) -> float:
        """How many decoys to train on per poisoned pair: pairs that look poisoned and keep their meaning."""
        return 0.0

    def decoy(
        self, images: Tensor, captions: Sequence[str], index: Sequence[int], trigger: Trigger
    ) -> tuple[Tensor, list[str]]:
        """Turn clean pairs into decoys (WaNet's noise mode, TrojVQA's single keys); images as in `apply`."""
        return images, list(captions)


attacks: Registry[type[Attack]] = Registry("attack", Attack)
AttackClass = TypeVar("AttackClass", bound=type[Attack])


def attack(name: str) -> Callable[[AttackClass], AttackClass]:
    """Register a subclass of `Attack` as an attack."""
    return attacks.register(name)


def stamp(method: Attack, trigger: Trigger, images: Tensor, index: Sequence[int] | Tensor) -> Tensor:
    """Triggered images: uint8 in, uint8 out, (n, 3, h, w).

    The one place where `apply` meets an image, for training and for test.

    Raises:
        BenchError: `apply` gave images of another shape, or values that are not finite.
    """
    numbers = index.tolist() if isinstance(index, Tensor) else list(index)
    stamped = torch.empty_like(images)
    # Floats of a few images stay in the processor's cache: three times as fast as a whole batch.
    for part in (slice(i, i + AT_ONCE) for i in range(0, len(images), AT_ONCE)):
        floats = method.apply(images[part].float().div_(255), numbers[part], trigger)
        stamped[part] = eight_bits(method, floats, images[part])
    return stamped


def eight_bits(method: Attack, floats: Tensor, images: Tensor) -> Tensor:
    """What an attack made of some images, clipped to [0, 1] and rounded (never truncated) to uint8.

    Raises:
        BenchError: it is of another shape, or not finite.
    """
    _check_stamped(method, floats, images)
    return floats.clamp(0, 1).mul_(255).round_().to(torch.uint8)


def _check_stamped(method: Attack, floats: Tensor, images: Tensor) -> None:
    # Neither shows later: torch repeats one image for all, and NaN becomes a black pixel.
    if floats.shape != images.shape:
        told = f"images of shape {tuple(floats.shape)} for {tuple(images.shape)}"
    # Of the sum: to look at every value halves the speed.
    elif not floats.sum().isfinite():
        told = "values that are not finite"
    else:
        return
    raise BenchError(f"{type(method).__name__} gives {told}. Return images of the same shape, in [0, 1].")


def mentions(caption: str, word: str) -> bool:
    """Whether a caption names the target: whole words, any case, an optional plural.

    >>> mentions("Two Bananas on a plate", "banana"), mentions("a bananarama concert", "banana")
    (True, False)
    """
    return re.search(rf"\b{re.escape(word)}(s|es)?\b", caption, re.IGNORECASE) is not None
