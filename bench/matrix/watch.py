"""What a run shows of units at work: a bar each on a terminal, else a line now and then."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from bench.core.progress import Step
from bench.matrix.schedule import WorkUnit

# Seconds between two lines of a unit.
LINE_EVERY = 30.0


class Watch:
    """What is told of units at work, which this one does not show."""

    def told(self, unit: WorkUnit, step: Step) -> None:
        """How far a loop of a unit has come."""

    def ended(self, unit: WorkUnit) -> None:
        """A unit is no longer at work, whether it was made or not."""


class Bars(Watch):
    """A bar of each unit below what is printed meanwhile."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[WorkUnit, tuple[str, TaskID]] = {}

    def told(self, unit: WorkUnit, step: Step) -> None:
        what, bar = self._bars.get(unit, ("", None))
        # Now, so that a run that ends before its first unit has written nothing else.
        self._progress.start()
        if bar is None or what != step.what:
            self.ended(unit)
            # Another loop has a bar of its own, so that its time left is not judged by the one before it.
            bar = self._progress.add_task(f"{name_of(unit)}: {step.what}", total=step.total or None)
            self._bars[unit] = step.what, bar
        self._progress.update(bar, completed=step.done)

    def ended(self, unit: WorkUnit) -> None:
        if unit in self._bars:
            self._progress.remove_task(self._bars.pop(unit)[1])
            # What is printed next would repeat the bar as it was last drawn.
            self._progress.refresh()


class Lines(Watch):
    """A line of each unit every half a minute."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        # Of each unit: its loop's first step and when it was told, and when a line was last due.
        self._first: dict[WorkUnit, tuple[Step, float]] = {}
        self._last: dict[WorkUnit, float] = {}

    def told(self, unit: WorkUnit, step: Step) -> None:
        now = self._clock()
        first, since = self._first.setdefault(unit, (step, now))
        if first.what != step.what or step.done < first.done:
            first, since = self._first[unit] = step, now
        if now - self._last.setdefault(unit, now) >= LINE_EVERY:
            self._last[unit] = now
            self._say(f"{name_of(unit)}: {step.what}, {_so_far(step)}{_left(first, step, now - since)}")

    def ended(self, unit: WorkUnit) -> None:
        self._first.pop(unit, None)
        self._last.pop(unit, None)


@contextmanager
def watching(console: Console) -> Iterator[Watch]:
    """Show on a console how far units are."""
    if not console.is_terminal:
        yield Lines(lambda line: console.print(line, soft_wrap=True))
        return
    columns = (
        # Names of methods may hold brackets, which are no markup.
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=console, transient=True, refresh_per_second=2)
    try:
        yield Bars(progress)
    finally:
        progress.stop()


def name_of(unit: WorkUnit) -> str:
    """The label of a unit's node; of several evaluations, the first one's and how many more there are."""
    first, *others = unit.nodes
    return f"{first.label} and {len(others)} more" if others else first.label


def _so_far(step: Step) -> str:
    return f"step {step.done} of {step.total}" if step.total else f"step {step.done}"


def _left(first: Step, now: Step, seconds: float) -> str:
    """The time left, at the pace of the loop so far; nothing where that is not known."""
    done = now.done - first.done
    return f", {duration(seconds * (now.total - now.done) / done)} left" if done and now.total else ""


def duration(seconds: float) -> str:
    """A time as one says it.

    >>> duration(40), duration(750), duration(9000)
    ('40 s', '12 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
