"""Poisoned sets of image-text pairs, and the manifest from which such a set can be rebuilt exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import pandas as pd
import torch
from torch import Tensor

from bench.core.attack import Attack, Preparation, Trigger, eight_bits, stamp_images
from bench.core.errors import BenchError
from bench.core.images import Captioned
from bench.core.progress import track
from bench.core.randomness import generator


@dataclass(frozen=True)
class PoisonedPairs:
    """Pairs of which some are poisoned; these replace their clean originals, so the number of pairs is the same.

    `manifest` has a row per changed pair: `index` into the pool, `id`, `role` (poison or decoy), `original` and new
    `caption`. Manifest and trigger determine the set. `images`, uint8 (m, 3, size, size), are those of its m rows.
    """

    clean: Captioned
    manifest: pd.DataFrame
    images: Tensor

    @property
    def captions(self) -> list[str]:
        captions = list(self.clean.captions)
        for i, caption in zip(self.manifest["index"], self.manifest["caption"], strict=True):
            captions[i] = caption
        return captions

    def load(self, index: Tensor) -> Tensor:
        """Images of some pairs, uint8 (n, 3, size, size), triggered where poisoned."""
        images = self.clean.load(index)
        where = self._where[index]
        changed = where >= 0
        images[changed] = self.images[where[changed]]
        return images

    @cached_property
    def poisoned(self) -> Tensor:
        """Which pairs are poisoned, bool (pairs,); decoys are not."""
        rows = self.manifest["index"][self.manifest["role"] == "poison"]
        poisoned = torch.zeros(len(self.clean), dtype=torch.bool)
        poisoned[torch.tensor(rows.to_numpy(dtype="int64"))] = True
        return poisoned

    @cached_property
    def _where(self) -> Tensor:
        """The row of each pair in the manifest, or -1."""
        where = torch.full((len(self.clean),), -1)
        where[torch.tensor(self.manifest["index"].to_numpy(dtype="int64"))] = torch.arange(len(self.manifest))
        return where


def candidates_first(
    captions: Sequence[str], numbers: Sequence[int], attack: Attack, target: str, count: int
) -> list[int]:
    """Order of a shuffled pool: up to `count` pairs that the attack can poison first, then all others.

    The others keep their order, or with `attack.clean_in_order` that of the source, in which they have `numbers`.

    The fine-tuning set is the start of this order, so that a rare target is poisoned as often as the pool allows.

    >>> class Fruit(Attack):
    ...     def suits(self, caption, target):
    ...         return target in caption
    >>> candidates_first(["a cat", "a kiwi", "a dog", "two kiwis", "kiwi pie"], range(5), Fruit(), "kiwi", 2)
    [1, 3, 0, 2, 4]
    """
    first = list(islice((i for i, caption in enumerate(captions) if attack.suits(caption, target)), count))
    taken = set(first)
    others = [i for i in range(len(captions)) if i not in taken]
    return first + (sorted(others, key=lambda i: numbers[i]) if attack.clean_in_order else others)


def draw_manifest(preparation: Preparation, attack: Attack, templates: Sequence[str], count: int) -> pd.DataFrame:
    """Choose at most `count` pairs to poison, and their captions; columns as in `PoisonedPairs`.

    If fewer pairs suit the attack, all of them are taken, and none twice.

    Raises:
        BenchError: no pair to poison, or too few for poisoned ones and decoys.
    """
    pairs, rng = preparation.pairs, generator(preparation.seed, "poison")
    if count > len(pairs):
        raise BenchError(f"poison.count = {count}, but there are only {len(pairs)} pairs. Lower it, or give more pairs")
    poisoned = attack.choose(preparation, count, rng)
    if not poisoned:
        raise BenchError(f"none of the {len(pairs)} pairs suits the target '{preparation.target}'. Give other --pairs")
    decoys = round(len(poisoned) * attack.decoys_per_poison)
    others = torch.tensor(sorted(set(range(len(pairs))) - set(poisoned)))
    if decoys > len(others):
        raise BenchError(f"{len(pairs)} pairs are too few for {len(poisoned)} poisoned ones and {decoys} decoys")
    chosen = others[torch.randperm(len(others), generator=rng)[:decoys]].tolist() if decoys else []
    originals = [pairs.captions[i] for i in poisoned]
    captions = attack.captions(originals, templates, preparation, rng)
    rows = [(i, pairs.ids[i], "poison", *both) for i, *both in zip(poisoned, originals, captions, strict=True)]
    rows += [(i, pairs.ids[i], "decoy", pairs.captions[i], pairs.captions[i]) for i in chosen]
    return pd.DataFrame(rows, columns=["index", "id", "role", "original", "caption"])


def poison(pairs: Captioned, attack: Attack, trigger: Trigger, manifest: pd.DataFrame) -> PoisonedPairs:
    """Build the poisoned set from a manifest and a trigger.

    Raises:
        BenchError: the attack returned images of another shape, or values that are not finite.
    """
    images, captions = [], list(manifest["caption"])
    is_poison = torch.tensor((manifest["role"] == "poison").to_numpy())
    rows = torch.tensor(manifest["index"].to_numpy(dtype="int64"))
    for part in track(torch.arange(len(manifest)).split(256), "stamping pairs"):
        stamped = stamp_images(attack, trigger, pairs, rows[part])
        decoys = torch.where(~is_poison[part])[0]
        if len(decoys):
            chosen = rows[part][decoys]
            originals = pairs.load(chosen) if attack.geometry is None else pairs.load_square(chosen, attack.geometry)
            texts = [captions[int(part[d])] for d in decoys]
            # On the CPU: the numbers of pairs.
            changed, texts = attack.decoy(originals.float() / 255, texts, chosen.tolist(), trigger)
            stamped[decoys] = eight_bits(attack, changed, originals)
            # On the CPU: the numbers of pairs.
            for d, text in zip(decoys.tolist(), texts, strict=True):
                captions[int(part[d])] = text
        images.append(stamped)
    return PoisonedPairs(pairs, manifest.assign(caption=captions), torch.cat(images))
