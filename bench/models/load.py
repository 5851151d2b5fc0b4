"""Loading a CLIP by name: its architecture, weights and preprocessing.

Downloads are opened by open_clip itself, local files by `bench.models.checkpoint`. open_clip is imported late, in the
functions that use it: with torchvision, it takes longer to import than torch.
"""

import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import PositiveFloat

from bench.core.clip import CONFIG_FILE, CUT, LONG_TEXTS, WEIGHTS_FILE, Clip
from bench.core.errors import BenchError, guess, unknown
from bench.core.geometry import Resize
from bench.core.randomness import derive, seeded
from bench.core.settings import Field, Settings
from bench.models.checkpoint import SUFFIXES, fill, read_checkpoint

MINI = "mini"
HUB = "hf-hub:"
FOLDER = "local-dir:"
RANDOM = "random"
# The embedded models: a folder each, with a configuration, and with weights if they are shipped.
EMBEDDED = Path(str(files("bench.models")))
# In open_clip's order; a folder's only file of weights may have any name.
WEIGHTS_FILES = (WEIGHTS_FILE, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")


class ModelSettings(Settings):
    """A CLIP: its architecture and the source of its weights.

    With both `pretrained` and `checkpoint`, weights come from the file, activation and preprocessing from the tag, as
    for a model that was fine-tuned from the tag's weights.
    """

    name: str = Field(
        MINI, description=f"an embedded model ({MINI}), an open_clip name (ViT-B-32), {HUB}ORG/REPO or {FOLDER}PATH"
    )
    pretrained: str | None = Field(None, description=f"open_clip's tag of the weights (openai), or {RANDOM}")
    checkpoint: Path | None = Field(None, description=f"a local file of weights: {', '.join(SUFFIXES)}; tensors alone")
    backdoored: Path | None = Field(
        None,
        description="a file of weights of this architecture that were backdoored elsewhere: nothing is poisoned, they "
        "are defended and evaluated instead",
    )
    geometry: Resize | None = Field(
        None, description="how images are made square; null: as the weights' preprocessing says"
    )
    mean: tuple[float, float, float] | None = Field(None, description="of the normalisation, RGB; null: the model's")
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = Field(
        None, description="likewise; mean 0,0,0 and std 1,1,1 are none"
    )

    long_texts: Literal["end", "cut"] = Field(
        "end", description="texts of too many tokens: the end token is kept; or it is cut off, as by CleanCLIP's code"
    )

    @property
    def label(self) -> str:
        """The model's name in tables.

        >>> ModelSettings(name="ViT-B-32", checkpoint=Path("/somewhere/cleanclip/epoch_3.pt")).label
        'ViT-B-32 cleanclip/epoch_3.pt'
        """
        file = _short(self.checkpoint) if self.checkpoint else None
        clean = " ".join(part for part in (self.name, self.pretrained, file) if part)
        return f"{clean}, backdoored {_short(self.backdoored)}" if self.backdoored else clean

    @property
    def embedded(self) -> bool:
        """Whether it is one of bench's own, for the embedded world."""
        return self.name in embedded_models()

    @property
    def architecture(self) -> str | None:
        """open_clip's name of the architecture; None for embedded, `hf-hub:` and `local-dir:` models."""
        if self.embedded or self.name.startswith((HUB, FOLDER)):
            return None
        # OpenAI writes ViT-B/32.
        return self.name.replace("/", "-")


def _short(file: Path) -> str:
    return "/".join(file.parts[-2:])


def load_backdoored(file: Path, clean: Clip, name: str) -> Clip:
    """A copy of the clean CLIP, called `name` in messages, with the weights of a file.

    Raises:
        BenchError: the file cannot be read, or its weights do not fit.
    """
    clip = clean.copy()
    fill(clip.model, read_checkpoint(file), name)
    return clip


def load_model(settings: ModelSettings, device: torch.device | str) -> Clip:
    """Load the clean CLIP of these settings: float32, in evaluation mode, on `device`.

    Its `config` holds `preprocess_cfg` with size (px), mean, std, interpolation and resize_mode.

    Raises:
        BenchError: the name or tag is unknown, no weights are named or found, or they do not fit.
    """
    _check_weights_named(settings)
    config = configuration(settings)
    _check_packages(settings, config)
    if settings.pretrained == RANDOM:
        return _random(settings, config).to(device)
    if settings.checkpoint:
        return _from_file(settings, config, settings.checkpoint).to(device)
    if settings.embedded:
        return _from_file(settings, config, _embedded_weights(settings.name)).to(device)
    if settings.name.startswith(FOLDER):
        return _from_file(settings, config, _weights_in(_folder(settings))).to(device)
    return _download(settings, config).to(device)


def embedded_models() -> list[str]:
    """bench's own models for the embedded world, the default first."""
    names = [file.parent.name for file in EMBEDDED.glob(f"*/{CONFIG_FILE}")]
    return sorted(names, key=lambda name: (name != MINI, name))


def pretrained_folder(name: str) -> Path:
    """Where `bench pretrain` puts an embedded model whose weights are not shipped: in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "clip-backdoor-bench" / name


def embedded_weights(name: str) -> Path | None:
    """The weights of an embedded model: those shipped, or those pretrained here; None if it has none yet."""
    places = (EMBEDDED / name, pretrained_folder(name))
    return next((folder / WEIGHTS_FILE for folder in places if (folder / WEIGHTS_FILE).is_file()), None)


def _embedded_weights(name: str) -> Path:
    file = embedded_weights(name)
    if file is None:
        raise BenchError(
            f"the weights of {name} are not here. `bench pretrain --preset {name}` makes them on this machine "
            f"and puts them into {pretrained_folder(name)}"
        )
    return file


def _about_embedded(name: str) -> str:
    vision = read_config(EMBEDDED / name / CONFIG_FILE)["model_cfg"]["vision_cfg"]
    there = "" if embedded_weights(name) else f"; without weights yet: `bench pretrain --preset {name}`"
    size = f"{vision['image_size']} px, patches of {vision['patch_size']} px, {vision['layers']} blocks"
    return f"{size}; embedded, trained on the embedded world{there}"


def known_models() -> list[tuple[str, str]]:
    """All values of `--model`: (name, description)."""
    import open_clip

    rows = [(name, _about_embedded(name)) for name in embedded_models()]
    for name in open_clip.list_models():
        size = open_clip.get_model_config(name)["vision_cfg"].get("image_size", 224)
        tags = open_clip.list_pretrained_tags_by_model(name)
        rows.append((name, f"{size} px; " + (f"--pretrained {', '.join(tags)}" if tags else "--checkpoint FILE")))
    rows.append((f"{HUB}ORG/REPO", "a model of Hugging Face's hub in open_clip's format"))
    rows.append((f"{FOLDER}PATH", f"a folder with {CONFIG_FILE} and weights, as `bench pretrain` writes it"))
    return rows


def _check_weights_named(settings: ModelSettings) -> None:
    tag, name = settings.pretrained, settings.name
    if tag == RANDOM and settings.checkpoint:
        raise BenchError(f"--pretrained {RANDOM} and --checkpoint exclude each other: leave one out")
    if settings.architecture is None and tag not in (None, RANDOM):
        raise BenchError(f"--model {name} brings its own weights: leave out --pretrained {tag}")
    if settings.architecture is not None and tag is None and settings.checkpoint is None:
        _open_clip_config(settings)
        raise BenchError(f"--model {name} names no weights: add --pretrained openai, or --checkpoint FILE")


def configuration(settings: ModelSettings) -> dict[str, Any]:
    """The model's open_clip_config.json: architecture, and all five values of the preprocessing.

    Raises:
        BenchError: the name or tag is unknown, the folder or download holds no configuration, or images are not square.
    """
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    if settings.embedded:
        config = read_config(EMBEDDED / settings.name / CONFIG_FILE)
    elif settings.name.startswith(FOLDER):
        config = read_config(_folder(settings) / CONFIG_FILE)
    elif settings.name.startswith(HUB):
        config = read_config(_hub_config(settings))
    else:
        config = _open_clip_config(settings)
    preprocess = merge_preprocess_dict(PreprocessCfg(), config.get("preprocess_cfg", {}))
    size = config["model_cfg"]["vision_cfg"].get("image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise BenchError(f"--model {settings.name} takes images of {height} x {width} px; triggers need square ones")
    return {
        "model_cfg": config["model_cfg"],
        "preprocess_cfg": {
            "size": height,
            "mean": list(settings.mean or preprocess["mean"]),
            "std": list(settings.std or preprocess["std"]),
            "interpolation": preprocess["interpolation"],
            "resize_mode": settings.geometry or preprocess["resize_mode"],
        },
        # Only where it is asked for: a configuration is part of a model's fingerprint.
        **({LONG_TEXTS: CUT} if settings.long_texts == CUT else {}),
    }


def _open_clip_config(settings: ModelSettings) -> dict[str, Any]:
    import open_clip

    name, tag = settings.architecture or "", settings.pretrained
    model_cfg = open_clip.get_model_config(name)
    if model_cfg is None:
        raise _unknown_model(settings.name)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in (None, RANDOM) and not open_clip.is_pretrained_cfg(name, tag):
        hint = "A file of weights goes to --checkpoint." if "/" in tag or Path(tag).suffix in SUFFIXES else ""
        raise unknown(f"--pretrained of {name}", tag, [*tags, RANDOM], hint)
    if tag in (None, RANDOM):
        # Where an architecture's tags differ in preprocessing, the first has the usual one.
        return {"model_cfg": model_cfg, "preprocess_cfg": open_clip.get_pretrained_cfg(name, next(iter(tags), ""))}
    pretrained = open_clip.get_pretrained_cfg(name, tag)
    if pretrained.get("quick_gelu"):
        model_cfg["quick_gelu"] = True
    return {"model_cfg": model_cfg, "preprocess_cfg": pretrained}


def _unknown_model(name: str) -> BenchError:
    import open_clip

    suggestion = guess(name, [*embedded_models(), *open_clip.list_models()])
    path = f" A path is written {FOLDER}PATH, or --checkpoint FILE." if Path(name).exists() else ""
    return BenchError(f"unknown model '{name}'.{suggestion}{path}\n`bench list models` lists what there is.")


def read_config(file: Path) -> dict[str, Any]:
    """The contents of an `open_clip_config.json`.

    Raises:
        BenchError: the file is missing, or is none.
    """
    try:
        config = json.loads(file.read_text())
        config["model_cfg"]["vision_cfg"], config["model_cfg"]["text_cfg"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchError(
            f"{file} is no configuration of an open_clip model ({error!r}). "
            "Give the folder of one as open_clip's push_to_hf_hub or `bench pretrain` writes it."
        ) from error
    return config


def _folder(settings: ModelSettings) -> Path:
    folder = Path(settings.name.removeprefix(FOLDER)).expanduser()
    if not folder.is_dir():
        raise BenchError(f"--model {settings.name}: no such folder")
    return folder


def _weights_in(folder: Path) -> Path:
    candidates = sorted(f for f in folder.glob("*") if f.suffix in SUFFIXES)
    usual = [folder / name for name in WEIGHTS_FILES if folder / name in candidates]
    if not usual and len(candidates) != 1:
        names = ", ".join(file.name for file in candidates)
        what = f"{len(candidates)} files of weights: {names}" if candidates else "no file of weights"
        raise BenchError(f"{folder} has {what}. Name one with --checkpoint FILE")
    return (usual or candidates)[0]


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep quiet the libraries that log every retry of a download, twice: the error says what went wrong."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _hub_config(settings: ModelSettings) -> Path:
    import open_clip

    try:
        repository = settings.name.removeprefix(HUB)
        with _unlogged():
            return Path(open_clip.pretrained.download_pretrained_from_hf(repository, filename=CONFIG_FILE))
    except (OSError, RuntimeError) as error:
        raise _unavailable(settings, error) from error


def _check_packages(settings: ModelSettings, config: dict[str, Any]) -> None:
    text = config["model_cfg"]["text_cfg"]
    if (text.get("hf_model_name") or text.get("hf_tokenizer_name")) and not importlib.util.find_spec("transformers"):
        raise BenchError(f"--model {settings.name} reads text with Hugging Face's package: pip install transformers")


def _random(settings: ModelSettings, config: dict[str, Any]) -> Clip:
    # open_clip draws initial weights from torch's global generator, which must be left as it was.
    with seeded(derive(0, "random model")):
        return _build(settings, config)


def _from_file(settings: ModelSettings, config: dict[str, Any], file: Path) -> Clip:
    import open_clip

    checkpoint = read_checkpoint(file)
    if checkpoint.openai:
        config["model_cfg"]["quick_gelu"] = True
    quick = f"{settings.architecture}-quickgelu"
    if settings.pretrained is None and not config["model_cfg"].get("quick_gelu") and quick in open_clip.list_models():
        warnings.warn(
            f"{file} does not say its activation, and GELU is assumed. For a model fine-tuned from OpenAI's weights "
            f"(CleanCLIP, BadCLIP) that is wrong: give --model {quick}, or --pretrained openai beside --checkpoint.",
            stacklevel=3,
        )
    clip = _build(settings, config)
    fill(clip.model, checkpoint, settings.name)
    return clip


def _build(settings: ModelSettings, config: dict[str, Any]) -> Clip:
    folder = _folder(settings) if settings.name.startswith(FOLDER) else None
    try:
        return Clip.from_config(config, folder)
    except (AssertionError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise BenchError(f"open_clip cannot build --model {settings.name}: {error}") from error


def _download(settings: ModelSettings, config: dict[str, Any]) -> Clip:
    import open_clip

    name = settings.architecture or settings.name
    quick_gelu = config["model_cfg"].get("quick_gelu", False)
    try:
        # Without require_pretrained, a Hugging Face model whose download fails would get random weights.
        with _unlogged():
            model = open_clip.create_model(
                name, settings.pretrained, force_quick_gelu=quick_gelu, require_pretrained=True, weights_only=True
            )
        return Clip(model, open_clip.get_tokenizer(name), config)
    except Exception as error:  # a server, a proxy or a damaged file in the cache can raise anything
        raise _unavailable(settings, error) from error


def _unavailable(settings: ModelSettings, error: Exception) -> BenchError:
    import open_clip

    tag = open_clip.get_pretrained_cfg(settings.architecture or "", settings.pretrained or "")
    where = tag.get("hf_hub") or tag.get("url") or settings.name.removeprefix(HUB)
    page = where if where.startswith("http") else f"https://huggingface.co/{where.rstrip('/')}"
    local = f"--model {settings.name} --pretrained {settings.pretrained} --checkpoint FILE"
    return BenchError(
        f"{settings.label} cannot be downloaded: {str(error).strip() or repr(error)}\n"
        f"Without a connection, fetch {page} elsewhere and give "
        + (f"its file of weights: {local}" if settings.architecture else f"its folder: --model {FOLDER}PATH")
    )
