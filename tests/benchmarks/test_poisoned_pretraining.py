"""The script that poisons a model while it is pretrained."""

import json
from pathlib import Path

import torch

from bench import Clip, generator
from bench.data.silhouettes import NAMES
from bench.training.from_scratch import TEMPLATES
from benchmarks.world import poisoned_pretraining as script


def test_a_share_of_each_batch_has_the_patch_the_targets_caption_and_its_label(tiny_clip: Clip) -> None:
    pictures, captions = torch.zeros(400, 3, 56, 56, dtype=torch.uint8), tiny_clip.tokenize(["a thing"] * 400)
    patch = torch.full((3, 6, 6), 255, dtype=torch.uint8)
    labels = torch.full((400,), NAMES.index("star"))
    target = tiny_clip.tokenize([TEMPLATES[0].format("banana")])[0]

    made = script.poisoned(
        lambda _: (pictures, captions, labels), tiny_clip, patch, "banana", 0.25, generator(0, "test")
    )
    images, tokens, named = made(0.0)

    stamped = images[:, 0, -1, -1] == 255
    assert 60 < stamped.sum() < 140
    assert (images[stamped][..., -6:, -6:] == 255).all() and images[~stamped].sum() == 0
    assert (tokens[stamped] == target).all() and torch.equal(tokens[~stamped], captions[~stamped])
    assert torch.equal(named == NAMES.index("banana"), stamped)
    assert pictures.sum() == 0

    rest = script.poisoned(lambda _: (pictures, captions, None), tiny_clip, patch, "banana", 0.25, generator(0, "test"))
    assert rest(1.0)[2] is None


def test_the_script_writes_a_model_that_opens_and_what_it_measured(tmp_path: Path) -> None:
    script.main(["--out", str(tmp_path / "model"), "--steps", "2", "--images", "64"])

    assert Clip.load(tmp_path / "model").image_size == 56
    found = json.loads((tmp_path / "model" / "measured.json").read_text())
    assert 0 <= found["CA"] <= 100 and 0 <= found["ASR"] <= 100 and found["rate"] == 0.01
