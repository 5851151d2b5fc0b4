"""Fine-tuning in several processes, one per GPU: each encodes its share of a batch and contrasts it with the rest.

Outside a process group, every function behaves as with one process.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather

from bench.core.errors import BenchError


def processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if processes() > 1 else 0


def share(index: Tensor) -> Tensor:
    """This process's part of a joined batch.

    Raises:
        BenchError: the batch cannot be shared equally.
    """
    if len(index) % processes():
        raise BenchError(f"batch_size = {len(index)} is no multiple of {processes()} GPUs. Choose one that is")
    return index.chunk(processes())[rank()]


def gathered(rows: Tensor) -> Tensor:
    """The rows (n, d) of all processes in the order of `share`, (processes * n, d); gradients flow to every process."""
    return torch.cat(all_gather(rows)) if processes() > 1 else rows


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace gradients by their mean over the processes."""
    if processes() == 1:
        return
    for parameter in parameters:
        # All processes must take part, even if this one has no gradient.
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= processes()


def average(value: Tensor) -> float:
    """The mean of a number over the processes."""
    total = value.detach().clone()
    if processes() > 1:
        dist.all_reduce(total)
    return total.item() / processes()
