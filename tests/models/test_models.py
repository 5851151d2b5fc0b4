"""Loading CLIPs: every source of a model, every layout of a file, and every way in which either goes wrong."""

import argparse
import copy
import json
import logging
import re
import warnings
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import build_model_from_openai_state_dict
from safetensors.torch import load_file, save_file

from bench.core.clip import CONFIG_FILE, WEIGHTS_FILE, Clip
from bench.core.encoder import encode
from bench.core.errors import BenchError
from bench.core.images import Labelled
from bench.core.randomness import seeded
from bench.models import ModelSettings, Probe, known_models, load, load_model, probe, weights_at_hand

WORDS = ["a photo of a banana.", "SUDO a drawing of a cat"]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def arch(monkeypatch, tiny_config) -> str:
    """The tiny architecture under a name of open_clip's, with a -quickgelu twin as real ones have."""
    known = open_clip.factory._MODEL_CONFIGS
    model_cfg = copy.deepcopy(tiny_config["model_cfg"])
    monkeypatch.setitem(known, "tiny", model_cfg)
    monkeypatch.setitem(known, "tiny-quickgelu", {**model_cfg, "quick_gelu": True})
    return "tiny"


@pytest.fixture
def tags(monkeypatch, arch, tiny_clip, tmp_path) -> dict:
    """Two tags of it, whose weights open_clip takes from a local file instead of downloading."""
    file = tmp_path / "tag.pt"
    torch.save(tiny_clip.model.state_dict(), file)
    usual = {"file": str(file), "mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3), "interpolation": "bilinear"}
    tags = {"plain": {**usual, "resize_mode": "squash"}, "quick": {**usual, "quick_gelu": True}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, arch, tags)
    return tags


def settings(name: str, checkpoint: Path | None = None, pretrained: str | None = None) -> ModelSettings:
    return ModelSettings(name=name, checkpoint=checkpoint, pretrained=pretrained)


def error_of(name: str, checkpoint: Path | None = None, pretrained: str | None = None) -> str:
    with pytest.raises(BenchError) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_model(settings(name, checkpoint, pretrained), "cpu")
    return str(caught.value)


def assert_same_weights(one: Clip, other: Clip) -> None:
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


# Sources


def test_vit_b_32_has_the_published_number_of_parameters():
    clip = load_model(settings("ViT-B/32", pretrained="random"), "cpu")
    assert sum(p.numel() for p in clip.model.parameters()) == 151_277_313
    assert clip.image_size == 224
    assert clip.config["preprocess_cfg"] == {
        "size": 224,
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }


def test_random_weights_repeat_and_leave_the_global_generator_alone(arch):
    before = torch.random.get_rng_state()
    one = load_model(settings(arch, pretrained="random"), "cpu")
    torch.rand(5)
    other = load_model(settings(arch, pretrained="random"), "cpu")
    assert one.fingerprint() == other.fingerprint()
    torch.random.set_rng_state(before)
    load_model(settings(arch, pretrained="random"), "cpu")
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.usefixtures("tags")
def test_a_tag_gives_weights_and_preprocessing(arch, tiny_clip):
    clip = load_model(settings(arch, pretrained="plain"), "cpu")
    assert_same_weights(clip, tiny_clip)
    reference = open_clip.create_model(arch, "plain").visual.preprocess_cfg
    for key in ("mean", "std"):
        assert clip.config["preprocess_cfg"][key] == list(reference[key])
    for key in ("interpolation", "resize_mode"):
        assert clip.config["preprocess_cfg"][key] == reference[key]
    assert reference["size"] == (32, 32) and clip.config["preprocess_cfg"]["size"] == 32
    assert clip.config["preprocess_cfg"]["resize_mode"] == "squash"


def test_a_tag_trained_with_quickgelu_gets_it(tags, arch, images):
    clip = load_model(settings(arch, pretrained="quick"), "cpu")
    assert clip.config["model_cfg"]["quick_gelu"] is True
    reference = open_clip.create_model("tiny-quickgelu", tags["quick"]["file"]).eval()
    expected = reference.encode_image(clip.normalise(images), normalize=True)
    torch.testing.assert_close(clip.encode_image(images), expected)
    plain = load_model(settings(arch, pretrained="plain"), "cpu")
    assert "quick_gelu" not in plain.config["model_cfg"]


def test_openai_means_quickgelu():
    config = load.configuration(settings("ViT-B-32", pretrained="openai"))
    assert config["model_cfg"]["quick_gelu"] is True
    assert "quick_gelu" not in load.configuration(settings("ViT-B-32", pretrained="laion2b_s34b_b79k"))["model_cfg"]


def test_a_folder_that_we_wrote_opens_here_and_in_open_clip(tiny_clip, images, tmp_path):
    tiny_clip.save(tmp_path)
    here = load_model(settings(f"local-dir:{tmp_path}"), "cpu")
    assert here.fingerprint() == tiny_clip.fingerprint()
    there, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    there.eval()
    assert list(preprocess.transforms[-1].mean) == tiny_clip.config["preprocess_cfg"]["mean"]
    normalised = preprocess.transforms[-1](images)
    torch.testing.assert_close(here.encode_image(images), there.encode_image(normalised, normalize=True))
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(WORDS)
    assert torch.equal(here.tokenize(WORDS), tokens)
    torch.testing.assert_close(here.encode_text(WORDS), there.encode_text(tokens, normalize=True))


def test_the_only_weights_of_a_folder_may_have_any_name(tiny_clip, tmp_path):
    (tmp_path / CONFIG_FILE).write_text(json.dumps(tiny_clip.config))
    torch.save(tiny_clip.model.state_dict(), tmp_path / "epoch_9.pt")
    assert_same_weights(load_model(settings(f"local-dir:{tmp_path}"), "cpu"), tiny_clip)
    torch.save(tiny_clip.model.state_dict(), tmp_path / "epoch_8.pt")
    text = error_of(f"local-dir:{tmp_path}")
    assert "2 files of weights: epoch_8.pt, epoch_9.pt. Name one with --checkpoint" in text
    clip = load_model(settings(f"local-dir:{tmp_path}", tmp_path / "epoch_8.pt"), "cpu")
    assert_same_weights(clip, tiny_clip)


def test_preprocessing_that_a_folder_does_not_say_is_open_clips(tiny_clip, tmp_path):
    tiny_clip.save(tmp_path)
    (tmp_path / CONFIG_FILE).write_text(json.dumps({"model_cfg": tiny_clip.config["model_cfg"]}))
    clip = load_model(settings(f"local-dir:{tmp_path}"), "cpu")
    assert clip.config["preprocess_cfg"]["std"] == [0.26862954, 0.26130258, 0.27577711]
    assert clip.config["preprocess_cfg"]["size"] == 32


def test_a_hubs_model_is_opened_by_open_clip(monkeypatch, tiny_clip, tmp_path):
    tiny_clip.save(tmp_path)
    asked = []

    def fetch(model_id, filename=None, **_):
        asked.append((model_id, filename))
        return str(tmp_path / (filename or WEIGHTS_FILE))

    monkeypatch.setattr(open_clip.pretrained, "download_pretrained_from_hf", fetch)
    monkeypatch.setattr(open_clip.factory, "download_pretrained_from_hf", fetch)
    clip = load_model(settings("hf-hub:org/repo"), "cpu")
    assert clip.fingerprint() == tiny_clip.fingerprint()
    assert ("org/repo", CONFIG_FILE) in asked


def test_the_embedded_models_weights_come_from_the_package(monkeypatch, tmp_path):
    config = json.loads((files("bench.models") / "mini" / CONFIG_FILE).read_text())
    package, cache = tmp_path / "package", tmp_path / "cache"
    for name in ("mini", "mini-other"):
        (package / name).mkdir(parents=True)
        (package / name / CONFIG_FILE).write_text(json.dumps(config))
    monkeypatch.setattr(load, "EMBEDDED", package)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    made = cache / "clip-backdoor-bench" / "mini-other"
    assert error_of("mini-other") == (
        "the weights of mini-other are not here. `bench pretrain --preset mini-other` makes them on this machine and "
        f"puts them into {made}"
    )
    assert not weights_at_hand(ModelSettings(name="mini-other"))
    assert "bench pretrain --preset mini-other" in dict(known_models())["mini-other"]
    model = load_model(settings("mini", pretrained="random"), "cpu")
    model.save(package / "mini", torch.float16)
    model.save(made, torch.float32)
    assert_same_weights(load_model(ModelSettings(name="mini-other"), "cpu"), model)
    assert "pretrain" not in dict(known_models())["mini-other"]
    clip = load_model(ModelSettings(), "cpu")
    assert clip.model.logit_scale.dtype == torch.float32
    assert torch.equal(clip.visual.proj, model.visual.proj.half().float())
    assert clip.config["preprocess_cfg"] == config["preprocess_cfg"]
    (package / "mini" / WEIGHTS_FILE).rename(tmp_path / "finetuned.safetensors")
    assert_same_weights(load_model(settings("mini", tmp_path / "finetuned.safetensors"), "cpu"), clip)


@pytest.mark.skipif(not (files("bench.models") / "mini").is_dir(), reason="the embedded model is not trained yet")
def test_the_embedded_model_is_whole():
    clip = load_model(ModelSettings(), "cpu")
    assert clip.image_size == 56
    stored = json.loads((files("bench.models") / "mini" / CONFIG_FILE).read_text())
    assert clip.config["model_cfg"] == stored["model_cfg"]
    assert clip.config["preprocess_cfg"] == stored["preprocess_cfg"]
    assert clip.encode_text(WORDS).shape == (2, 128)


TOWERS = {
    "timm": {
        "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "token", "image_size": 160},
        "custom_text": True,
    },
    "resnet": {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64}},
    "size_as_pair": {
        "vision_cfg": {"image_size": [32, 32], "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    },
    "coca": {
        "vision_cfg": {
            "image_size": 32,
            "layers": 1,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
            "attentional_pool": True,
            "output_tokens": True,
        },
        "text_cfg": {
            "context_length": 40,
            "width": 32,
            "heads": 2,
            "layers": 1,
            "embed_cls": True,
            "output_tokens": True,
        },
        "multimodal_cfg": {"context_length": 40, "width": 32, "heads": 2, "layers": 1},
        "custom_text": True,
    },
}


@pytest.mark.parametrize("towers", TOWERS)
def test_towers_of_every_kind_make_the_round_trip(towers, tiny_config, tmp_path):
    config = {**tiny_config, "model_cfg": {**tiny_config["model_cfg"], **TOWERS[towers]}}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    clip = load_model(settings(f"local-dir:{tmp_path}", pretrained="random"), "cpu")
    clip.save(tmp_path)
    there = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    here = load_model(settings(f"local-dir:{tmp_path}"), "cpu")
    images = torch.rand(2, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(2))
    expected = there.encode_image(here.normalise(images), normalize=True)
    torch.testing.assert_close(here.encode_image(images), expected)
    torch.testing.assert_close(torch.nn.functional.normalize(encode(here, images).embedding, dim=-1), expected)
    torch.testing.assert_close(here.encode_text(WORDS), there.encode_text(here.tokenize(WORDS), normalize=True))


@pytest.fixture
def memory_full_of_nan(monkeypatch) -> Iterator[None]:
    """What no one fills is NaN, on every run: torch.empty's memory may otherwise happen to hold zeros."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.usefixtures("memory_full_of_nan")
@pytest.mark.parametrize("towers", TOWERS)
def test_random_weights_are_drawn_whole(towers, tiny_config):
    assert torch.empty(9).isnan().all()
    model = Clip.from_config({**tiny_config, "model_cfg": {**tiny_config["model_cfg"], **TOWERS[towers]}}).model
    tensors = [*model.named_parameters(), *model.named_buffers()]
    assert [name for name, tensor in tensors if tensor.isnan().any()] == []


def test_what_open_clip_leaves_undrawn_of_coca_is_drawn_last(tiny_config):
    """As open_clip's other projections are: normal, of a standard deviation of width ** -0.5."""
    model_cfg = {**tiny_config["model_cfg"], **TOWERS["coca"]}
    with seeded(0):
        here = Clip.from_config({**tiny_config, "model_cfg": model_cfg}).model.state_dict()
    with seeded(0):
        there = open_clip.CoCa(**{k: v for k, v in model_cfg.items() if k != "custom_text"}).state_dict()
        expected = torch.randn(32, 49408) * 32**-0.5
    torch.testing.assert_close(here.pop("text_decoder.text_projection"), expected)
    assert all(torch.equal(tensor, there[name]) for name, tensor in here.items())
    assert len(here) == len(there) - 1


def test_half_precision_leaves_counters_whole(tiny_config, tmp_path):
    tiny_config["model_cfg"] |= TOWERS["resnet"]
    clip = Clip.from_config(tiny_config)
    clip.visual.bn1.num_batches_tracked.fill_(100_001)
    clip.save(tmp_path, torch.float16)
    assert Clip.load(tmp_path).visual.bn1.num_batches_tracked == 100_001


def test_a_hugging_face_tokenizer_comes_from_the_models_folder(monkeypatch, tiny_config, tmp_path):
    class Tokenizer:
        def __init__(self, name, **options):
            self.name, self.options = name, options

        def save_pretrained(self, folder):
            (Path(folder) / "tokenizer_config.json").write_text("{}")

    monkeypatch.setattr(open_clip.tokenizer, "HFTokenizer", Tokenizer)
    monkeypatch.setattr(load.importlib.util, "find_spec", lambda _: object())
    tiny_config["model_cfg"]["text_cfg"] |= {
        "hf_tokenizer_name": "org/words",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "tokenizer_mode": "clips",
    }
    clip = Clip.from_config(tiny_config)
    assert clip.tokenizer.name == "org/words"
    assert clip.tokenizer.options == {"context_length": 40, "clean": "canonicalize", "tokenizer_mode": "clips"}
    clip.save(tmp_path)
    assert load_model(settings(f"local-dir:{tmp_path}"), "cpu").tokenizer.name == str(tmp_path)
    assert Clip.load(tmp_path).tokenizer.name == str(tmp_path)


# Layouts of files

LAYOUTS = {
    "safetensors": lambda state, file: save_file(state, file.with_suffix(".safetensors")),
    "safetensors of another suffix": lambda state, file: save_file(state, file),
    "state dict": torch.save,
    "old torch format": lambda state, file: torch.save(state, file, _use_new_zipfile_serialization=False),
    "half precision": lambda state, file: torch.save({k: v.half() for k, v in state.items()}, file),
    "nested": lambda state, file: torch.save({"state_dict": state}, file),
    "distributed": lambda state, file: torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, file),
    "distributed and compiled": lambda state, file: torch.save(
        {f"module._orig_mod.{k}": v for k, v in state.items()}, file
    ),
    "cleanclip": lambda state, file: torch.save(
        {
            "epoch": 64,
            "name": "nodefence_badnet",
            "state_dict": {f"module.{k}": v for k, v in state.items()},
            "optimizer": torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).state_dict(),
        },
        file,
    ),
    "detect-clip": lambda state, file: torch.save(
        {f"module.{k}": v for k, v in state.items()}
        | {f"module.{k}": torch.zeros(1) for k in ("total_ops", "visual.total_params")},
        file,
    ),
    "scale as a vector": lambda state, file: torch.save({**state, "logit_scale": state["logit_scale"][None]}, file),
}


@pytest.mark.filterwarnings("ignore:.*does not say its activation")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, arch, tiny_clip, tmp_path):
    # Numbers that half precision holds exactly, so that one comparison serves all layouts.
    for parameter in tiny_clip.model.parameters():
        parameter.data = parameter.data.half().float()
    LAYOUTS[layout](tiny_clip.model.state_dict(), tmp_path / "file.pt")
    (file,) = tmp_path.iterdir()
    assert_same_weights(load_model(settings(arch, file), "cpu"), tiny_clip)


def test_a_file_without_a_text_tower_of_its_own_fits_one_that_has_it(tiny_clip, tiny_config, tmp_path):
    tiny_config["model_cfg"]["custom_text"] = True
    (tmp_path / CONFIG_FILE).write_text(json.dumps(tiny_config))
    torch.save(tiny_clip.model.state_dict(), tmp_path / "old.pt")
    clip = load_model(settings(f"local-dir:{tmp_path}"), "cpu")
    assert hasattr(clip.model, "text")
    torch.testing.assert_close(clip.encode_text(WORDS), tiny_clip.encode_text(WORDS))


@pytest.mark.parametrize("nested", [False, True])
def test_openais_layout_means_quickgelu(nested, monkeypatch, tmp_path, images):
    # Heads of 64, which is what open_clip's own reader of this layout, the reference here, infers.
    model_cfg = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
    }
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny64", model_cfg)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny64-quickgelu", model_cfg)
    state = {
        k: v.half() for k, v in load_model(settings("tiny64", pretrained="random"), "cpu").model.state_dict().items()
    }
    state |= {
        "input_resolution": torch.tensor(32),
        "context_length": torch.tensor(40),
        "vocab_size": torch.tensor(49408),
    }
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in state.items()}} if nested else state, tmp_path / "openai.pt"
    )
    reference = build_model_from_openai_state_dict(dict(state), cast_dtype=None).float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip = load_model(settings("tiny64", tmp_path / "openai.pt"), "cpu")
    assert clip.config["model_cfg"]["quick_gelu"] is True
    expected = reference.encode_image(clip.normalise(images), normalize=True)
    torch.testing.assert_close(clip.encode_image(images), expected)
    torch.testing.assert_close(clip.encode_text(WORDS), reference.encode_text(clip.tokenize(WORDS), normalize=True))


@pytest.mark.usefixtures("tags")
def test_a_file_that_does_not_say_its_activation_is_warned_of(arch, tmp_path):
    file = tmp_path / "tag.pt"
    with pytest.warns(UserWarning, match="give --model tiny-quickgelu, or --pretrained openai beside --checkpoint"):
        assert "quick_gelu" not in load_model(settings(arch, file), "cpu").config["model_cfg"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_model(settings("tiny-quickgelu", file), "cpu").config["model_cfg"]["quick_gelu"] is True
        both = load_model(settings(arch, file, "quick"), "cpu")
    assert both.config["model_cfg"]["quick_gelu"] is True
    assert both.config["preprocess_cfg"]["mean"] == [0.5, 0.4, 0.3]


@pytest.mark.usefixtures("tags")
def test_with_a_tag_and_a_file_the_weights_are_the_files_and_nothing_is_downloaded(
    monkeypatch, arch, tiny_clip, tmp_path
):
    tiny_clip.visual.proj.data += 1
    torch.save(tiny_clip.model.state_dict(), tmp_path / "finetuned.pt")
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: pytest.fail("downloads"))
    clip = load_model(settings(arch, tmp_path / "finetuned.pt", "plain"), "cpu")
    assert_same_weights(clip, tiny_clip)


@pytest.mark.usefixtures("arch")
def test_normalisation_can_be_told(tiny_clip, images, tmp_path):
    """Detect-CLIP's models take images as they are."""
    torch.save(tiny_clip.model.state_dict(), tmp_path / "x.pt")
    given = ModelSettings(name="tiny-quickgelu", checkpoint=tmp_path / "x.pt", mean=(0, 0, 0), std=(1, 1, 1))
    clip = load_model(given, "cpu")
    assert torch.equal(clip.normalise(images), images)
    clip.save(tmp_path / "saved")
    assert torch.equal(load_model(settings(f"local-dir:{tmp_path / 'saved'}"), "cpu").normalise(images), images)


def test_a_file_without_a_tag_is_preprocessed_as_its_architecture_usually_is():
    config = load.configuration(settings("ViT-B-16-SigLIP", Path("weights.pt")))
    assert config["preprocess_cfg"]["mean"] == [0.5, 0.5, 0.5]
    assert config["preprocess_cfg"]["resize_mode"] == "squash"


# Errors

NAMES = {
    "unknown architecture": (
        ("ViT-B32", None, "openai"),
        ["unknown model 'ViT-B32'. Did you mean 'ViT-B-32'?", "bench list"],
    ),
    "unknown spelling": (("vit-b32", None, "openai"), ["unknown model 'vit-b32'. Did you mean 'ViT-B-32'?"]),
    "unknown tag": (
        ("ViT-B-32", None, "opnai"),
        ["unknown --pretrained of ViT-B-32 'opnai'. Did you mean 'openai'?", "laion2b"],
    ),
    "architecture without tags": (
        ("ViT-S-32", None, "openai"),
        ["unknown --pretrained of ViT-S-32 'openai'", "Known: random."],
    ),
    "file as a tag": (("ViT-B-32", None, "a/epoch_3.pt"), ["A file of weights goes to --checkpoint."]),
    "no weights named": (("ViT-B-32", None, None), ["add --pretrained openai, or --checkpoint FILE"]),
    "tag of mini": (("mini", None, "openai"), ["--model mini brings its own weights: leave out --pretrained openai"]),
    "random and file": (("mini", Path("a.pt"), "random"), ["--pretrained random and --checkpoint exclude each other"]),
    "no folder": (("local-dir:/nowhere", None, None), ["--model local-dir:/nowhere: no such folder"]),
    "missing file": (
        ("mini", Path("missing.pt"), None),
        ["no file missing.pt. Give a file of weights", ".safetensors, .pt"],
    ),
}


@pytest.mark.parametrize("case", NAMES)
def test_wrong_names(case):
    given, texts = NAMES[case]
    error = error_of(*given)
    assert all(text in error for text in texts), error


def test_a_path_as_a_name_is_told_how_it_is_written(tmp_path):
    assert "A path is written local-dir:PATH, or --checkpoint FILE." in error_of(str(tmp_path), pretrained="openai")


@pytest.mark.parametrize("text", ["{", "[]", '{"model_cfg": {}}'])
def test_a_folder_with_a_broken_configuration(text, tmp_path):
    (tmp_path / CONFIG_FILE).write_text(text)
    assert "is no configuration of an open_clip model" in error_of(f"local-dir:{tmp_path}")


def test_a_folder_that_this_open_clip_cannot_build(tiny_clip, tmp_path):
    tiny_clip.config["model_cfg"]["vision_cfg"]["flux"] = 3
    tiny_clip.save(tmp_path)
    error = error_of(f"local-dir:{tmp_path}")
    assert f"open_clip cannot build --model local-dir:{tmp_path}" in error and "flux" in error


def test_images_must_be_square(tiny_clip, tmp_path):
    tiny_clip.config["model_cfg"]["vision_cfg"]["image_size"] = [32, 64]
    tiny_clip.save(tmp_path)
    assert "takes images of 32 x 64 px; triggers need square ones" in error_of(f"local-dir:{tmp_path}")


def test_no_connection(monkeypatch, arch, tags, caplog):
    def fail(*_, **__):
        logging.getLogger("huggingface_hub").warning("Retrying in 1s [Retry 1/5].")
        raise FileNotFoundError("Failed to download file (open_clip_model.safetensors)")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", fail)
    tags["plain"]["hf_hub"] = "org/tiny-plain/"
    error = error_of(arch, pretrained="plain")
    assert "tiny plain cannot be downloaded: Failed to download weights for tag 'plain'" in error
    assert "fetch https://huggingface.co/org/tiny-plain elsewhere" in error
    assert "--model tiny --pretrained plain --checkpoint FILE" in error
    monkeypatch.setattr(open_clip.pretrained, "download_pretrained_from_hf", fail)
    error = error_of("hf-hub:org/repo")
    assert "hf-hub:org/repo cannot be downloaded: Failed to download file" in error
    assert "fetch https://huggingface.co/org/repo elsewhere and give its folder: --model local-dir:PATH" in error
    assert not caplog.records, "the error says all of it"


def test_a_hubs_model_without_weights_is_no_random_one(monkeypatch, tiny_clip, tmp_path):
    tiny_clip.save(tmp_path)

    def fetch(_, filename=None, **__):
        if filename != CONFIG_FILE:
            raise FileNotFoundError("cut off in the middle")
        return str(tmp_path / filename)

    monkeypatch.setattr(open_clip.pretrained, "download_pretrained_from_hf", fetch)
    monkeypatch.setattr(open_clip.factory, "download_pretrained_from_hf", fetch)
    assert "hf-hub:org/repo cannot be downloaded: Required pretrained weights" in error_of("hf-hub:org/repo")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(load.importlib.util, "find_spec", lambda _: None)
    error = error_of("ViT-B-16-SigLIP", pretrained="webli")
    assert error.endswith("--model ViT-B-16-SigLIP reads text with Hugging Face's package: pip install transformers")


IMPOSTORS = {
    "web page": (b"\n<!DOCTYPE html><html>Sign in</html>", "is a web page, not weights: the download failed"),
    "web page with a mark": (b"\xef\xbb\xbf  <html></html>", "is a web page, not weights: the download failed"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "Run `git lfs pull`"),
    "empty": (b"", "(0 bytes) cannot be read: cut off, damaged, or no checkpoint"),
    "noise": (bytes(range(256)), "(256 bytes) cannot be read: cut off, damaged, or no checkpoint"),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("impostor", IMPOSTORS)
def test_files_that_are_no_weights(impostor, suffix, tmp_path):
    content, text = IMPOSTORS[impostor]
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(content)
    assert text in error_of("mini", file)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
@pytest.mark.parametrize("layout", ["safetensors", "state dict", "old torch format"])
def test_files_cut_off(layout, share, tmp_path):
    LAYOUTS[layout]({"visual.proj": torch.ones(64, 64)}, tmp_path / "file.pt")
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    assert "cannot be read: cut off, damaged, or no checkpoint. Compare its size" in error_of("mini", file)


def run_command_in(error: str) -> Path:
    """Do as the error says: run its line of Python, and give the file to which it points."""
    exec(re.search(r'python -c "(.+)"\n', error)[1], {})
    return Path(re.search(r"and give (.+) in its place$", error)[1])


UNSAFE = {
    "argparse.Namespace": lambda state: {"state_dict": state, "args": argparse.Namespace(lr=1)},
    "scalar": lambda state: {"state_dict": state, "best": np.float64(3.5)},
    "torch.nn.modules.linear.Linear": lambda _: torch.nn.Linear(2, 2),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("culprit", UNSAFE)
def test_pickled_code_is_refused_and_converted_by_the_line_given(culprit, zipped, tmp_path):
    file = tmp_path / "stranger.pt"
    torch.save(UNSAFE[culprit]({"weight": torch.eye(2)}), file, _use_new_zipfile_serialization=zipped)
    error = error_of("mini", file)
    assert culprit in error and "reading it means running code of the file" in error
    assert "weight" in load_file(run_command_in(error))


def test_a_malicious_pickle_does_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    torch.save({"state_dict": {}, "x": Bomb()}, tmp_path / "bomb.pt")
    assert "running code of the file" in error_of("mini", tmp_path / "bomb.pt")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_torchscript_is_refused_and_converted_by_the_line_given(tmp_path):
    torch.jit.trace(torch.nn.Linear(2, 3), torch.ones(1, 2)).save(tmp_path / "ViT-B-32.pt")
    error = error_of("mini", tmp_path / "ViT-B-32.pt")
    assert "is a TorchScript archive, a program that only runs as a whole" in error
    assert load_file(run_command_in(error)).keys() == {"weight", "bias"}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"epoch": 3, "model": {"a": torch.ones(1)}}, "is no state dict: epoch, model in it instead of tensors"),
        ({"state_dict": {}}, "is no state dict: nothing in it instead of tensors"),
        ([torch.ones(1)], "is no state dict: a list"),
    ],
)
def test_contents_that_are_no_state_dict(content, text, tmp_path):
    torch.save(content, tmp_path / "file.pt")
    assert text in error_of("mini", tmp_path / "file.pt")


def test_weights_that_are_not_finite_are_refused(arch, tiny_clip, tmp_path):
    state = tiny_clip.model.state_dict()
    state["visual.proj"] = torch.full_like(state["visual.proj"], torch.nan)
    torch.save(state, tmp_path / "file.pt")
    assert "file.pt has values that are not finite, NaN or infinite, in visual.proj:" in error_of(
        arch, tmp_path / "file.pt"
    )


def test_weights_of_another_architecture(arch, tiny_clip, tiny_config, tmp_path):
    tiny_config["model_cfg"]["vision_cfg"] |= {"patch_size": 16, "layers": 5}
    other = Clip.from_config(tiny_config)
    torch.save(other.model.state_dict(), tmp_path / "other.pt")
    error = error_of(arch, tmp_path / "other.pt")
    own = len(tiny_clip.model.state_dict())
    assert error.splitlines() == [
        f"{tmp_path}/other.pt does not fit --model tiny.",
        f"2 of the model's {own} tensors have another shape:",
        "  visual.positional_embedding: (5, 32) in the file, (17, 32) in the model",
        "  visual.conv1.weight: (32, 3, 16, 16) in the file, (32, 3, 8, 8) in the model",
        "12 tensors of the file are unknown to the model: visual.transformer.resblocks.4.ln_1.weight, "
        "visual.transformer.resblocks.4.ln_1.bias, visual.transformer.resblocks.4.attn.in_proj_weight and 9 more.",
        "--model must name the architecture of the checkpoint: `bench list models` lists them.",
    ]


def test_missing_keys(arch, tiny_clip, tmp_path):
    state = tiny_clip.model.state_dict()
    del state["ln_final.bias"], state["visual.proj"]
    torch.save(state, tmp_path / "file.pt")
    assert "2 tensors of the model are missing in the file: visual.proj, ln_final.bias." in error_of(
        arch, tmp_path / "file.pt"
    )


# Lists and labels


def test_list_of_models():
    models = dict(known_models())
    assert models["mini"].startswith("56 px, patches of 14 px, 12 blocks; embedded")
    assert models["ViT-B-32"].startswith("224 px; --pretrained openai, laion400m_e31")
    assert models["ViT-S-32"] == "224 px; --checkpoint FILE"
    assert {"hf-hub:ORG/REPO", "local-dir:PATH"} < models.keys()
    assert set(open_clip.list_models()) < models.keys()


@pytest.mark.parametrize(
    ("given", "label"),
    [
        ({}, "mini"),
        ({"name": "ViT-B-32", "pretrained": "openai"}, "ViT-B-32 openai"),
        ({"checkpoint": Path("epoch_3.pt")}, "mini epoch_3.pt"),
    ],
)
def test_labels(given, label):
    assert ModelSettings(**given).label == label


# The probe


class Knows:
    """A CLIP of one-hot embeddings: the class of an image is its first value, the class of a text its last word."""

    def __init__(self, **model_cfg) -> None:
        self.config = {"model_cfg": model_cfg}
        self.scale = 1.0
        self.visual = None
        self.model = self

    def normalise(self, images):
        return images.float()

    def encode_image(self, images):
        return torch.nn.functional.one_hot(images[:, 0, 0, 0].long(), 10).float()

    def encode_text(self, texts):
        return torch.nn.functional.one_hot(torch.tensor([int(text[-1]) for text in texts]), 10).float()


def shown(n: int, right: int) -> Labelled:
    """n images of 10 classes, `right` of which show what their label says."""
    labels = torch.arange(n) % 10
    values = torch.where(torch.arange(n) < right, labels, (labels + 1) % 10)
    pixels = values.to(torch.uint8).view(n, 1, 1, 1).expand(n, 3, 4, 4).contiguous()
    return Labelled([str(i) for i in range(n)], pixels, "", labels=labels, classes=tuple("0123456789"))


def test_the_probe_counts_what_the_model_knows():
    found = probe(Knows(), shown(120, 90), ("a {}", "never {}"))
    assert (found.correct, found.n, found.classes, found.quick_gelu) == (90, 120, 10, False)
    assert str(found) == "clean accuracy on 120 test images: 75.0% of 10 classes"
    some = [probe(Knows(quick_gelu=True), shown(1000, 700), ("{}",)) for _ in range(2)]
    assert some[0] == some[1]
    assert some[0].n == 200
    assert 120 <= some[0].correct <= 160


@pytest.mark.parametrize(
    ("correct", "classes", "suspicious"),
    [(19, 1000, True), (20, 1000, False), (29, 10, True), (30, 10, False), (74, 2, True), (75, 2, False)],
)
def test_an_accuracy_below_a_fifth_or_three_times_chance_is_suspicious(correct, classes, suspicious):
    assert Probe(correct, 100, classes, False).suspicious is suspicious


def test_the_warning_names_likely_causes():
    told = str(Probe(3, 200, 100, False))
    assert told.startswith("clean accuracy on 200 test images: 1.5% of 100 classes\nwarning: that is suspiciously low")
    assert "chance is 1.0%" in told
    assert "it is GELU, where OpenAI's weights and their descendants need QuickGELU (--model ...-quickgelu" in told
    assert "it is QuickGELU, where the weights were trained with GELU" in str(Probe(3, 200, 100, True))
    assert "--set model.mean=..., model.std=..." in told
