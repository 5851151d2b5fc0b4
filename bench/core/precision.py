"""Autocast to half precision, and matrix products that stay in full precision."""

import torch
from torch import Tensor


def autocast(device: torch.device, precision: str) -> torch.autocast:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


def product(first: Tensor, second: Tensor) -> Tensor:
    """A B^T of embeddings (n, d) and (m, d), in fp32 or better, also under autocast.

    Times a logit scale of 100, cosines in bf16 come in steps of 0.5.
    """
    with torch.autocast(first.device.type, enabled=False):
        return _full(first) @ _full(second).T


def _full(values: Tensor) -> Tensor:
    return values.float() if values.dtype.itemsize < 4 else values
