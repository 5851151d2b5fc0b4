"""The contents of an artefact's card: cost, machine, state of the code, skipped files."""

import hashlib
import platform
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import bench
from bench.core import code_state
from bench.core.distributed import processes
from bench.matrix.plan import Node
from bench.results.records import Reason, Skipped

# A card lists at most so many reasons for skipping, and so many names for each: thousands of pairs may be unreadable.
REASONS, NAMES = 20, 10


class Meter:
    """Measures time and peak memory on a device, from its creation until `stop`."""

    def __init__(self, device: str) -> None:
        self._gpu = torch.device(device) if device.startswith("cuda") else None
        self._start = time.perf_counter()
        self._stopped: dict[str, Any] | None = None
        if self._gpu:
            # A new process must initialise CUDA before it can reset statistics.
            torch.cuda.init()
            torch.cuda.reset_peak_memory_stats(self._gpu)

    def stop(self, shared_by: int = 1) -> None:
        """Stop measuring; the time is divided by `shared_by`, the number of artefacts made together."""
        self._stopped = self._so_far(shared_by)

    def so_far(self) -> dict[str, Any]:
        """`seconds`, `peak_memory_mb` (1 MB is 2^20 bytes), and `peak_memory_of`, which says what was measured.

        "cuda": the peak of torch's tensors on the GPU since the start. "process": the peak of the whole process since
        it began, earlier work included; None on Windows, where Python cannot measure it.
        """
        return self._stopped or self._so_far()

    def _so_far(self, shared_by: int = 1) -> dict[str, Any]:
        if self._gpu:
            torch.cuda.synchronize(self._gpu)
        seconds = round((time.perf_counter() - self._start) / shared_by, 2)
        peak = torch.cuda.max_memory_allocated(self._gpu) if self._gpu else _peak_of_process()
        return {
            "seconds": seconds,
            "peak_memory_mb": peak and round(peak / 2**20),
            "peak_memory_of": "cuda" if self._gpu else "process",
        }


def _peak_of_process() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    # In KB on Linux, in bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def describe(node: Node, device: str, cost: Meter) -> dict[str, Any]:
    """The fields that cards of all kinds have."""
    return {
        "id": node.id,
        "label": node.label,
        "determined_by": node.inputs,
        **cost.so_far(),
        "device": device,
        "hardware": _hardware(device),
        "processes": processes(),
        "bench": bench.__version__,
        "commit": code_state.commit(),
        "sources": code_state.sources(),
        "torch": torch.__version__,
    }


def counted(skipped: Sequence[str]) -> Skipped:
    """Count skipped files, given as "NAME: REASON": in all, and by reason with the first names.

    >>> counted(["a.jpg: missing file", "line 7: empty caption", "b.jpg: missing file"]).count
    3
    """
    names: dict[str, list[str]] = {}
    for line in skipped:
        name, _, reason = line.partition(": ")
        if reason not in names and len(names) >= REASONS:
            reason = "other reasons"
        names.setdefault(reason, []).append(name)
    reasons = {reason: Reason(count=len(group), first=tuple(group[:NAMES])) for reason, group in names.items()}
    return Skipped(count=len(skipped), reasons=reasons)


def tensor_hash(tensors: dict[str, Tensor]) -> str:
    """A short hash of names and contents of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _hardware(device: str) -> str:
    """The name of the GPU, or of the processor as the system calls it."""
    gpu = device.startswith("cuda")
    return torch.cuda.get_device_name(device) if gpu else platform.processor() or platform.machine()
