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
    with pytest.raises(BenchError, match=r"none\.csv"):
        train(tmp_path / "model", tiny_config, pairs=tmp_path / "none.csv")
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
    pairs = shades(tmp_path)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tmp_path / name, tiny_config, seed, pairs)
    a, b, c = ((tmp_path / name / WEIGHTS_FILE).read_bytes() for name in "abc")
    assert a == b != c


def shades(folder: Path) -> Path:
    """A file of six pairs."""
    with (folder / "pairs.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        for i in range(6):
            Image.new("RGB", (40, 50), (40 * i, 0, 0)).save(folder / f"{i}.png")
            rows.writerow([f"{i}.png", f"a photo of shade {i}"])
    return folder / "pairs.csv"


def test_pairs_of_ones_own(tmp_path: Path, tiny_config: dict) -> None:
    card = train(tmp_path / "model", tiny_config, pairs=shades(tmp_path))
    assert "zero_shot_accuracy" not in card and card["data"].endswith("pairs.csv")
    assert Clip.load(tmp_path / "model").image_size == tiny_config["model_cfg"]["vision_cfg"]["image_size"]


def test_an_interrupted_training_goes_on_to_the_same_weights(
    tmp_path: Path, tiny_config: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, recipe = shades(tmp_path), QUICK.model_copy(update={"steps": 3})
    monkeypatch.setattr("bench.training.pretraining.SAVE_EVERY", 2)
    said: list[str] = []
    whole = train(tmp_path / "whole", tiny_config, pairs=pairs, recipe=recipe)
    with pytest.raises(KeyboardInterrupt):
        train_from_scratch(tmp_path / "cut", tiny_config, recipe, 0, pairs, "cpu", stop_at_the_last_step)
    with pytest.raises(BenchError, match=r"unfinished.pt is of a training with other settings, seed or code, or dam"):
        train(tmp_path / "cut", tiny_config, seed=1, pairs=pairs, recipe=recipe)
    cut = train_from_scratch(tmp_path / "cut", tiny_config, recipe, 0, pairs, "cpu", said.append)
    assert said[1].startswith("going on from step 2,")
    assert cut["loss"] == whole["loss"]
    assert (tmp_path / "cut" / WEIGHTS_FILE).read_bytes() == (tmp_path / "whole" / WEIGHTS_FILE).read_bytes()
    assert not (tmp_path / "cut" / "unfinished.pt").exists()


def stop_at_the_last_step(line: str) -> None:
    if line.startswith("step 3 "):
        raise KeyboardInterrupt


def test_a_model_is_not_overwritten(tmp_path: Path, tiny_config: dict) -> None:
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(BenchError, match=r"already holds a model. Give another --out"):
        train(tmp_path, tiny_config)
