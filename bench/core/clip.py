"""A CLIP model with its tokenizer and preprocessing."""

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.core.errors import BenchError
from bench.core.randomness import generator

# The names which open_clip's `local-dir:` scheme expects, so that every model we write opens in open_clip.
CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
# Our key of a configuration, which open_clip ignores: a text that is too long loses its end token.
LONG_TEXTS, CUT = "long_texts", "cut"
# As far as other kernels of the CPU move a model while it is poisoned: docs/regression_gate.md, "Why reruns".
NUDGE = 2.0**-18


class Clip:
    """An open_clip model, its tokenizer and its preprocessing.

    Its methods take RGB images in [0, 1] of `image_size` and apply CLIP's normalisation themselves.
    """

    def __init__(self, model: Any, tokenizer: Any, config: dict) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.config = config
        self._norm = (
            torch.tensor(config["preprocess_cfg"]["mean"]).view(3, 1, 1),
            torch.tensor(config["preprocess_cfg"]["std"]).view(3, 1, 1),
        )

    @property
    def image_size(self) -> int:
        """Side of the square input, in px."""
        size = self.config["model_cfg"]["vision_cfg"].get("image_size", 224)
        return size if isinstance(size, int) else size[0]

    @property
    def visual(self) -> Any:
        return self.model.visual

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    @property
    def scale(self) -> Tensor:
        """1/tau: the factor between a cosine and a logit."""
        return self.model.logit_scale.exp()

    def to(self, device: torch.device | str) -> "Clip":
        self.model.to(device)
        self._norm = (self._norm[0].to(device), self._norm[1].to(device))
        return self

    def copy(self) -> "Clip":
        """An independent copy with the same weights."""
        return Clip(copy.deepcopy(self.model), self.tokenizer, self.config).to(self.device)

    def nudged(self, draw: int) -> "Clip":
        """A copy whose weights are each multiplied by 1 + e, where e is normal with standard deviation `NUDGE`.

        Its embeddings are as far from this model's as those of a model that another kind of processor poisons alike.
        """
        nudged, rng = self.copy(), generator(draw, "rounding")
        with torch.no_grad():
            for weights in nudged.model.parameters():
                weights.mul_(1 + NUDGE * torch.randn(weights.shape, generator=rng).to(weights.device))
        return nudged

    def normalise(self, images: Tensor) -> Tensor:
        """CLIP's input (n, 3, h, w) from images (n, 3, h, w), float RGB in [0, 1] or uint8."""
        images = images.to(self.device)
        if images.dtype == torch.uint8:
            images = images / 255
        mean, std = self._norm
        return (images - mean) / std

    def encode_image(self, images: Tensor) -> Tensor:
        """Unit-norm image embeddings (n, embed_dim) of images as `normalise` takes them."""
        return F.normalize(self.model.encode_image(self.normalise(images)), dim=-1)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Tokens (n, context); a text that is too long is cut, and keeps its end token unless `config` says no."""
        tokens = self.tokenizer(list(texts))
        return without_end(tokens, texts, self.tokenizer) if self.config.get(LONG_TEXTS) == CUT else tokens

    def encode_text(self, texts: Sequence[str] | Tensor) -> Tensor:
        """Unit-norm text embeddings (n, embed_dim) of texts, or of their tokens."""
        tokens = texts if isinstance(texts, Tensor) else self.tokenize(texts)
        return F.normalize(self.model.encode_text(tokens.to(self.device)), dim=-1)

    def fingerprint(self) -> str:
        """A hash of architecture, preprocessing and weights; equal for equal models."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            # Waits for the GPU: once a model.
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write the model so that open_clip's `local-dir:` can read it; floats as `dtype`, if given."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_text(json.dumps(self.config, indent=2) + "\n")
        # Waits for the GPU: once, to store them.
        state = {k: v.detach().cpu().contiguous() for k, v in self.model.state_dict().items()}
        if dtype is not None:
            state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
        save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        if hasattr(self.tokenizer, "save_pretrained"):
            self.tokenizer.save_pretrained(folder)

    @classmethod
    def from_config(cls, config: dict, folder: Path | None = None) -> "Clip":
        """A CLIP with random weights, from torch's global generator; `config` is as in `open_clip_config.json`.

        A Hugging Face tokenizer is read from `folder` if it is there, as open_clip's `local-dir:` does.
        """
        # Imported here: it takes longer to import than torch.
        import open_clip

        model_cfg = copy.deepcopy(config["model_cfg"])
        # No pretrained weights for a single tower: all weights are random, or come from one file.
        model_cfg["vision_cfg"]["timm_model_pretrained"] = model_cfg["text_cfg"]["hf_model_pretrained"] = False
        custom = model_cfg.pop("custom_text", False) or bool(model_cfg["text_cfg"].get("hf_model_name"))
        towers = open_clip.CoCa if "multimodal_cfg" in model_cfg else open_clip.CustomTextCLIP
        build = towers if custom else open_clip.CLIP
        model = build(**model_cfg)
        if isinstance(model, open_clip.CoCa):
            # open_clip leaves this one tensor uninitialised. Drawn last, with the scale of the other projections.
            projection = model.text_decoder.text_projection
            torch.nn.init.normal_(projection, std=projection.shape[0] ** -0.5)
        return cls(model, _tokenizer(model_cfg["text_cfg"], folder), config)

    @classmethod
    def load(cls, folder: Path) -> "Clip":
        """Read what `save` wrote.

        Raises:
            BenchError: the folder holds no open_clip model.
        """
        if not (folder / CONFIG_FILE).is_file() or not (folder / WEIGHTS_FILE).is_file():
            raise BenchError(f"no CLIP in {folder}: it needs {CONFIG_FILE} and {WEIGHTS_FILE}")
        clip = cls.from_config(json.loads((folder / CONFIG_FILE).read_text()), folder)
        clip.model.load_state_dict(load_file(folder / WEIGHTS_FILE))
        return clip


def without_end(tokens: Tensor, texts: Sequence[str], tokenizer: Any) -> Tensor:
    """Tokens (n, context) where texts that are too long have a token of theirs in place of the end token.

    Raises:
        BenchError: the tokenizer is not open_clip's own.
    """
    if not hasattr(tokenizer, "eot_token_id") or not hasattr(tokenizer, "encode"):
        raise BenchError("model.long_texts=cut needs open_clip's own tokenizer. Leave it at `end` for this model")
    for row in torch.where(tokens[:, -1] == tokenizer.eot_token_id)[0].tolist():
        # The start token comes first. A text that just fits keeps its end.
        ids = [tokenizer.sot_token_id, *tokenizer.encode(texts[row]), tokenizer.eot_token_id]
        tokens[row, -1] = ids[tokens.shape[1] - 1]
    return tokens


@contextmanager
def untrained(model: torch.nn.Module) -> Iterator[None]:
    """No weight of the model takes a gradient; afterwards those do that did before."""
    trained = [p for p in model.parameters() if p.requires_grad]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@cache
def _simple_tokenizer(options: str):
    """open_clip's own tokenizer; cached, since reading its vocabulary takes longer than loading the model `mini`."""
    import open_clip

    return open_clip.SimpleTokenizer(**json.loads(options))


def _tokenizer(text_cfg: dict, folder: Path | None):
    import open_clip

    name = text_cfg.get("hf_tokenizer_name")
    options = {"context_length": text_cfg.get("context_length", 77), **(text_cfg.get("tokenizer_kwargs") or {})}
    if not name:
        return _simple_tokenizer(json.dumps(options))
    if folder is not None and (folder / "tokenizer_config.json").is_file():
        name = str(folder)
    if text_cfg.get("tokenizer_mode"):
        options["tokenizer_mode"] = text_cfg["tokenizer_mode"]
    return open_clip.tokenizer.HFTokenizer(name, **options)
