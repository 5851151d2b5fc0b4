"""What work costs: seconds, and the memory at its peak."""

import sys
import time
from typing import Any

import torch


class Meter:
    """Measures what is done from now on, on a device."""

    def __init__(self, device: str) -> None:
        self._gpu = torch.device(device) if device.startswith("cuda") else None
        self._start = time.perf_counter()
        if self._gpu:
            # In a new process, torch knows no device yet that it could reset.
            torch.cuda.init()
            torch.cuda.reset_peak_memory_stats(self._gpu)

    def so_far(self) -> dict[str, Any]:
        """`seconds`; `peak_memory_mb` (1 MB is 2^20 bytes), and of what: `peak_memory_of`.

        On a GPU it is the peak of the tensors that torch held there since the start. Else it is the peak of the whole
        process since it began, so that earlier work counts too; null on Windows, whose Python does not tell.
        """
        if self._gpu:
            torch.cuda.synchronize(self._gpu)
        seconds = round(time.perf_counter() - self._start, 2)
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

    # Linux counts in KB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
