"""The contract of a defense: a backdoored model and clean data in, a defended model out."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeVar, get_args

import torch
from torch import Tensor

from bench.core.attack import Attack
from bench.core.clip import Clip
from bench.core.cost import Scale, Sizes, Work
from bench.core.errors import BenchError
from bench.core.images import Captioned, Images, Labelled, few_shot
from bench.core.log import Logged
from bench.core.randomness import generator
from bench.core.registry import Registry
from bench.core.settings import Settings
from bench.core.victim import Victim

# What a defense may be given beside the model: few-shot labelled images, images without labels, image-text pairs, the
# clean model from which the attacker is known to have started, the names of the classes.
Need = Literal["shots", "unlabelled", "pairs", "base", "class_names"]


@dataclass(frozen=True)
class CleanData(Logged):
    """What a defender has, as far as `Defense.needs` names it. None of it is of the test split.

    `target` is the attack's target class, None where `train` has no such class; only the ablation that leaves its
    images out may look at it. `open_pairs(n)` reads n clean image-text pairs, `open_base()` the clean model. `used`
    takes the ids of all images drawn, `skipped` which of them could not be read; both are stored with the defended
    model, as the log is. `check` refuses images that a defender may not have.
    """

    train: Labelled
    templates: tuple[str, ...]
    seed: int
    target: int | None
    open_pairs: Callable[[int], Captioned] | None = None
    open_base: Callable[[], Clip] | None = None
    used: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    check: Callable[[Images], object] | None = None
    needs: frozenset[Need] = frozenset(get_args(Need))

    def rng(self, *purpose: str | int) -> torch.Generator:
        return generator(self.seed, "defense", *purpose)

    def shots(self, k: int, without: int | None = None) -> Labelled:
        """k training images a class, the same ones for every defense of a run; `without` leaves one class out."""
        self._require("shots")
        return self._give(few_shot(self.train, k, generator(self.seed, "few-shot"), without))

    def all_images(self) -> Labelled:
        """All training images; files are decoded now."""
        self._require("shots")
        return self._give(self.train.decoded())

    def unlabelled(self, n: int) -> Images:
        """n random training images, or as many as there are, without labels; the same for every defense of a run."""
        self._require("unlabelled")
        order = torch.randperm(len(self.train), generator=generator(self.seed, "unlabelled"))
        drawn = self._give(self.train.subset(order[:n]))
        return Images(drawn.ids, drawn.pixels, drawn.fingerprint, native=drawn.native, skipped=drawn.skipped)

    def pairs(self, n: int) -> Captioned:
        """n clean pairs, or as many as there are.

        Raises:
            BenchError: there are none.
        """
        self._require("pairs")
        if self.open_pairs is None:
            raise BenchError("this defense fine-tunes on clean pairs, and there are none. Give --pairs FILE.csv")
        return self.open_pairs(n)

    def base(self) -> Clip:
        """The clean model from which the attacker started.

        Raises:
            BenchError: it is not known.
        """
        self._require("base")
        if self.open_base is None:
            raise BenchError("this defense compares with the clean model, and none is declared. Give --model NAME")
        return self.open_base()

    def class_embeddings(self, victim: Victim) -> Tensor:
        """The zero-shot classifier (classes, embed_dim) of the victim."""
        self._require("class_names")
        return victim.class_embeddings(self.train.classes, self.templates)

    def _require(self, need: Need) -> None:
        # A table that groups defenses by what they hold must not be wrong about one.
        if need not in self.needs:
            raise BenchError(
                f"this defense takes `{need}` and does not declare it: write needs = frozenset({{'{need}'}})"
            )

    def _give(self, images: Labelled) -> Labelled:
        if self.check is not None:
            self.check(images)
        self.used[:] = dict.fromkeys([*self.used, *images.ids])
        self.skipped[:] = dict.fromkeys([*self.skipped, *images.skipped])
        return images


@dataclass(frozen=True)
class Facing:
    """What a defense is to face: an attack, a model, a data set; None where it is not known or does not matter."""

    attack: Attack | None = None
    sizes: Sizes | None = None
    images_per_class: int | None = None


class Defense(Settings):
    """A defense. Fields are settings; `fit` does the work."""

    # Raise it when a change of the code changes what the defense does: stored results of the old one are not reused.
    version: ClassVar[int] = 1
    # What `fit` takes of the clean data; what is not named here is refused there.
    needs: ClassVar[frozenset[Need]] = frozenset()
    # Whether the defended model still classifies by class texts; an attack with a key in the text needs that.
    zero_shot: ClassVar[bool] = True
    # Whether it can be the only one, or the first of a chain; `--defenses all` leaves out one that cannot.
    alone: ClassVar[bool] = True
    # Whether `fit` may run in a process group, and then shares its batches over the processes.
    shares_batches: ClassVar[bool] = False

    @property
    def leaves_target_out(self) -> bool:
        """Whether `fit` must know the target class, to leave its images out: an ablation, not a defense."""
        return False

    def fit(self, victim: Victim, data: CleanData) -> Victim:
        """Defend `victim`, which must not be changed, with clean data.

        Raises:
            BenchError: the victim or the data are not what this defense needs.
        """
        raise NotImplementedError(f"{type(self).__name__} must define fit(victim, data)")

    def unsuited(self, given: Facing) -> str:
        """Why this defense cannot face what is given; empty where it can."""
        if not self.zero_shot and given.attack is not None and given.attack.text_key:
            return "it has no text side, so it cannot face the key in the text"
        return ""

    def work(self, scale: Scale) -> Work:
        """What `fit` costs, for the estimate of a dry run; nothing where it is not known."""
        return Work()


def too_few_images(shots: int, given: Facing) -> str:
    """Why a defense that asks for some images a class cannot have them; empty where it can, or nobody knows."""
    if given.images_per_class is None or shots <= given.images_per_class:
        return ""
    return f"it asks for {shots} images a class, and there are {given.images_per_class}"


defenses: Registry[type[Defense]] = Registry("defense", Defense)
DefenseClass = TypeVar("DefenseClass", bound=type[Defense])


def defense(name: str) -> Callable[[DefenseClass], DefenseClass]:
    """Register a subclass of `Defense` as a defense."""
    return defenses.register(name)
