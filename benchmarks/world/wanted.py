"""How much of a wanted fine-tuning does the defense `cut` remove?

    python -m benchmarks.world.wanted --out wanted

The clean model is fine-tuned on labelled photos of each data set of the embedded world, as somebody would who wants a
better model: image tower alone, cross-entropy against the class prompts. Then `cut` takes the first singular directions
of the change away. Validation split, one seed. Writes wanted.csv: a row per data set and rank, rank 0 for no cut.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch.nn.functional as F
from torch import Tensor

from bench import CleanData, Clip, Geometry, Victim, datasets, generator
from bench.core.registry import load_plugins
from bench.models import ModelSettings, load_model
from bench.models.probe import probe
from bench.training.fine_tuning import FineTuning, fine_tune
from defenses.cut import Cut

DATASETS = ("world", "world-objects", "world-flowers")
RANKS = (1, 2, 4, 8, 16)
RECIPE = FineTuning(learning_rate=4e-4, epochs=3, batch_size=32, weight_decay=0.0, warmup_steps=10, towers="image")


def wanted(data: str, shots: int, val: int, ranks: Sequence[int], recipe: FineTuning, folder: Path) -> pd.DataFrame:
    """Accuracy of the clean model, of the one fine-tuned on `shots` photos a class, and of that one after each cut."""
    clean = load_model(ModelSettings(), "cpu")
    opened = datasets[data].parse({"train_per_class": shots, "val": val}, data)
    train, tested = (opened.labelled(split, Geometry(clean.image_size, folder)) for split in ("train", "val"))
    texts = Victim(clean).class_embeddings(train.classes, opened.templates)

    def loss(clip: Clip, index: Tensor) -> Tensor:
        embedded = F.normalize(clip.encode_image(train.load(index)), dim=-1)
        return F.cross_entropy(clip.scale * embedded @ texts.T, train.labels[index])

    tuned = clean.copy()
    fine_tune(tuned, len(train), recipe, loss, generator(0, "wanted", data))
    given = CleanData(train, opened.templates, 0, None, open_base=lambda: clean)
    models = {0: tuned} | {rank: Cut(rank=rank).fit(Victim(tuned), given).clip for rank in ranks}

    def accuracy(clip: Clip) -> float:
        return 100 * probe(clip, tested, opened.templates, len(tested)).accuracy

    rows = [{"data": data, "rank": rank, "CA": accuracy(clip)} for rank, clip in models.items()]
    before, after = accuracy(clean), rows[0]["CA"]
    return pd.DataFrame(rows).assign(clean=before, kept=lambda table: (table["CA"] - before) / (after - before))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for the table and drawn pictures")
    parser.add_argument("--shots", type=int, default=128, help="photos of each class")
    parser.add_argument("--val", type=int, default=600, help="photos that accuracy is measured on")
    given = parser.parse_args(arguments)
    load_plugins()
    given.out.mkdir(parents=True, exist_ok=True)
    sizes, pictures = (given.shots, given.val), given.out / "pictures"
    table = pd.concat([wanted(data, *sizes, RANKS, RECIPE, pictures) for data in DATASETS])
    table.to_csv(given.out / "wanted.csv", index=False)
    print(table.round(2).to_string(index=False))


if __name__ == "__main__":
    main()
