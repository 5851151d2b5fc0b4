"""Random numbers that depend on the run's seed and their purpose, never on the order in which they are drawn.

So a cell gives the same numbers whatever ran before it, in any process, and under any PYTHONHASHSEED.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose.

    >>> derive(0, "poison", "badnet") == derive(0, "poison", "badnet") != derive(1, "poison", "badnet")
    True
    """
    text = "\x1f".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose of one run."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch's global generators of the CPU and of `device`, if that is a GPU, and restore them afterwards.

    For functions that take no generator. Not `torch.manual_seed`: it would seed the other GPUs too, for good.
    """
    gpus = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(gpus):
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield
