"""The model, data sets and pairs that the settings of a run name, opened on first use."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from bench.core.attack import Attack, Facing, Preparation, Trigger, mentions
from bench.core.clip import Clip
from bench.core.dataset import Dataset, Split, target_index
from bench.core.errors import BenchError
from bench.core.geometry import Geometry
from bench.core.images import Captioned, Images, Labelled, hash_file, hash_of
from bench.core.poisoning import candidates_first
from bench.core.randomness import generator
from bench.core.task import Case
from bench.data.leakage import refuse_overlap
from bench.data.pairs import Order, Part, captions, pairs_identity, read_pairs
from bench.experiment.settings import RunSettings
from bench.models import has_vision_transformer, load_backdoored, load_model, sizes

Some = TypeVar("Some", bound=Images)


@dataclass(frozen=True)
class Resources:
    """The settings of a run, with the model and data that they name; each is opened on first use.

    `cache` is a folder for decoded images. `shared` holds what several variants of a run have in common.
    """

    run: RunSettings
    cache: Path
    device: str
    shared: dict[Hashable, Any] = field(default_factory=dict)

    @cached_property
    def clip(self) -> Clip:
        """The clean model."""
        return self._share(self.run.model, lambda: load_model(self.run.model, self.device))

    def open_backdoored(self, file: Path) -> Clip:
        """A model that was backdoored elsewhere, of the clean model's architecture."""
        return load_backdoored(file, self.clip, self.run.model.name)

    @cached_property
    def geometry(self) -> Geometry:
        return Geometry.of(self.clip, self.cache)

    @cached_property
    def dataset(self) -> Dataset:
        """The attacker's data set: it has the target class."""
        return self._dataset(self.run.dataset)

    @cached_property
    def tuned(self) -> Dataset:
        """The data set that defenses are tuned on."""
        return self._dataset(self.run.tuned_on or self.run.dataset)

    @cached_property
    def tested(self) -> Dataset:
        """The data set of the evaluation."""
        return self._dataset(self.run.tested_on)

    @cached_property
    def train(self) -> Labelled:
        """The training images of the data set that defenses are tuned on."""
        return self.check_leakage(self._images(self.tuned, "train"), "training images")

    @cached_property
    def evaluated(self) -> Labelled:
        """All images of the evaluated split; none of them may be trained on."""
        return self._images(self.tested, self.run.evaluate.split)

    @cached_property
    def test(self) -> Labelled:
        """The evaluated images; with a `limit`, random ones."""
        return self.evaluated if self._limited is None else self.evaluated.subset(self._limited)

    @property
    def _limited(self) -> Tensor | None:
        """The indices of the images chosen for a `limit`, ascending; None if all are evaluated."""
        n, limit = len(self.evaluated), self.run.evaluate.limit
        if limit is None or limit >= n:
            return None
        # Not the first ones: a folder's images are sorted by class.
        return torch.randperm(n, generator=generator(0, "limit"))[:limit].sort().values

    @cached_property
    def poison_pairs(self) -> Captioned:
        """The attacker's pairs, of which some are poisoned."""
        n = self.run.poison.pairs
        return self.check_leakage(self._pairs("poison", n), "pairs")

    def pairs_for(self, method: Attack) -> Captioned:
        """The pairs that an attack poisons some of; a selective attack takes suitable ones from `poison.pool`."""
        n, pool, count = self.run.poison.pairs, self.run.poison.pool, self.run.poison.count
        if pool is None or pool <= n or not method.selective():
            return self.poison_pairs
        target = self.dataset.classes()[self.target]

        def order(texts: Sequence[str], numbers: Sequence[int]) -> list[int]:
            return candidates_first(texts, numbers, method, target, count)

        return self._from_pool(pool, n, order)

    def named_in_pool(self) -> Captioned:
        """Those pairs of `poison.pool` whose captions name the target.

        Raises:
            BenchError: none does.
        """
        n, target = max(self.run.poison.pairs, self.run.poison.pool or 0), self.dataset.classes()[self.target]

        def naming(captions: Sequence[str], _: Sequence[int]) -> list[int]:
            if found := [i for i, caption in enumerate(captions) if mentions(caption, target)]:
                return found
            raise BenchError(
                f"no caption of the {len(captions)} pairs of poison.pool names '{target}'. Give --pairs with such "
                "captions, or another --target"
            )

        return self._from_pool(n, n, naming)

    def _from_pool(self, pool: int, n: int, order: Order) -> Captioned:
        """The first n of the pairs of a pool, in the order that `order` gives them."""
        if self.run.pairs:
            part, cache = self._part("poison"), self.run.execution.pairs_cache
            pairs = read_pairs(self.run.pairs, self.geometry, n, part=part, pool=pool, order=order, cache=cache)
        else:
            searched = self.dataset.pairs("poison", pool, self.geometry)
            pairs = searched.subset(
                torch.tensor(sorted(order(searched.captions, range(len(searched)))[:n]), dtype=torch.long)
            )
        return self.check_leakage(pairs, "pairs")

    @cached_property
    def facing(self) -> Facing:
        """The conditions of the run's attacks and defenses. Fewer training images than shots are no obstacle.

        Raises:
            BenchError: there are no such pairs.
        """
        asked = self.run.pairs is not None and self.run.model.backdoored is None
        asked = asked and any("named_captions" in self.attack(name).needs for name in self.run.attacks)
        return Facing(
            sizes=sizes(self.run.model),
            vision_transformer=has_vision_transformer(self.run.model),
            named_captions=self._named_captions() if asked else None,
        )

    def _named_captions(self) -> bool:
        """Whether any caption of --pairs names the target; it reads up to the first that does."""
        place, target = self.run.pairs, self.run.target
        assert place is not None
        return self._share(
            ("named", place, target), lambda: any(mentions(caption, target) for caption in captions(place))
        )

    @property
    def has_pairs(self) -> bool:
        return self.run.pairs is not None or type(self.dataset).pairs is not Dataset.pairs

    def clean_pairs(self, n: int) -> Captioned:
        """n clean pairs for defenses, or as many as there are."""
        return self.check_leakage(self._pairs("clean", n), "pairs")

    @cached_property
    def target(self) -> int:
        """The index of the target class in the attacker's data set."""
        return self.target_in(self.dataset)

    @cached_property
    def tuned_target(self) -> int | None:
        """The target class in the data set that defenses are tuned on; None if it has no such class."""
        names, target = [name.lower() for name in self.tuned.classes()], self.run.target.lower()
        return names.index(target) if target in names else None

    @property
    def targeted(self) -> tuple[Dataset, ...]:
        """The data sets that must have the target class; `tuned` only if a defense leaves that class out."""
        return (self.dataset, self.tested, *((self.tuned,) if self._leaves_target_out() else ()))

    def _leaves_target_out(self) -> bool:
        pairs = product(self.run.single_defenses, self.run.attacks)
        return any(self.run.defense(name, attack).leaves_target_out for name, attack in pairs)

    def attack(self, name: str) -> Attack:
        return self.run.attack(name)

    def case(
        self, attack: Attack, trigger: Trigger, seed: int, fresh_triggers: Mapping[str, tuple[Attack, Trigger]]
    ) -> Case:
        """The case of a task: the evaluated images and a trigger in its test form."""
        return Case(
            self.tested,
            self.test,
            attack,
            trigger,
            self.target_in(self.tested),
            seed,
            self.run.evaluate.batch_size,
            fresh_triggers,
            self._captions,
            lambda: self.clip,
        )

    def _captions(self) -> list[str]:
        captions = self.tested.captions(self.run.evaluate.split, self.geometry)
        return captions if self._limited is None else [captions[i] for i in self._limited.tolist()]

    def preparation(self, method: Attack, seed: int) -> Preparation:
        """What an attacker has before poisoning; pairs are opened on first use."""
        data, classes = self.dataset, self.dataset.classes()
        target = classes[self.target]
        named = self.named_in_pool if self.run.poison.pool else None
        pairs = partial(self.pairs_for, method)
        return Preparation(self.clip, pairs, target, classes, data.templates, seed, named, method.needs)

    def fingerprints(self) -> dict[str, Callable[[], str]]:
        """Functions that compute the fields of `Fingerprints`."""
        data = self.dataset
        return {
            "words": lambda: hash_of([data.classes(), data.templates, data.caption_templates()]),
            "tuned": lambda: self._identity(self.tuned),
            "tested": lambda: self._identity(self.tested),
            "backdoored": self._backdoored_identity,
            "pairs": self._pairs_identity,
            # The last: nothing is downloaded for data that are not there.
            "model": lambda: self._share(("print", self.run.model), self.clip.fingerprint),
        }

    def check_leakage(self, images: Some, what: str) -> Some:
        """Return the images after checking that none of them is evaluated; `what` is their name in messages.

        Ids are compared too if training and evaluated images are of one data set.

        Raises:
            BenchError: some are evaluated, and the data set's `allow_overlap` is off.
        """
        if self.apart_from is not None:
            by_id = isinstance(images, Labelled) and self.tuned == self.tested
            self._share(
                ("apart", what, images.fingerprint, self.apart_from, by_id),
                lambda: refuse_overlap(self.evaluated, images, what, self.run.tested_on, by_id),
            )
        return images

    @property
    def apart_from(self) -> str | None:
        """The fingerprint of the evaluated images, which must not be trained on; None with `allow_overlap`."""
        return None if self.tested.allow_overlap else self.evaluated.fingerprint

    def target_in(self, data: Dataset) -> int:
        """The index of the target class in any data set."""
        return target_index(self.run.target, data.classes())

    def _dataset(self, name: str) -> Dataset:
        return self.run.data(name)

    def _pairs(self, part: Part, n: int) -> Captioned:
        if self.run.pairs:
            half, cache = self._part(part), self.run.execution.pairs_cache
            return read_pairs(self.run.pairs, self.geometry, n=n, part=half, cache=cache)
        return self.dataset.pairs(part, n, self.geometry)

    def _part(self, part: Part) -> Part | None:
        """The half of --pairs that is meant; None for all of them."""
        return part if part == "clean" or self.run.poison.halves else None

    def _images(self, data: Dataset, split: Split) -> Labelled:
        key = (type(data), data.model_dump_json(), split, self.geometry)
        return self._share(key, lambda: data.labelled(split, self.geometry))

    def _pairs_identity(self) -> str:
        pairs = self.run.pairs
        return self._share(("print", pairs), lambda: pairs_identity(pairs)) if pairs else self._identity(self.dataset)

    def _backdoored_identity(self) -> str:
        file = self.run.model.backdoored
        if file is None:
            return ""
        if not file.is_file():
            raise BenchError(f"--backdoored {file}: no such file. Give one of weights, or leave it out to poison pairs")
        return self._share(("print", file), lambda: hash_file(file))

    def _identity(self, data: Dataset) -> str:
        return self._share(("print", type(data), data.model_dump_json()), data.identity)

    def _share(self, key: Hashable, open_it: Callable[[], Any]) -> Any:
        """Open something once for all variants of a run."""
        if key not in self.shared:
            self.shared[key] = open_it()
        return self.shared[key]


def open_device(name: str) -> str:
    """The torch device for the value of `--device`.

    Raises:
        BenchError: this machine has no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise BenchError(f"--device {name} is not here. Use --device auto. ({str(error).splitlines()[0]})") from None
    return name


def open_resources(variants: Mapping[str, RunSettings], cache: Path, device: str) -> dict[str, Resources]:
    """The resources of each variant of a run; equal models and images are opened once."""
    shared: dict[Hashable, Any] = {}
    return {name: Resources(run, cache, device, shared) for name, run in variants.items()}
