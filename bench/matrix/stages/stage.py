"""The contract of a stage."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from bench.core.cost import Scale, Work
from bench.experiment.resources import Resources
from bench.experiment.settings import RunSettings
from bench.matrix.plan import Node
from bench.results.store import Store

# Why nodes of a task failed, by id.
Errors = Mapping[str, str]


class Stage(ABC):
    """Makes the nodes of one kind out of the store and a run's resources, into the store."""

    @abstractmethod
    def make(self, nodes: Sequence[Node], resources: Resources, store: Store) -> Errors:
        """Make some nodes; returns why some of them could not be made. What stops all of them is raised."""

    @abstractmethod
    def work(self, node: Node, run: RunSettings, scale: Scale) -> Work:
        """What it costs to make a node."""

    def shares_batches(self, node: Node, run: RunSettings) -> bool:
        """Whether several processes can make a node together, each with a share of every batch."""
        return False
