"""Fine-tuning in several processes, one per GPU: each encodes its share of a batch and contrasts it with the rest.

Outside a process group, every function behaves as with one process.
"""

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather

from bench.core.errors import BenchError

# Bytes of gradients that are reduced at once: as DistributedDataParallel's.
BUCKET = 25 * 2**20


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
    """Replace gradients by their mean over the processes; those of many parameters travel together, in buckets."""
    if processes() == 1:
        return
    for bucket in buckets(parameters, BUCKET):
        # All processes must take part, even if this one has no gradient.
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in bucket]
        joined = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(joined)
        joined /= processes()
        parts = joined.split([gradient.numel() for gradient in gradients])
        for parameter, part in zip(bucket, parts, strict=True):
            parameter.grad = part.view_as(parameter)


def buckets(parameters: Iterable[torch.nn.Parameter], size: int) -> Iterator[list[torch.nn.Parameter]]:
    """Neighbours of one type and device together, as many as have at most `size` bytes; one that has more, alone.

    >>> a, b, c = (torch.nn.Parameter(torch.zeros(n)) for n in (2, 3, 9))
    >>> [len(bucket) for bucket in buckets([a, b, c, a], size=20)]
    [2, 1, 1]
    """
    bucket: list[torch.nn.Parameter] = []
    held = 0
    for parameter in parameters:
        alike = not bucket or (parameter.dtype, parameter.device) == (bucket[0].dtype, bucket[0].device)
        if bucket and (held + parameter.nbytes > size or not alike):
            yield bucket
            bucket, held = [], 0
        bucket.append(parameter)
        held += parameter.nbytes
    if bucket:
        yield bucket


def average(value: Tensor) -> float:
    """The mean of a number over the processes."""
    total = value.detach().clone()
    if processes() > 1:
        dist.all_reduce(total)
    return total.item() / processes()
