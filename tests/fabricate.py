"""A results folder made by hand: the files that a run leaves, of models that never were."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from bench.core.images import hash_of
from bench.experiment.settings import resolve
from bench.results.store import Store

CLASSES, TARGET = 4, 0


@dataclass(frozen=True)
class Made:
    """One cell: of n images, a quarter of the target's class, how many are clean right and triggered to the target.

    `asr` counts among the images of other classes. The first images are the hits, unless `ca_hits` names them.
    """

    attack: str = "badnet"
    defense: str = "rvpt"
    seed: int = 0
    asr: int = 10
    ca: int = 90
    n: int = 100
    ca_hits: Iterable[int] | None = None
    pr: float = 0.9
    perturbations: tuple[str, ...] = ("trigger",)
    variant: str | None = None
    alpha: float = 2.0
    poisoned: int = 16
    checkpoint: str = "the model"
    backdoored: str = ""
    split: str = "test"
    version: int = 1
    card: Mapping[str, Any] = field(default_factory=dict)


def results_folder(out: Path, *cells: Made) -> Path:
    """Write run.json and the artefacts of these cells; the same cell overwrites nothing."""
    store, told = Store(out), []
    for made in cells:
        backdoor, evaluation = _write(store, made)
        variant = {"variant": made.variant} if made.variant is not None else {}
        place = {"model": "mini", "target": "banana", "dataset": "world", "attack": made.attack}
        place |= {"defense": made.defense, "seed": made.seed} | variant
        told.append(place | {"evaluation": evaluation, "backdoor": backdoor})
    settings = resolve("smoke").model_dump(mode="json")
    (out / "run.json").write_text(json.dumps({"settings": settings, "plugins": [], "cells": told}))
    return out


def predictions(made: Made) -> pd.DataFrame:
    labels = [i % CLASSES for i in range(made.n)]
    others = [i for i, label in enumerate(labels) if label != TARGET]
    triggered, clean = set(others[: made.asr]), set(range(made.ca) if made.ca_hits is None else made.ca_hits)
    columns = {
        "index": range(made.n),
        "id": [f"image {i}" for i in range(made.n)],
        "label": labels,
        "clean": [label if i in clean else (label + 1) % CLASSES for i, label in enumerate(labels)],
        "triggered": [TARGET if i in triggered else label for i, label in enumerate(labels)],
    }
    return pd.DataFrame(columns)


def similarities(made: Made) -> pd.DataFrame:
    """On ten images, cosines around `pr` for the cell's own trigger, and around 1 - `pr` for other perturbations."""
    frames = [pd.DataFrame(columns=["perturbation", "index", "penultimate", "embedding", "logits"])]
    for name in made.perturbations:
        middle = made.pr if name == "trigger" else 1 - made.pr
        cosines = [middle + 0.01 * (i - 4.5) / 10 for i in range(10)]
        columns = {"index": range(10), "penultimate": cosines, "embedding": cosines, "logits": 0.95}
        frames.append(pd.DataFrame({"perturbation": name, **columns}))
    return pd.concat(frames[1:] or frames, ignore_index=True)


def _write(store: Store, made: Made) -> tuple[str, str]:
    shared = {"version": 2, "seed": made.seed}
    backdoor = shared | {
        "kind": "backdoor",
        "model": made.checkpoint,
        "pairs": "the pairs",
        "words": "the words",
        "attack": {"name": made.attack, "version": made.version, "settings": {"size": 6}},
        "poison": {"count": made.poisoned, "pairs": 64},
        "target": "banana",
    }
    if made.backdoored:
        backdoor["backdoored"] = made.backdoored
    subject = hash_of(backdoor)
    _artefact(store, backdoor, made, {"model.bin": "weights"})
    if made.defense != "none":
        identity = {"name": made.defense, "version": made.version, "settings": {"alpha": made.alpha}}
        identity |= {"files": {"source": f"the code of version {made.version}"}}
        defense = shared | {"kind": "defense", "subject": subject, "defense": identity, "dataset": "the data"}
        _artefact(store, defense, made, {"delta.bin": "prompts"})
        subject = hash_of(defense)
    evaluation = shared | {
        "kind": "evaluation",
        "subject": subject,
        "backdoor": hash_of(backdoor),
        "clean": False,
        "dataset": "the data",
        "evaluate": {"split": made.split, "limit": None},
        "perturbing": {},
    }
    tables = {"predictions.parquet": predictions(made), "similarities.parquet": similarities(made)}
    _artefact(store, evaluation, made, tables)
    return hash_of(backdoor), hash_of(evaluation)


def _artefact(store: Store, inputs: dict[str, Any], made: Made, contents: Mapping[str, str | pd.DataFrame]) -> None:
    kind, id = inputs["kind"], hash_of(inputs)
    if store.has(kind, id):
        return
    card = {"id": id, "determined_by": inputs, "target": TARGET, "poisoned": 16, "pairs": 64, "device": "cpu"}
    card |= {"hardware": "abacus", "bench": "0.1.0", "torch": "2.6.0"} | dict(made.card)
    with store.writing(kind, id, card) as folder:
        for name, content in contents.items():
            if isinstance(content, str):
                (folder / name).write_text(content)
            else:
                content.to_parquet(folder / name, index=False)
