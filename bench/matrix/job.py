"""What a worker is given, here, in another process or on another machine, and how it makes a task's nodes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.core.errors import BenchError
from bench.core.registry import in_plugin, load_plugins
from bench.experiment.resources import Resources, open_resources
from bench.experiment.settings import BASE, Variants
from bench.matrix.plan import Node
from bench.matrix.stages import make
from bench.results.store import Store

# Why nodes of a task failed, by id.
Errors = Mapping[str, str]


@dataclass(frozen=True)
class Job:
    """What a worker must know before its first task."""

    variants: Variants
    out: Path
    device: str
    plugins: tuple[Path, ...]

    def open(self) -> dict[str, Resources]:
        """Make this process ready: methods, threads, a resources per variant."""
        load_plugins(self.plugins)
        torch.set_num_threads(self.variants[BASE].threads)
        return open_resources(self.variants, Store(self.out), self.device)


def attempt(nodes: Sequence[Node], resources_of: Mapping[str, Resources]) -> Errors:
    """Make the nodes of a task; where that stops altogether, one by one, so that only the guilty fail."""
    try:
        return make(nodes, resources_of[nodes[0].variant])
    except BenchError as error:
        reason = str(error)
    except Exception as error:
        # One node's failure must not lose the others'; it is shown and counted at the end.
        reason = f"{type(error).__name__}: {error}{in_plugin(error)}"
    if len(nodes) > 1:
        return {id: why for node in nodes for id, why in attempt((node,), resources_of).items()}
    return {nodes[0].id: reason}
