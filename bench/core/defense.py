"""The contract of a defense: a backdoored model and clean data in, a defended model out."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeVar, get_args

import torch
from torch import Tensor

from bench.core.attack import Facing
from bench.core.clip import Clip
from bench.core.cost import Scale, Work
from bench.core.errors import BenchError, undeclared
from bench.core.images import Captioned, Images, Labelled, few_shot, hash_of
from bench.core.log import Logged
from bench.core.randomness import generator
from bench.core.registry import Registry
from bench.core.settings import Settings
from bench.core.victim import Victim

# What a defense may be given besides the model: few-shot labelled images, unlabelled images, image-text pairs, the
# clean model that the attacker started from, the class names.
Need = Literal["shots", "unlabelled", "pairs", "base", "class_names"]


@dataclass(frozen=True)
class CleanData(Logged):
    """The clean data of a defender, restricted to what `Defense.needs` names. Nothing comes from the test split.

    `target` is the index of the target class, None if `train` has no such class; only the ablation that leaves out its
    images may use it. `open_pairs(n)` reads n clean image-text pairs, `open_base()` the clean model. `used` collects
    the ids of all images given to the defense, `skipped` those that could not be read; both are stored with the
    defended model, like the log. `check` raises an error for images that are also evaluated.
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
        """k training images per class, the same for every defense of a run; `without` is the index of a class to omit.

        Raises:
            BenchError: a class has no image.
        """
        self._require("shots")
        return self._give(few_shot(self.train, k, generator(self.seed, "few-shot"), without))

    def all_images(self) -> Labelled:
        """All training images; files are decoded now."""
        self._require("shots")
        return self._give(self.train.decoded())

    def unlabelled(self, n: int) -> Images:
        """n random training images, or as many as there are, without labels; the same for every defense of a run.

        Their ids are hashes: the path of an image may name its class.
        """
        self._require("unlabelled")
        order = torch.randperm(len(self.train), generator=generator(self.seed, "unlabelled"))
        drawn = self._give(self.train.subset(order[:n]))
        return Images([hash_of(id) for id in drawn.ids], drawn.pixels, drawn.fingerprint, native=drawn.native)

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
        # Tables group defenses by `needs`, so it must be true.
        if need not in self.needs:
            raise undeclared("defense", need)

    def _give(self, images: Labelled) -> Labelled:
        if self.check is not None:
            self.check(images)
        self.used[:] = dict.fromkeys([*self.used, *images.ids])
        self.skipped[:] = dict.fromkeys([*self.skipped, *images.skipped])
        return images


class Defense(Settings):
    """A defense. Fields are settings; `fit` does the work."""

    # Raise it when the defense's behaviour changes, so that stored results of the old version are not reused.
    version: ClassVar[int] = 1
    # The clean data that `fit` uses; `CleanData` refuses everything else.
    needs: ClassVar[frozenset[Need]] = frozenset()
    # Whether the defended model still classifies by class texts; an attack with a text trigger needs that.
    zero_shot: ClassVar[bool] = True
    # Whether it can be the only defense, or the first of a chain; `--defenses all` leaves out one that cannot.
    alone: ClassVar[bool] = True
    # Whether `fit` can run in a process group and split its batches over the processes.
    shares_batches: ClassVar[bool] = False

    @property
    def leaves_target_out(self) -> bool:
        """Whether `fit` leaves out the images of the target class, which a real defender does not know: an ablation."""
        return False

    def fit(self, victim: Victim, data: CleanData) -> Victim:
        """Return a defended version of `victim`, which must not be changed.

        Raises:
            BenchError: the defense cannot work on this victim or data.
        """
        raise NotImplementedError(f"{type(self).__name__} must define fit(victim, data)")

    def unsuited(self, facing: Facing) -> str:
        """Why this defense cannot be used under these conditions; "" if it can."""
        if not self.zero_shot and facing.attack is not None and facing.attack.text_key:
            return "it has no text side, so it cannot face the key in the text"
        return ""

    def work(self, scale: Scale) -> Work:
        """The cost of `fit`, for the estimate of a dry run; zero if unknown."""
        return Work()


def too_few_images(shots: int, facing: Facing) -> str:
    """Why there are not `shots` images per class; "" if there are, or if their number is unknown."""
    if facing.images_per_class is None or shots <= facing.images_per_class:
        return ""
    return f"it needs {shots} images per class, and there are {facing.images_per_class}"


defenses: Registry[type[Defense]] = Registry("defense", Defense)
DefenseClass = TypeVar("DefenseClass", bound=type[Defense])


def with_head(chain: Iterable[str]) -> list[str]:
    """Those of a chain's defenses that give the model a head; names that are not registered count as having none."""
    return [name for name in chain if name in defenses and not defenses[name].zero_shot]


def defense(name: str) -> Callable[[DefenseClass], DefenseClass]:
    """Register a subclass of `Defense` as a defense."""
    return defenses.register(name)
