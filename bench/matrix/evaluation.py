"""Evaluation: what a victim says to clean, triggered and perturbed images, per image."""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core.attack import Attack, Trigger, stamp
from bench.core.errors import BenchError
from bench.core.images import Labelled
from bench.core.randomness import derive, generator
from bench.core.victim import Victim, class_embeddings
from bench.matrix.settings import Evaluation
from metrics.perturbations import perturbation


@torch.no_grad()
def observe(
    victim: Victim,
    images: Labelled,
    templates: Sequence[str],
    attack: Attack,
    trigger: Trigger,
    perturbing: Mapping[str, tuple[Attack, Trigger]],
    settings: Evaluation,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The predictions and similarities of `bench.core.metric.Observations`.

    All images are triggered, the target's too: what counts is the metrics' business. `perturbing` gives attacks whose
    fresh triggers serve as perturbations.
    """
    texts = class_embeddings(victim.clip, images.classes, templates)
    keyed = class_embeddings(victim.clip, images.classes, templates, attack.text_key) if attack.text_key else texts
    rows = []
    for index in torch.arange(len(images)).split(settings.batch_size):
        clean = images.load(index)
        plain = victim.encode(clean).embedding
        stamped = victim.encode(stamp(attack, trigger, clean, index)).embedding
        columns = {
            "index": index,
            "label": images.labels[index],
            "clean": _predict(victim, plain, texts),
            "triggered": _predict(victim, stamped, keyed),
        }
        if attack.text_key:
            columns |= {"image_only": _predict(victim, stamped, texts), "text_only": _predict(victim, plain, keyed)}
        rows.append(pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()}))
    predictions = pd.concat(rows, ignore_index=True)
    predictions.insert(1, "id", list(images.ids))
    chosen = torch.randperm(len(images), generator=generator(seed, "perturbed images"))
    chosen = chosen[: settings.perturbation_images].sort().values
    triggers = dict(perturbing) | {"trigger": (attack, trigger)}
    return predictions, _similarities(victim, images, chosen, texts, triggers, settings, seed)


def _similarities(
    victim: Victim,
    images: Labelled,
    chosen: Tensor,
    texts: Tensor,
    triggers: Mapping[str, tuple[Attack, Trigger]],
    settings: Evaluation,
    seed: int,
) -> pd.DataFrame:
    rows = []
    for index in chosen.split(settings.batch_size):
        clean = images.load(index)
        before = _features(victim, clean, texts)
        for name in settings.perturbations:
            if name in triggers:
                perturbed = stamp(*triggers[name], clean, index)
            else:
                perturbed = perturbation(name)(clean.float() / 255, index.tolist(), derive(seed, "perturbation", name))
            after = _features(victim, perturbed, texts)
            cosines = {k: F.cosine_similarity(before[k], after[k], dim=-1).cpu().numpy() for k in before}
            rows.append(pd.DataFrame({"perturbation": name, "index": index.numpy(), **cosines}))
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=["perturbation", "index"])


def _features(victim: Victim, images: Tensor, texts: Tensor) -> dict[str, Tensor]:
    encoded = victim.encode(images)
    return {
        "penultimate": encoded.penultimate.float(),
        "embedding": encoded.embedding.float(),
        "logits": victim.logits(encoded.embedding, texts).float(),
    }


def _predict(victim: Victim, embedding: Tensor, texts: Tensor) -> Tensor:
    """Predicted classes; ties go to the lowest index (ImageNet has two pairs of equal names)."""
    logits = victim.logits(embedding, texts)
    if not logits.isfinite().all():
        raise BenchError("the model gives logits that are not finite: its training diverged. Lower its learning rate")
    return (logits == logits.max(1, keepdim=True).values).int().argmax(1)
