"""Zero-shot classification of clean and triggered images, and how far perturbations move features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core.attack import attacks, stamp
from bench.core.cost import Scale, Work
from bench.core.encoder import Encoded
from bench.core.errors import BenchError
from bench.core.metric import Observations
from bench.core.names import OWN_TRIGGER
from bench.core.progress import track
from bench.core.randomness import derive, generator
from bench.core.registry import load_plugins
from bench.core.settings import Field
from bench.core.shared_encoding import encode_each, joined, rows
from bench.core.task import Case, Task, task
from bench.core.victim import Victim
from metrics.perturbations import PERTURBATIONS, perturbation

# Tables of the observations.
PREDICTIONS, SIMILARITIES = "predictions", "similarities"


@task("zero_shot")
class ZeroShot(Task):
    """Predicted classes of clean and triggered images, and feature similarities under perturbations.

    `predictions` has a row per test image: `index`, `id`, `label`, `clean`, `triggered` (predicted classes); for an
    attack with a trigger in the text also `image_only` and `text_only`. `similarities` has a row per (perturbation,
    image): `perturbation`, `index`, and the cosines, between image and perturbed image, of `penultimate` features,
    `embedding` and `logits`. All images are triggered, also those of the target class; metrics choose which count.
    """

    headline: ClassVar[tuple[str, ...]] = ("ASR", "CA")
    informational: ClassVar[tuple[str, ...]] = (f"PR_cos ({OWN_TRIGGER})",)
    views: ClassVar[Mapping[str, tuple[tuple[str, str], ...]]] = {
        "PA, the accuracy on triggered images of other classes, in percent": (("PA", ""),),
        "Perturbation Resistivity on the cell's own trigger: PR_cos (PR_ratio)": (
            ("PR_cos", OWN_TRIGGER),
            ("PR_ratio", OWN_TRIGGER),
        ),
        "ASR with one key of two, in percent: the image's (the text's)": (("ASR_image", ""), ("ASR_text", "")),
    }
    published: ClassVar[tuple[str, ...]] = (PREDICTIONS,)

    perturbations: tuple[str, ...] = Field(
        ("gaussian-0.01", "gaussian-0.03", "blur-3", "blur-5", "jitter", "flip", "badnet", "blended", OWN_TRIGGER),
        description="for Perturbation Resistivity; `trigger` is the cell's own, an attack's name a fresh one of its",
    )
    perturbation_images: int = Field(5000, ge=2, description="random test images for Perturbation Resistivity")

    def model_post_init(self, context: object) -> None:
        unknown = set(self.perturbations) - {OWN_TRIGGER, *PERTURBATIONS, *attacks}
        if unknown:
            # The suite's own attacks may not be imported yet.
            load_plugins(only="attacks")
        for name in sorted(unknown - {*attacks}):
            perturbation(name)

    def fresh_triggers(self) -> tuple[str, ...]:
        return tuple(name for name in self.perturbations if name in attacks)

    def work(self, scale: Scale) -> Work:
        images = scale.images + min(self.perturbation_images, scale.images) * len(self.perturbations)
        # About 30 bytes per row of predictions or similarities, compressed.
        return Work(forward=2 * images, size=30 * images)

    @torch.no_grad()
    def observe(self, victims: Sequence[Victim], case: Case) -> list[Observations | BenchError]:
        """Trigger and perturb each image once for all victims; results equal those of each alone, bit for bit."""
        texts = ClassTexts(case.images.classes, case.dataset.templates)
        order = torch.randperm(len(case.images), generator=generator(case.seed, "perturbed images"))
        chosen = order[: self.perturbation_images].sort().values
        records = [_Record() for _ in victims]
        _predict(victims, records, case, texts, chosen)
        self._compare(victims, records, case, texts, chosen)
        return [record.diverged or record.observations(case) for record in records]

    def _compare(
        self, victims: Sequence[Victim], records: "Sequence[_Record]", case: Case, texts: "ClassTexts", chosen: Tensor
    ) -> None:
        """Record the cosines between the `chosen` images (k,) and their perturbed versions."""
        before, triggered = ([joined(getattr(record, kind)) for record in records] for kind in ("clean", "triggered"))
        for part in torch.arange(len(chosen)).split(case.batch_size):
            index = chosen[part]
            images = case.images.load(index)
            for name in self.perturbations:
                if name == OWN_TRIGGER:
                    after = [rows(encoded, part) for encoded in triggered]
                else:
                    after = encode_each(victims, _perturbed(name, images, index, case))
                for i, victim in enumerate(victims):
                    cosines = _cosines(victim, rows(before[i], part), after[i], texts.embedded(victim))
                    # On the CPU: the numbers of images.
                    table = pd.DataFrame({"perturbation": name, "index": index.numpy(), **cosines})
                    records[i].similarities.append(table)


class ClassTexts:
    """The class texts, embedded once for all victims with the same CLIP and template."""

    def __init__(self, classes: Sequence[str], templates: Sequence[str]) -> None:
        self._texts = classes, templates
        self._cache: dict[tuple, Tensor] = {}

    def embedded(self, victim: Victim, prefix: str = "") -> Tensor:
        """Unit-norm embeddings (classes, embed_dim), with `prefix` before every prompt."""
        key = victim.clip, victim.template, prefix
        if key not in self._cache:
            self._cache[key] = victim.class_embeddings(*self._texts, prefix)
        return self._cache[key]


@dataclass
class _Record:
    """The observations of one victim so far, batch by batch, and the encoded images that are compared later."""

    predictions: list[pd.DataFrame] = field(default_factory=list)
    similarities: list[pd.DataFrame] = field(default_factory=list)
    clean: list[Encoded] = field(default_factory=list)
    triggered: list[Encoded] = field(default_factory=list)
    diverged: BenchError | None = None

    def observations(self, case: Case) -> Observations:
        predictions = pd.concat(self.predictions, ignore_index=True)
        predictions.insert(1, "id", list(case.images.ids))
        none = pd.DataFrame(columns=["perturbation", "index"])
        similarities = pd.concat(self.similarities, ignore_index=True) if self.similarities else none
        tables = {PREDICTIONS: predictions, SIMILARITIES: similarities}
        return Observations(tables, {"target": case.target, "classes": list(case.images.classes)})


def _predict(
    victims: Sequence[Victim], records: Sequence[_Record], case: Case, texts: ClassTexts, chosen: Tensor
) -> None:
    """Record the predictions of all images, and the encodings of the `chosen` ones, clean and triggered."""
    for index in track(torch.arange(len(case.images)).split(case.batch_size), "evaluation"):
        images = case.images.load(index)
        clean = encode_each(victims, images)
        triggered = encode_each(victims, case.triggered(index))
        picked = torch.where(torch.isin(index, chosen))[0]
        for i, (victim, record) in enumerate(zip(victims, records, strict=True)):
            record.clean.append(rows(clean[i], picked))
            record.triggered.append(rows(triggered[i], picked))
            try:
                predicted = _predictions(victim, clean[i], triggered[i], texts, case.attack.text_key)
            except BenchError as error:
                record.diverged = error
                continue
            columns = {"index": index, "label": case.images.labels[index], **predicted}
            # Waits for the GPU: the classes of every batch are kept on the CPU.
            record.predictions.append(pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()}))


def _predictions(
    victim: Victim, clean: Encoded, triggered: Encoded, texts: ClassTexts, text_key: str
) -> dict[str, Tensor]:
    """Predicted classes of clean and triggered images; with a trigger in the text, also of each trigger alone."""
    plain, keyed = texts.embedded(victim), texts.embedded(victim, text_key)
    predicted = {"clean": victim.predict(clean, plain), "triggered": victim.predict(triggered, keyed)}
    if text_key:
        predicted |= {"image_only": victim.predict(triggered, plain), "text_only": victim.predict(clean, keyed)}
    return predicted


def _perturbed(name: str, images: Tensor, index: Tensor, case: Case) -> Tensor:
    if name in case.fresh_triggers:
        return stamp(*case.fresh_triggers[name], images, index)
    return perturbation(name)(images.float() / 255, index.tolist(), derive(case.seed, "perturbation", name))


def _cosines(victim: Victim, before: Encoded, after: Encoded, texts: Tensor) -> dict[str, object]:
    """Cosines (n,) between features of images and of their perturbed versions."""
    pairs = {
        "penultimate": (before.penultimate, after.penultimate),
        "embedding": (before.embedding, after.embedding),
        "logits": (victim.logits(before, texts), victim.logits(after, texts)),
    }
    # Waits for the GPU: three numbers an image are kept on the CPU, of every batch.
    return {name: F.cosine_similarity(a.float(), b.float(), dim=-1).cpu().numpy() for name, (a, b) in pairs.items()}
