"""Cards: what determined an artefact, what it cost, and what was met on the way."""

import hashlib
import platform
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import bench
from bench.core.distributed import processes
from bench.matrix.cost import Meter
from bench.matrix.plan import Node

# Of half a million pairs, a good part may be dead: so many reasons are told, and names for each.
REASONS, NAMES = 20, 10


def card_of(node: Node, device: str, cost: Meter) -> dict[str, Any]:
    """What the card of every kind of artefact says."""
    return {
        "id": node.id,
        "label": node.label,
        "determined_by": node.inputs,
        **cost.so_far(),
        "device": device,
        "hardware": _hardware(device),
        "processes": processes(),
        "bench": bench.__version__,
        "torch": torch.__version__,
    }


def counted(skipped: Sequence[str]) -> dict[str, Any]:
    """How many were skipped; and for each of the first reasons, how many and the first names.

    >>> counted(["a.jpg: missing file", "line 7: empty caption", "b.jpg: missing file"])["count"]
    3
    """
    reasons: dict[str, dict[str, Any]] = {}
    for told in skipped:
        name, _, reason = told.partition(": ")
        if reason not in reasons and len(reasons) >= REASONS:
            reason = "other reasons"
        of_reason = reasons.setdefault(reason, {"count": 0, "first": []})
        of_reason["count"] += 1
        of_reason["first"] += [name] * (of_reason["count"] <= NAMES)
    return {"count": len(skipped), "reasons": reasons}


def tensor_hash(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _hardware(device: str) -> str:
    """The name of the GPU, or of the processor as far as the system tells it."""
    gpu = device.startswith("cuda")
    return torch.cuda.get_device_name(device) if gpu else platform.processor() or platform.machine()
