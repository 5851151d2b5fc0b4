"""Photos in the true layouts of the published data sets, as small as a test wants them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from bench.data.imagenet import wordnet_ids


def photo(file: Path) -> None:
    """A JPEG unlike that of any other path: colours that vary at large scales, and less at small ones."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(str(file).encode()))
    noise = (Image.fromarray(rng.integers(0, 256, (4 * k, 5 * k, 3), dtype=np.uint8)) for k in (1, 4))
    large, small = (layer.resize((60, 48)) for layer in noise)
    Image.blend(large, small, 0.3).save(file, "JPEG")


def photos(folder: Path, n: int, stem: str = "", suffix: str = ".JPEG") -> None:
    for i in range(n):
        photo(folder / f"{stem}{i}{suffix}")


def imagenet_kit(root: Path, truth: Sequence[str]) -> dict[str, int]:
    """ImageNet's flat validation folder, the WordNet ids of its photos in `truth`, and the development kit.

    The kit's numbers follow no alphabet, and inner nodes with children come behind. Returns WordNet id -> number.
    """
    ids = [wordnet_ids()[i] for i in np.random.default_rng(0).permutation(1000)]
    rows = [(i + 1, id, "name", "gloss", 0, np.zeros(0), 0, 1300) for i, id in enumerate(ids)]
    rows += [(1001, "n00001740", "entity", "gloss", 2, np.array([1, 2]), 1, 0)]
    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height"]
    kinds = [(name, object) for name in [*fields, "num_train_images"]]
    kit = root / "ILSVRC2012_devkit_t12/data"
    kit.mkdir(parents=True)
    savemat(kit / "meta.mat", {"synsets": np.array(rows, dtype=kinds).reshape(-1, 1)})
    numbers = {id: i + 1 for i, id in enumerate(ids)}
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{numbers[id]}\n" for id in truth))
    for i in range(len(truth)):
        photo(root / f"val/ILSVRC2012_val_{i + 1:08d}.JPEG")
    return numbers


def caltech(root: Path, classes: Sequence[tuple[str, str]], train: int = 3, val: int = 1, test: int = 2) -> Path:
    """CoOp's file names images by their folders, and classes by the names that prompts use: (folder, name) each."""
    parts: dict[str, list] = {"train": [], "val": [], "test": []}
    for label, (folder, name) in enumerate(classes):
        for i, split in enumerate(["train"] * train + ["val"] * val + ["test"] * test):
            photo(root / f"101_ObjectCategories/{folder}/image_{i:04d}.jpg")
            parts[split].append([f"{folder}/image_{i:04d}.jpg", label, name])
    (root / "split_zhou_Caltech101.json").write_text(json.dumps(parts))
    photos(root / "101_ObjectCategories/BACKGROUND_Google", 4)
    photos(root / "101_ObjectCategories/Faces_easy", 4)
    return root


def pets(
    root: Path,
    trainval: int = 10,
    test: int = 3,
    breeds: Sequence[str] = ("Abyssinian", "american_bulldog", "samoyed"),
) -> Path:
    """Lists as published: image, class, species, breed within the species; cats in capitals, dogs not."""
    species = [1 if breed[0].isupper() else 2 for breed in breeds]
    (root / "annotations").mkdir(parents=True)
    for name, numbers in (("trainval", range(100, 100 + trainval)), ("test", range(1, 1 + test))):
        rows = [
            f"{breed}_{i} {label + 1} {species[label]} {species[: label + 1].count(species[label])}"
            for label, breed in enumerate(breeds)
            for i in numbers
        ]
        (root / f"annotations/{name}.txt").write_text("\n".join(rows) + "\n")
        for row in rows:
            photo(root / f"images/{row.split()[0]}.jpg")
    (root / "images/Abyssinian_100.mat").write_bytes(b"")
    return root
