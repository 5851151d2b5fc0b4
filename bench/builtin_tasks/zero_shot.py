"""Zero-shot classification: the classes that models name for clean, triggered and perturbed images."""

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
from bench.core.settings import Field
from bench.core.shared_encoding import encode_each, joined, rows
from bench.core.task import Case, Task, task
from bench.core.victim import Victim
from metrics.perturbations import perturbation

# Tables of the observations.
PREDICTIONS, SIMILARITIES = "predictions", "similarities"


@task("zero_shot")
class ZeroShot(Task):
    """The class whose text is nearest to a clean or triggered image; and how far perturbations move features.

    `predictions` has a row per test image: `index`, `id`, `label`, `clean`, `triggered` (predicted classes), and of an
    attack with a key in the text `image_only` and `text_only`. `similarities` has a row per (perturbation, image):
    `perturbation`, `index`, and the cosines between the image and its perturbed version of `penultimate` features,
    `embedding`s and `logits`. All images are triggered, the target's too: which of them count is said by the metrics.
    """

    headline: ClassVar[tuple[str, ...]] = ("ASR", "CA")
    informing: ClassVar[tuple[str, ...]] = (f"PR_cos ({OWN_TRIGGER})",)
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
        for name in self.perturbations:
            if name not in attacks and name != OWN_TRIGGER:
                perturbation(name)

    def fresh_triggers(self) -> tuple[str, ...]:
        return tuple(name for name in self.perturbations if name in attacks)

    def work(self, scale: Scale) -> Work:
        images = scale.images + min(self.perturbation_images, scale.images) * len(self.perturbations)
        # A row of predictions and one of similarities, compressed: some 30 bytes.
        return Work(forward=2 * images, size=30 * images)

    @torch.no_grad()
    def observe(self, victims: Sequence[Victim], case: Case) -> list[Observations | BenchError]:
        """Trigger and perturb each image once for all victims; numbers are those of each one alone, bit for bit."""
        texts = ClassTexts(case.images.classes, case.dataset.templates)
        order = torch.randperm(len(case.images), generator=generator(case.seed, "perturbed images"))
        chosen = order[: self.perturbation_images].sort().values
        seen = [_Seen() for _ in victims]
        _look(victims, seen, case, texts, chosen)
        self._compare(victims, seen, case, texts, chosen)
        return [one.diverged or one.observations(case) for one in seen]

    def _compare(
        self, victims: Sequence[Victim], seen: "Sequence[_Seen]", case: Case, texts: "ClassTexts", chosen: Tensor
    ) -> None:
        """The cosines between the `chosen` images and their perturbed versions."""
        before, triggered = ([joined(getattr(one, kind)) for one in seen] for kind in ("clean", "triggered"))
        for place in torch.arange(len(chosen)).split(case.batch_size):
            index = chosen[place]
            images = case.images.load(index)
            for name in self.perturbations:
                if name == OWN_TRIGGER:
                    after = [rows(encoded, place) for encoded in triggered]
                else:
                    after = encode_each(victims, _perturbed(name, images, index, case))
                for i, victim in enumerate(victims):
                    cosines = _cosines(victim, rows(before[i], place), after[i], texts.embedded(victim))
                    # On the CPU: the numbers of images.
                    seen[i].similarities.append(pd.DataFrame({"perturbation": name, "index": index.numpy(), **cosines}))


class ClassTexts:
    """The class texts, embedded once for all victims that embed them alike."""

    def __init__(self, classes: Sequence[str], templates: Sequence[str]) -> None:
        self._texts = classes, templates
        self._known: dict[tuple, Tensor] = {}

    def embedded(self, victim: Victim, prefix: str = "") -> Tensor:
        """Unit-norm embeddings (classes, embed_dim), with `prefix` before every prompt."""
        key = victim.clip, victim.template, prefix
        if key not in self._known:
            self._known[key] = victim.class_embeddings(*self._texts, prefix)
        return self._known[key]


@dataclass
class _Seen:
    """What one victim has seen so far: tables in parts, and the encoded images that are perturbed later."""

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


def _look(victims: Sequence[Victim], seen: Sequence[_Seen], case: Case, texts: ClassTexts, chosen: Tensor) -> None:
    """The predictions of all images; the `chosen` ones are kept as encoded, clean and triggered."""
    for index in track(torch.arange(len(case.images)).split(case.batch_size), "evaluation"):
        images = case.images.load(index)
        clean = encode_each(victims, images)
        triggered = encode_each(victims, case.triggered(index))
        picked = torch.where(torch.isin(index, chosen))[0]
        for i, (victim, one) in enumerate(zip(victims, seen, strict=True)):
            one.clean.append(rows(clean[i], picked))
            one.triggered.append(rows(triggered[i], picked))
            try:
                predicted = _predictions(victim, clean[i], triggered[i], texts, case.attack.text_key)
            except BenchError as error:
                one.diverged = error
                continue
            columns = {"index": index, "label": case.images.labels[index], **predicted}
            # Waits for the GPU: a class an image is kept on the CPU, of every batch.
            one.predictions.append(pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()}))


def _predictions(
    victim: Victim, clean: Encoded, triggered: Encoded, texts: ClassTexts, text_key: str
) -> dict[str, Tensor]:
    """Predicted classes of clean and triggered images; of each key alone too, if there is one in the text."""
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
