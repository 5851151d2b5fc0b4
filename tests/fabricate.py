"""A results folder made by hand: the files that a run leaves, of models that never were."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from bench.core.images import hash_of
from bench.experiment.settings import resolve
from bench.results.folder import ResultsFolder
from bench.results.records import CARDS, Cell, Kind, Run, RunFile
from bench.results.run_file import RUN_FILE
from bench.results.store import Store

CLASSES, TARGET = 4, 0
CARD = {
    "label": "made by hand", "seconds": 1.0, "peak_memory_mb": 100, "peak_memory_of": "process", "device": "cpu",
    "hardware": "abacus", "processes": 1, "bench": "0.1.0", "commit": "a commit", "sources": "the code",
    "torch": "2.6.0",
}  # fmt: skip
OF_KIND: dict[Kind, dict[str, Any]] = {
    "trigger": {"trigger_hash": "the trigger"},
    "backdoor": {"trigger_seed": 0, "trigger_hash": "the trigger", "target": "banana", "poisoned": 16, "pairs": 64},
    "defense": {
        "needs": ("shots",), "changed": ("prompts",), "tunable": 10, "samples": 20, "shots": (), "clean_pairs": (),
    },
    "evaluation": {
        "task": "zero_shot", "tables": ("predictions", "similarities"),
        "facts": {"target": TARGET, "classes": [f"class {i}" for i in range(CLASSES)]}, "images": 100,
        "seconds_shared_by": 1,
    },
}  # fmt: skip


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
    variant: str = ""
    alpha: float = 2.0
    poisoned: int = 16
    checkpoint: str = "the model"
    backdoored: str = ""
    split: str = "test"
    data: str = "the data"
    version: int = 1
    card: Mapping[str, Any] = field(default_factory=dict)


def results_folder(out: Path, *cells: Made) -> Path:
    """Write run.json and the artefacts of these cells; the same cell overwrites nothing."""
    store, recorded = Store(out), []
    settings = resolve("smoke")
    for made in cells:
        backdoor, evaluation = _write(store, made)
        names = {"attack": made.attack, "defense": made.defense, "seed": made.seed, "variant": made.variant}
        recorded.append(Cell(task="zero_shot", **settings.place, **names, evaluation=evaluation, backdoor=backdoor))
    values = settings.model_dump(mode="json")
    run = Run(settings=values, variants={"": values}, cells=tuple(recorded))
    (out / RUN_FILE).write_text(RunFile(runs=(run,)).model_dump_json())
    return out


def opened(out: Path, *cells: Made) -> ResultsFolder:
    """The same, opened."""
    return ResultsFolder(results_folder(out, *cells))


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
    shared = {"version": 3, "seed": made.seed}
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
    write_artefact(store, backdoor, made.card, {"model.bin": "weights"})
    clean = made.defense == "clean_model"
    if made.defense != "none" and not clean:
        identity = {"name": made.defense, "version": made.version, "settings": {"alpha": made.alpha}}
        identity |= {"files": {"source": f"the code of version {made.version}"}}
        defense = shared | {"kind": "defense", "subject": subject, "defense": identity, "dataset": made.data}
        write_artefact(store, defense, made.card, {"delta.bin": "prompts"})
        subject = hash_of(defense)
    evaluation = shared | {
        "kind": "evaluation",
        "subject": made.checkpoint if clean else subject,
        "backdoor": hash_of(backdoor),
        "clean": clean,
        "dataset": made.data,
        "task": {"name": "zero_shot", "version": 1, "settings": {}},
        "evaluate": {"split": made.split, "limit": None},
        "fresh_triggers": {},
    }
    tables = {"predictions.parquet": predictions(made), "similarities.parquet": similarities(made)}
    write_artefact(store, evaluation, made.card, tables)
    return hash_of(backdoor), hash_of(evaluation)


def write_artefact(
    store: Store, inputs: dict[str, Any], card: Mapping[str, Any], contents: Mapping[str, str | pd.DataFrame]
) -> None:
    """Write an artefact of the kind and id that `inputs` have; `card` are fields that are not as usual."""
    kind, id = inputs["kind"], hash_of(inputs)
    if store.has(kind, id):
        return
    record = CARDS[kind]
    changed = {name: value for name, value in card.items() if name in record.model_fields}
    values = CARD | OF_KIND[kind] | {"id": id, "determined_by": inputs} | changed
    with store.writing(kind, record.model_validate(values)) as folder:
        for name, content in contents.items():
            if isinstance(content, str):
                (folder / name).write_text(content)
            else:
                content.to_parquet(folder / name, index=False)
