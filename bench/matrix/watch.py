"""The progress display: a bar for each piece of work on a terminal, else a line from time to time."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from bench.core.progress import Step, listening

# Seconds between two lines about a piece of work.
LINE_EVERY = 30.0


class Watch:
    """Receives the progress of pieces of work, each with a name of its own; this one shows nothing."""

    def report(self, name: str, step: Step) -> None:
        """A loop of a piece of work has reached a step."""

    def ended(self, name: str) -> None:
        """A piece of work has ended, with or without success."""


class Bars(Watch):
    """A bar for each piece of work, below the printed lines."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, tuple[str, TaskID]] = {}

    def report(self, name: str, step: Step) -> None:
        what, bar = self._bars.get(name, ("", None))
        # Started here, so that a run without work prints no control codes.
        self._progress.start()
        if bar is None or what != step.what:
            self.ended(name)
            # A new bar for each loop, so that the remaining time is estimated from this loop only.
            bar = self._progress.add_task(f"{name}: {step.what}", total=step.total or None)
            self._bars[name] = step.what, bar
        self._progress.update(bar, completed=step.done)

    def ended(self, name: str) -> None:
        if name in self._bars:
            self._progress.remove_task(self._bars.pop(name)[1])
            # Otherwise the next printed line would show the removed bar again.
            self._progress.refresh()


class Lines(Watch):
    """A line about each piece of work every half a minute."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        # By name: the first step of its loop with its time, and the time of its last line.
        self._first: dict[str, tuple[Step, float]] = {}
        self._last: dict[str, float] = {}

    def report(self, name: str, step: Step) -> None:
        now = self._clock()
        first, since = self._first.setdefault(name, (step, now))
        if first.what != step.what or step.done < first.done:
            first, since = self._first[name] = step, now
        if now - self._last.setdefault(name, now) >= LINE_EVERY:
            self._last[name] = now
            self._say(f"{name}: {step.what}, {_so_far(step)}{_left(first, step, now - since)}")

    def ended(self, name: str) -> None:
        self._first.pop(name, None)
        self._last.pop(name, None)


@contextmanager
def watching(console: Console) -> Iterator[Watch]:
    """Show the progress of several pieces of work on a console."""
    if not console.is_terminal:
        yield Lines(lambda line: console.print(line, soft_wrap=True))
        return
    columns = (
        # Names may contain brackets, which rich would take as markup.
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


@contextmanager
def following(console: Console, name: str) -> Iterator[None]:
    """Show the progress of the loops within, as one piece of work on a console."""
    with watching(console) as watch:
        try:
            with listening(lambda step: watch.report(name, step)):
                yield
        finally:
            watch.ended(name)


def _so_far(step: Step) -> str:
    return f"step {step.done} of {step.total}" if step.total else f"step {step.done}"


def _left(first: Step, now: Step, seconds: float) -> str:
    """The remaining time at the loop's pace so far; "" if unknown."""
    done = now.done - first.done
    return f", {duration(seconds * (now.total - now.done) / done)} left" if done and now.total else ""


def duration(seconds: float) -> str:
    """A time in the unit that suits it.

    >>> duration(40), duration(750), duration(9000)
    ('40 s', '12 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
