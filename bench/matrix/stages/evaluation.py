"""The last stage: evaluate models by a task."""

from collections.abc import Sequence

from bench.core.cost import Scale, Work
from bench.core.errors import BenchError
from bench.core.shared_encoding import unified
from bench.core.task import Case
from bench.core.victim import Victim
from bench.experiment.resources import Resources
from bench.experiment.settings import RunSettings
from bench.matrix.cards import Meter, counted, describe
from bench.matrix.leakage_check import check_leakage
from bench.matrix.plan import Node
from bench.matrix.stages.stage import Errors, Stage
from bench.matrix.stages.trigger import fresh_trigger
from bench.results.records import EvaluationCard
from bench.results.store import Store


class EvaluationStage(Stage):
    def make(self, nodes: Sequence[Node], resources: Resources, store: Store) -> Errors:
        """Evaluate models together; the nodes differ only in the victim.

        Returns:
            The reasons, by id, of nodes whose victim gives logits that are not finite.

        Raises:
            BenchError: a victim was trained on evaluated images.
        """
        cost, first = Meter(resources.device), nodes[0]
        unchecked = {node.id: check_leakage(node, resources, store) for node in nodes}
        base = store.clip(first.needs[0], resources.device, resources.run.execution.rounding)
        victims = unified(
            Victim(resources.clip) if node.clean else store.victim(base, *node.victim_needs[1:]) for node in nodes
        )
        task = resources.run.task(first.task)
        observations = task.observe(victims, open_case(first, resources, store))
        cost.stop(shared_by=len(nodes))
        failed = {}
        for node, observed in zip(nodes, observations, strict=True):
            if isinstance(observed, BenchError):
                failed[node.id] = str(observed)
                continue
            card = EvaluationCard(
                **describe(node, resources.device, cost),
                seconds_shared_by=len(nodes),
                task=node.task,
                tables=tuple(observed.tables),
                facts=dict(observed.facts),
                images=len(resources.test),
                skipped=counted(resources.test.skipped),
                unchecked=tuple(unchecked[node.id]),
            )
            with store.writing(node.kind, card) as folder:
                for name, table in observed.tables.items():
                    table.to_parquet(folder / f"{name}.parquet", index=False)
        return failed

    def work(self, node: Node, run: RunSettings, scale: Scale) -> Work:
        return run.task(node.task).work(scale)


def open_case(node: Node, resources: Resources, store: Store) -> Case:
    """The case of an evaluation, with its triggers read from the store."""
    fresh = node.needs[len(node.victim_needs) :]
    triggers = {
        name: (resources.attack(name), fresh_trigger(id, name, node.seed, store))
        for name, id in zip(node.inputs["fresh_triggers"], fresh, strict=True)
    }
    trigger = store.trained_trigger(node.needs[0]).at_test()
    return resources.case(resources.attack(node.attack), trigger, node.seed, triggers)
