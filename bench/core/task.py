"""The contract of a task: what is measured of a model, and on what."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, TypeVar

from torch import Tensor

from bench.core.attack import Attack, Trigger, stamp_images
from bench.core.clip import Clip
from bench.core.cost import Scale, Work
from bench.core.dataset import Dataset
from bench.core.errors import BenchError
from bench.core.images import Labelled
from bench.core.metric import Observations
from bench.core.registry import Registry
from bench.core.settings import Settings
from bench.core.victim import Victim


@dataclass(frozen=True)
class Case:
    """What a task evaluates on: the images, the attack and its trigger.

    `trigger` is the trained trigger in its test form (`Trigger.at_test`), `target` the index of the target class.
    `fresh_triggers` are those of the attacks that `Task.fresh_triggers` names. `open_captions` returns a caption of
    each image; None if the data set has no captions. `open_base` opens the clean model before the attack.
    """

    dataset: Dataset
    images: Labelled
    attack: Attack
    trigger: Trigger
    target: int
    seed: int
    batch_size: int
    fresh_triggers: Mapping[str, tuple[Attack, Trigger]] = field(default_factory=dict)
    open_captions: Callable[[], Sequence[str]] | None = None
    open_base: Callable[[], Clip] | None = None

    def triggered(self, index: Tensor) -> Tensor:
        """Some of the images under the trigger: uint8 (n, 3, size, size)."""
        return stamp_images(self.attack, self.trigger, self.images, index)

    @cached_property
    def captions(self) -> Sequence[str]:
        """A caption of each image.

        Raises:
            BenchError: the data set has none.
        """
        if self.open_captions is None:
            raise BenchError("the evaluated images have no captions. Take a data set that has them, such as world")
        return self.open_captions()

    @cached_property
    def base(self) -> Clip:
        """The clean model from which the attacker started.

        Raises:
            BenchError: it is not known.
        """
        if self.open_base is None:
            raise BenchError("this task compares with the clean model, and none is declared. Give --model NAME")
        return self.open_base()


class Task(Settings):
    """What is measured of every model of a matrix. Fields are settings; `observe` does the work.

    Metrics of the task are functions decorated with `@metric(..., task=NAME)`.
    """

    # Raise it when the observations change, so that stored results of the old version are not reused.
    version: ClassVar[int] = 1
    # Whether `--tasks all` includes it.
    in_all: ClassVar[bool] = True
    # Whether its tables have a row of the clean model under the attack's trigger.
    clean_model_row: ClassVar[bool] = True
    # The metrics of its main table: the first, and the second in parentheses. The regression gate checks them.
    headline: ClassVar[tuple[str, ...]]
    # Numbers that the regression gate shows but does not check: METRIC (PERTURBATION).
    informational: ClassVar[tuple[str, ...]] = ()
    # Further tables of the report, by caption: (metric, perturbation) of the number and of the one in parentheses.
    views: ClassVar[Mapping[str, tuple[tuple[str, str], ...]]] = {}
    # Tables of the observations that a report writes for all cells as NAME.parquet; `bench verify` recomputes the
    # metrics from them.
    published: ClassVar[tuple[str, ...]] = ()
    # Columns of the first published table that identify its items, such as images; two models are compared by item.
    items: ClassVar[tuple[str, ...]] = ("index", "id", "label")

    def observe(self, victims: Sequence[Victim], case: Case) -> list[Observations | BenchError]:
        """Evaluate several models at once; results equal those of evaluating each alone, bit for bit.

        Equal CLIPs and prompts are one object (`bench.core.shared_encoding.unified`).

        Returns:
            For each victim its observations, or a BenchError if its logits are not finite.
        """
        raise NotImplementedError(f"{type(self).__name__} must define observe(victims, case)")

    def fresh_triggers(self) -> tuple[str, ...]:
        """The attacks for which the task needs triggers that no model was trained on."""
        return ()

    def unsuited(self, attack: Attack, chain: Sequence[str]) -> str:
        """Why models of this attack and chain of defenses cannot be measured; "" if they can."""
        return ""

    def work(self, scale: Scale) -> Work:
        """The cost of observing one model, for the estimate of a dry run; zero if unknown."""
        return Work()


tasks: Registry[type[Task]] = Registry("task", Task)
TaskClass = TypeVar("TaskClass", bound=type[Task])


def task(name: str) -> Callable[[TaskClass], TaskClass]:
    """Register a subclass of `Task` as a task."""
    return tasks.register(name)
