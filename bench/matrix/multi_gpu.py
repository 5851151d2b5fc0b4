"""Making a node on several GPUs: one process per GPU, each with its share of every batch."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes_of
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from bench.core.errors import BenchError
from bench.core.registry import PLUGIN_MODULE, load_plugins
from bench.experiment.resources import Resources
from bench.experiment.settings import RunSettings
from bench.matrix.child_process import end_with_parent
from bench.matrix.plan import Node
from bench.results.store import CACHE, Store

Make = Callable[[tuple[Node], Resources, Store], object]


def make_on_gpus(make: Make, node: Node, run: RunSettings, out: Path, device: str) -> None:
    """Call `make` on a node in `run.execution.gpus` processes, process i on GPU i, or all on the CPU.

    Raises:
        BenchError: there are fewer GPUs, or one of the processes raised it.
    """
    count = torch.cuda.device_count()
    if device.startswith("cuda") and run.execution.gpus > count:
        raise BenchError(f"execution.gpus = {run.execution.gpus}, and this machine has {count}. Lower it")
    plugins = tuple(Path(str(m.__file__)) for name, m in list(sys.modules.items()) if name.startswith(PLUGIN_MODULE))
    errors = processes_of.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as meeting:
        arguments = (f"file://{meeting}/here", make, node, run, out, device, plugins, errors)
        started = processes_of.spawn(_work, arguments, run.execution.gpus, join=False, daemon=True)
        try:
            while not started.join():
                pass
        except (ProcessRaisedException, ProcessExitedException):
            if errors.empty():
                raise
            raise BenchError(errors.get()) from None
        finally:
            # When the run is interrupted, too: this process cannot end before they do.
            for process in started.processes:
                process.kill()


def _work(
    rank: int,
    meeting: str,
    make: Make,
    node: Node,
    run: RunSettings,
    out: Path,
    device: str,
    plugins: tuple[Path, ...],
    errors: Any,
) -> None:
    end_with_parent()
    load_plugins(plugins)
    torch.set_num_threads(run.execution.threads)
    gpu = device.startswith("cuda")
    if gpu:
        torch.cuda.set_device(rank)
    dist.init_process_group("nccl" if gpu else "gloo", init_method=meeting, rank=rank, world_size=run.execution.gpus)
    try:
        make((node,), Resources(run, out / CACHE, f"cuda:{rank}" if gpu else device), Store(out))
    except BenchError as error:
        errors.put(str(error))
        raise
    finally:
        dist.destroy_process_group()
