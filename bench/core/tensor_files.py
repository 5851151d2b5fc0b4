"""One tensor in a file of somebody else's: read without running anything that is in it."""

import pickle
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bench.core.errors import BenchError

TENSOR_SUFFIXES = (".safetensors", ".npy", ".pt", ".pth")


def read_tensor(file: Path, setting: str) -> Tensor:
    """The tensor in a file of one of `TENSOR_SUFFIXES`; of a safetensors file, the only one.

    Raises:
        BenchError: there is no such file, it is of another kind, damaged, or holds other things than one tensor.
    """
    if not file.is_file():
        raise BenchError(f"{setting} = {file}: no such file. Give one of the kinds {', '.join(TENSOR_SUFFIXES)}")
    if file.suffix not in TENSOR_SUFFIXES:
        raise BenchError(f"{setting} = {file}: give a file of the kinds {', '.join(TENSOR_SUFFIXES)}")
    try:
        content = _read(file)
    except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        first = str(error).strip().splitlines()[:1]
        raise BenchError(
            f"{setting} = {file} cannot be read as plain tensors; code in a file is never run. ({' '.join(first)})"
        ) from None
    if not isinstance(content, Tensor):
        raise BenchError(f"{setting} = {file} holds {_kind(content)}, and one tensor is needed")
    if not content.isfinite().all():
        raise BenchError(f"{setting} = {file} holds numbers that are not finite. Get the file anew")
    return content


def _read(file: Path) -> object:
    if file.suffix == ".npy":
        return torch.from_numpy(np.load(file, allow_pickle=False))
    if file.suffix == ".safetensors":
        tensors = load_file(file)
        return next(iter(tensors.values())) if len(tensors) == 1 else tensors
    return torch.load(file, map_location="cpu", weights_only=True)


def _kind(content: object) -> str:
    return f"{len(content)} entries" if isinstance(content, dict | list | tuple) else f"a {type(content).__name__}"
