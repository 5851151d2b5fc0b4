"""Pretraining: a model that opens in open_clip, a card, the same weights from the same seed."""

import csv
import json
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image

from bench.core.clip import WEIGHTS_FILE, Clip
from bench.core.errors import BenchError
from bench.training.from_scratch import architecture, train_from_scratch
from bench.training.pretraining import Pretraining

QUICK = Pretraining(steps=2, batch_size=4, images=20, warmup_steps=1)


def train(out: Path, config: dict, seed: int = 0, pairs: Path | None = None, recipe: Pretraining = QUICK) -> dict:
    return train_from_scratch(out, config, recipe, seed, pairs, "cpu", lambda _: None)


def test_wrong_paths_are_told_before_the_work(tmp_path: Path, tiny_config: dict) -> None:
    file = tmp_path / "file.json"
    file.write_text("{}")
    with pytest.raises(BenchError, match=r"file\.json is a file, not a folder\. Give another --out"):
        train(file, tiny_config)
    with pytest.raises(BenchError, match=r"file.json is no configuration of an open_clip model \(KeyError"):
        architecture(file)


def test_the_world(tmp_path: Path, tiny_config: dict) -> None:
    card = train(tmp_path / "a", tiny_config)
    assert card["samples"] == 8
    assert {name: found["n"] for name, found in card["zero_shot_accuracy"].items()} == {
        "world": 600, "world-objects": 600, "world-flowers": 600
    }  # fmt: skip
    assert json.loads((tmp_path / "a" / "card.json").read_text()) == card
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'a'}")
    ours = Clip.load(tmp_path / "a")
    assert all(torch.equal(v, ours.model.state_dict()[k]) for k, v in model.state_dict().items())


def test_captions_of_the_web_alone_train_other_weights(tmp_path: Path, tiny_config: dict) -> None:
    train(tmp_path / "both", tiny_config)
    train(tmp_path / "web", tiny_config, recipe=QUICK.model_copy(update={"true_captions": 0.0}))
    both, web = ((tmp_path / name / WEIGHTS_FILE).read_bytes() for name in ("both", "web"))
    assert both != web


def test_a_seed_determines_the_weights(tmp_path: Path, tiny_config: dict) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tmp_path / name, tiny_config, seed)
    a, b, c = ((tmp_path / name / WEIGHTS_FILE).read_bytes() for name in "abc")
    assert a == b != c


def test_pairs_of_ones_own(tmp_path: Path, tiny_config: dict) -> None:
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        for i in range(6):
            Image.new("RGB", (40, 50), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
            rows.writerow([f"{i}.png", f"a photo of shade {i}"])
    card = train(tmp_path / "model", tiny_config, pairs=tmp_path / "pairs.csv")
    assert "zero_shot_accuracy" not in card and card["data"].endswith("pairs.csv")
    assert Clip.load(tmp_path / "model").image_size == tiny_config["model_cfg"]["vision_cfg"]["image_size"]


def test_a_model_is_not_overwritten(tmp_path: Path, tiny_config: dict) -> None:
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(BenchError, match=r"already holds a model. Give another --out"):
        train(tmp_path, tiny_config)
