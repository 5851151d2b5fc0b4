"""The work of a worker process: what it needs to start, and how it makes the nodes of a work unit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.core.distributed import processes
from bench.core.errors import BenchError
from bench.core.registry import in_plugin, load_plugins
from bench.experiment.resources import Resources, open_resources
from bench.experiment.settings import BASE, Variants
from bench.matrix.multi_gpu import make_on_gpus
from bench.matrix.plan import Node
from bench.matrix.stages import STAGES
from bench.matrix.stages.stage import Errors
from bench.results.store import CACHE, Store


@dataclass(frozen=True)
class Job:
    """What a worker needs before its first work unit."""

    variants: Variants
    out: Path
    device: str
    plugins: tuple[Path, ...]

    def open(self) -> "Workbench":
        """Prepare this process: load plug-ins, set threads, open the resources of each variant."""
        load_plugins(self.plugins)
        torch.set_num_threads(self.variants[BASE].execution.threads)
        return Workbench(open_resources(self.variants, self.out / CACHE, self.device), Store(self.out))


@dataclass(frozen=True)
class Workbench:
    """An opened job: resources by variant, and the store."""

    resources_of: Mapping[str, Resources]
    store: Store

    def attempt(self, nodes: Sequence[Node]) -> Errors:
        """Make the nodes of a work unit; if that raises an error, make them one by one, so that the others succeed."""
        try:
            return make(nodes, self.resources_of[nodes[0].variant], self.store)
        except BenchError as error:
            reason = str(error)
        except Exception as error:
            # The run goes on with other nodes; failures are shown and counted at its end.
            reason = f"{type(error).__name__}: {error}{in_plugin(error)}"
        if len(nodes) > 1:
            return {id: why for node in nodes for id, why in self.attempt((node,)).items()}
        return {nodes[0].id: reason}


def make(nodes: Sequence[Node], resources: Resources, store: Store) -> Errors:
    """Make one node, or several evaluations of one backdoor together; what they need is in the store.

    Returns:
        The reasons why some of them could not be made, by id. An error that concerns all of them is raised.
    """
    stage, run = STAGES[nodes[0].kind], resources.run
    if run.execution.gpus > 1 and processes() == 1 and all(stage.shares_batches(node, run) for node in nodes):
        for node in nodes:
            make_on_gpus(make, node, run, store.out, resources.device)
        return {}
    return stage.make(nodes, resources, store)
