"""The contract of a task: what is measured of a model, and on what."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, TypeVar

from bench.core.attack import Attack, Trigger
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
    """What a task looks at: the evaluated images, and the attack under which it looks at them.

    `trigger` is the trained one as it is at test; `target` the index of its class; `fresh_triggers` those of the
    attacks that `Task.fresh_triggers` names. `open_captions` gives a caption of each image, where the data set has any;
    `open_base` the clean model from which the attacker started.
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
    """Something to measure of every model of a matrix. Fields are settings; `observe` does the work.

    Its metrics are functions under `@metric(..., task=NAME)`.
    """

    # Raise it when a change of the code changes what is observed: stored results of the old one are not reused.
    version: ClassVar[int] = 1
    # Whether `--tasks all` takes it.
    in_all: ClassVar[bool] = True
    # Whether the clean model under the attack's trigger is a row of its tables.
    clean_model_row: ClassVar[bool] = True
    # The metrics of its main table: the first, and in parentheses the second. The gate judges them.
    headline: ClassVar[tuple[str, ...]]
    # Numbers that the gate shows and does not judge: METRIC (PERTURBATION).
    informing: ClassVar[tuple[str, ...]] = ()
    # More tables of the report: a caption, and the (metric, perturbation) of the number and of that in parentheses.
    views: ClassVar[Mapping[str, tuple[tuple[str, str], ...]]] = {}
    # Tables of the observations that a report writes for all cells together, as NAME.parquet; numbers are verified
    # against them.
    published: ClassVar[tuple[str, ...]] = ()
    # Columns of the first published table that name what was looked at: equal in two models that are compared.
    items: ClassVar[tuple[str, ...]] = ("index", "id", "label")

    def observe(self, victims: Sequence[Victim], case: Case) -> list[Observations | BenchError]:
        """What each of some victims makes of the case, as if it were alone; an error for one that has diverged.

        Victims have passed `bench.core.shared_encoding.unified`: equal CLIPs and prompts are one object.
        """
        raise NotImplementedError(f"{type(self).__name__} must define observe(victims, case)")

    def fresh_triggers(self) -> tuple[str, ...]:
        """The attacks of which the task wants triggers that no model was trained on."""
        return ()

    def unsuited(self, attack: Attack, chain: Sequence[str]) -> str:
        """Why models of this attack and chain of defenses cannot be measured; empty where they can."""
        return ""

    def work(self, scale: Scale) -> Work:
        """What the observation of one model costs, for the estimate of a dry run; nothing where it is not known."""
        return Work()


tasks: Registry[type[Task]] = Registry("task", Task)
TaskClass = TypeVar("TaskClass", bound=type[Task])


def task(name: str) -> Callable[[TaskClass], TaskClass]:
    """Register a subclass of `Task` as a task."""
    return tasks.register(name)
