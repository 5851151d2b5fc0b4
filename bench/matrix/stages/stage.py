"""The contract of a stage."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from bench.core.cost import Scale, Work
from bench.experiment.resources import Resources
from bench.experiment.settings import RunSettings
from bench.matrix.plan import Node
from bench.results.store import Store

# The reasons why nodes of a work unit failed, by id.
Errors = Mapping[str, str]


class Stage(ABC):
    """Makes nodes of one kind from a run's resources and earlier artefacts, and stores them."""

    def make(self, nodes: Sequence[Node], resources: Resources, store: Store) -> Errors:
        """Make some nodes; returns the reasons of those that failed. An error that concerns all of them is raised."""
        for node in nodes:
            self.make_one(node, resources, store)
        return {}

    def make_one(self, node: Node, resources: Resources, store: Store) -> None:
        """Make one node; a stage that makes nodes together defines `make` instead."""
        raise NotImplementedError(f"{type(self).__name__} must define make_one(node, resources, store) or make")

    @abstractmethod
    def work(self, node: Node, run: RunSettings, scale: Scale) -> Work:
        """The cost of making a node, for the estimate of a dry run."""

    def shares_batches(self, node: Node, run: RunSettings) -> bool:
        """Whether several processes can make a node together, each computing a share of every batch."""
        return False
