"""Evaluation: what victims say to clean, triggered and perturbed images, per image."""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core.attack import Attack, Trigger, stamp
from bench.core.encoder import Encoded
from bench.core.errors import BenchError
from bench.core.images import Labelled
from bench.core.progress import track
from bench.core.randomness import derive, generator
from bench.core.shared_encoding import encode_each, joined, rows
from bench.core.victim import Victim
from bench.experiment.settings import OWN_TRIGGER, Evaluation
from metrics.perturbations import perturbation

# The predictions and similarities of `bench.core.metric.Observations`.
Seen = tuple[pd.DataFrame, pd.DataFrame]


@torch.no_grad()
def observe(
    victims: Sequence[Victim],
    images: Labelled,
    templates: Sequence[str],
    attack: Attack,
    trigger: Trigger,
    perturbing: Mapping[str, tuple[Attack, Trigger]],
    settings: Evaluation,
    seed: int,
) -> list[Seen | BenchError]:
    """What each of some `unified` victims sees, the same as if it were alone; an error for one that has diverged.

    Each image is triggered and perturbed once for all of them. All images are triggered, the target's too: what
    counts is the metrics' business. `perturbing` gives attacks whose fresh triggers serve as perturbations.
    """
    words = _Words(images.classes, templates)
    chosen = torch.randperm(len(images), generator=generator(seed, "perturbed images"))
    chosen = chosen[: settings.perturbation_images].sort().values
    said, before, triggered = _look(victims, images, words, attack, trigger, chosen, settings.batch_size)
    similar: list[list[pd.DataFrame]] = [[] for _ in victims]
    for place in torch.arange(len(chosen)).split(settings.batch_size):
        index = chosen[place]
        clean = images.load(index)
        for name in settings.perturbations:
            if name == OWN_TRIGGER:
                after = [rows(encoded, place) for encoded in triggered]
            else:
                after = encode_each(victims, _perturbed(name, clean, index, perturbing, seed))
            for i, victim in enumerate(victims):
                cosines = _cosines(victim, rows(before[i], place), after[i], words.embedded(victim))
                similar[i].append(pd.DataFrame({"perturbation": name, "index": index.numpy(), **cosines}))
    none = pd.DataFrame(columns=["perturbation", "index"])
    return [
        what if isinstance(what, BenchError) else (what, pd.concat(like, ignore_index=True) if like else none)
        for what, like in zip(said, similar, strict=True)
    ]


def _look(
    victims: Sequence[Victim],
    images: Labelled,
    words: "_Words",
    attack: Attack,
    trigger: Trigger,
    chosen: Tensor,
    batch_size: int,
) -> tuple[list[pd.DataFrame | BenchError], list[Encoded], list[Encoded]]:
    """Each victim's predictions of all images, and what it makes of the `chosen` ones, clean and triggered."""
    failed: dict[int, BenchError] = {}
    said: list[list[pd.DataFrame]] = [[] for _ in victims]
    kept: list[tuple[list[Encoded], list[Encoded]]] = []
    for index in track(torch.arange(len(images)).split(batch_size), "evaluation"):
        clean = images.load(index)
        plain, stamped = encode_each(victims, clean), encode_each(victims, stamp(attack, trigger, clean, index))
        for i, victim in enumerate(victims):
            try:
                predicted = _predictions(victim, plain[i], stamped[i], words, attack.text_key)
            except BenchError as error:
                failed[i] = error
                continue
            columns = {"index": index, "label": images.labels[index], **predicted}
            said[i].append(pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()}))
        picked = torch.where(torch.isin(index, chosen))[0]
        kept.append(([rows(e, picked) for e in plain], [rows(e, picked) for e in stamped]))
    before, triggered = ([joined(batches) for batches in zip(*part, strict=True)] for part in zip(*kept, strict=True))
    tables: list[pd.DataFrame | BenchError] = []
    for i, parts in enumerate(said):
        if i in failed:
            tables.append(failed[i])
            continue
        table = pd.concat(parts, ignore_index=True)
        table.insert(1, "id", list(images.ids))
        tables.append(table)
    return tables, before, triggered


def _perturbed(
    name: str, clean: Tensor, index: Tensor, perturbing: Mapping[str, tuple[Attack, Trigger]], seed: int
) -> Tensor:
    if name in perturbing:
        return stamp(*perturbing[name], clean, index)
    return perturbation(name)(clean.float() / 255, index.tolist(), derive(seed, "perturbation", name))


class _Words:
    """The class texts, embedded once for all victims that embed them alike."""

    def __init__(self, classes: Sequence[str], templates: Sequence[str]) -> None:
        self._texts = classes, templates
        self._known: dict[tuple, Tensor] = {}

    def embedded(self, victim: Victim, prefix: str = "") -> Tensor:
        key = victim.clip, victim.template, prefix
        if key not in self._known:
            self._known[key] = victim.class_embeddings(*self._texts, prefix)
        return self._known[key]


def _predictions(victim: Victim, plain: Encoded, stamped: Encoded, words: _Words, key: str) -> dict[str, Tensor]:
    """Predicted classes of clean and triggered images; of each key alone too, if there is one in the text."""
    texts, keyed = words.embedded(victim), words.embedded(victim, key)
    predicted = {"clean": _predict(victim, plain, texts), "triggered": _predict(victim, stamped, keyed)}
    if key:
        predicted |= {"image_only": _predict(victim, stamped, texts), "text_only": _predict(victim, plain, keyed)}
    return predicted


def _predict(victim: Victim, encoded: Encoded, texts: Tensor) -> Tensor:
    """Predicted classes; ties go to the lowest index (ImageNet has two pairs of equal names)."""
    logits = victim.logits(encoded, texts)
    if not logits.isfinite().all():
        raise BenchError("the model gives logits that are not finite: its training diverged. Lower its learning rate")
    return (logits == logits.max(1, keepdim=True).values).int().argmax(1)


def _cosines(victim: Victim, before: Encoded, after: Encoded, texts: Tensor) -> dict[str, object]:
    """Cosines (n,) between features of images and of their perturbed versions."""
    pairs = {
        "penultimate": (before.penultimate, after.penultimate),
        "embedding": (before.embedding, after.embedding),
        "logits": (victim.logits(before, texts), victim.logits(after, texts)),
    }
    return {name: F.cosine_similarity(a.float(), b.float(), dim=-1).cpu().numpy() for name, (a, b) in pairs.items()}
