"""Reading weights from untrusted files, in any of the common layouts, and loading them into a model.

No code of the file is run. Safetensors hold none; pickles are read with torch's `weights_only=True`, which builds only
tensors and plain containers. TorchScript archives, such as OpenAI's own `ViT-B-32.pt`, are programs that torch can
only load whole: they are refused, and the error gives a command that converts a trusted one.
"""

import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from bench.core.errors import BenchError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
# Entries beside the weights that only OpenAI's release has.
OPENAI_KEYS = ("input_resolution", "context_length", "vocab_size")
# Prefixes of keys: DistributedDataParallel's, torch.compile's, Lightning's and the like.
PREFIXES = ("module.", "_orig_mod.", "model.")
# Entries that operation counters leave among the weights; Detect-CLIP's reader drops them too.
COUNTERS = ("total_ops", "total_params")
SHOWN = 3

_CONVERT = (
    'python -c "import torch, safetensors.torch as s; {read}; '
    's.save_file({{k: v.clone().contiguous() for k, v in w.items()}}, {out!r})"'
)
_READ_PICKLE = (
    "c = torch.load({file!r}, map_location='cpu', weights_only=False); "
    "w = c.state_dict() if hasattr(c, 'state_dict') else c.get('state_dict', c)"
)
_READ_TORCHSCRIPT = "w = torch.jit.load({file!r}, map_location='cpu').state_dict()"


@dataclass(frozen=True)
class Checkpoint:
    """A file's tensors by open_clip's names. `openai`: it has OpenAI's layout, so it was trained with QuickGELU."""

    file: Path
    state: dict[str, Tensor]
    openai: bool


def read_checkpoint(file: Path) -> Checkpoint:
    """Read weights: safetensors, a state dict, `{"state_dict": ...}` as open_clip and CleanCLIP write it, or OpenAI's.

    Prefixes of the keys, such as `module.`, are removed.

    Raises:
        BenchError: the file is missing, damaged or no checkpoint, has values that are not finite, or needs to run code.
    """
    _refuse_impostors(file)
    state = _strip_prefixes(_state_dict(_read(file), file))
    state = {k: v for k, v in state.items() if not k.endswith(COUNTERS)}
    openai = all(key in state for key in OPENAI_KEYS)
    if openai:
        state = {k: v for k, v in state.items() if k not in OPENAI_KEYS}
    others = [str(k) for k, v in state.items() if not isinstance(v, Tensor)]
    if others or not state:
        raise BenchError(
            f"{file} is no state dict: {_some(others) or 'nothing'} in it instead of tensors. "
            "Write one with torch.save(model.state_dict(), FILE), or safetensors.torch.save_file."
        )
    if broken := [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]:
        raise BenchError(
            f"{file} has values that are not finite, NaN or infinite, in {_some(broken)}: its training diverged, or it "
            "is damaged. Use an earlier checkpoint."
        )
    return Checkpoint(file, state, openai)


def fill(model: torch.nn.Module, checkpoint: Checkpoint, name: str) -> None:
    """Load all of a checkpoint's weights into `model`, in the model's precision; `name` is the model in messages.

    Position embeddings of another size are not interpolated, as open_clip would do: that would be another model.

    Raises:
        BenchError: names or shapes of tensors differ from the model's.
    """
    own = model.state_dict()
    state = _renamed(checkpoint.state, model, own)
    wrong = [k for k in own if k in state and state[k].shape != own[k].shape]
    missing = [k for k in own if k not in state]
    extra = [k for k in state if k not in own]
    if not (wrong or missing or extra):
        model.load_state_dict(state)
        return
    lines = [f"{checkpoint.file} does not fit --model {name}."]
    if wrong:
        lines.append(f"{len(wrong)} of the model's {len(own)} tensors have another shape:")
        shapes = ((k, tuple(state[k].shape), tuple(own[k].shape)) for k in wrong[:SHOWN])
        lines += [f"  {k}: {theirs} in the file, {ours} in the model" for k, theirs, ours in shapes]
    if missing:
        lines.append(f"{len(missing)} tensors of the model are missing in the file: {_some(missing)}.")
    if extra:
        lines.append(f"{len(extra)} tensors of the file are unknown to the model: {_some(extra)}.")
    lines.append("--model must name the architecture of the checkpoint: `bench list models` lists them.")
    raise BenchError("\n".join(lines))


def _refuse_impostors(file: Path) -> None:
    if not file.is_file():
        raise BenchError(f"no file {file}. Give a file of weights: {', '.join(SUFFIXES)}")
    with file.open("rb") as stream:
        head = stream.read(512).removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"<"):
        raise BenchError(
            f"{file} is a web page, not weights: the download failed, and its error or log-in page was saved under "
            "this name. Open it in a browser to see what the server said, then download again."
        )
    if head.startswith(b"version https://git-lfs"):
        raise BenchError(
            f"{file} is a Git LFS pointer, not weights: they were not fetched. Run `git lfs pull` where it was cloned."
        )


def _read(file: Path) -> Any:
    if _is_torchscript(file):
        raise BenchError(
            f"{file} is a TorchScript archive, a program that only runs as a whole, and models under test may come "
            "from strangers. If you trust it (OpenAI's own files are such archives), take its tensors out:\n"
            f"{_conversion(_READ_TORCHSCRIPT, file)}"
        )
    try:
        return load_file(file) if _is_safetensors(file) else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything: IndexError, struct.error ...
        code = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if code is None:
            raise BenchError(
                f"{file} ({file.stat().st_size:,} bytes) cannot be read: cut off, damaged, or no checkpoint. "
                "Compare its size with the source's and download it again."
            ) from error
        raise BenchError(
            f"{file} holds more than tensors ({code[1]}): reading it means running code of the file, and models under "
            "test may come from strangers. If you trust it, take its tensors out:\n"
            f"{_conversion(_READ_PICKLE, file)}"
        ) from error


def _is_safetensors(file: Path) -> bool:
    # Recognised under any suffix by its start: eight bytes of length, then a JSON header.
    with file.open("rb") as stream:
        return file.suffix == ".safetensors" or stream.read(9)[8:] == b"{"


def _is_torchscript(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _conversion(read: str, file: Path) -> str:
    out = str(file.with_suffix(".safetensors"))
    return _CONVERT.format(read=read.format(file=str(file)), out=out) + f"\nand give {out} in its place"


def _state_dict(content: Any, file: Path) -> dict[str, Any]:
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping):
        raise BenchError(
            f"{file} is no state dict: a {type(state).__name__}. Write one with torch.save(model.state_dict(), FILE)."
        )
    return {str(k): v for k, v in state.items()}


def _strip_prefixes(state: dict[str, Any]) -> dict[str, Any]:
    for prefix in PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            return _strip_prefixes({key.removeprefix(prefix): v for key, v in state.items()})
    return state


def _renamed(state: dict[str, Tensor], model: torch.nn.Module, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert older names and shapes to today's open_clip, as `open_clip.load_checkpoint` does."""
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        # Imported late: it takes longer to import than torch.
        from open_clip.model import convert_to_custom_text_state_dict

        state = convert_to_custom_text_state_dict(state)
    # transformers kept this constant among the weights before 4.31.
    constant = "text.transformer.embeddings.position_ids"
    state = {k: v for k, v in state.items() if k != constant or k in own}
    for key in ("logit_scale", "logit_bias"):
        if key in state and key in own and state[key].numel() == own[key].numel():
            state[key] = state[key].reshape(own[key].shape)
    return state


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
