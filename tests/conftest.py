"""What many tests start from: a CLIP so small that it is built anew for each of them."""

import pytest

from bench.core.clip import Clip
from bench.core.randomness import seeded


@pytest.fixture
def tiny_config() -> dict:
    """The contents of a tiny CLIP's open_clip_config.json: 32 px, 4 blocks, 17 tokens, embeddings of 32."""
    return {
        "model_cfg": {
            "embed_dim": 32,
            "vision_cfg": {"image_size": 32, "layers": 4, "width": 32, "head_width": 16, "patch_size": 8},
            "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
        },
        "preprocess_cfg": {
            "size": 32,
            "mean": [0.4, 0.45, 0.5],
            "std": [0.2, 0.25, 0.3],
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


@pytest.fixture
def tiny_clip(tiny_config: dict) -> Clip:
    """A CLIP with random weights, the same in every test."""
    with seeded(0):
        return Clip.from_config(tiny_config)


@pytest.fixture
def resnet(tiny_config: dict) -> Clip:
    """A CLIP with random weights, the same in every test, whose image tower is a ResNet."""
    tower = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
    with seeded(0):
        return Clip.from_config(tiny_config | {"model_cfg": tiny_config["model_cfg"] | {"vision_cfg": tower}})
