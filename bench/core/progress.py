"""Progress of long loops, reported to a listener; `bench run` installs one and shows the progress.

A loop reports in one line, with or without a listener:

    for batch in track(batches, "fine-tuning", total=500):
        ...

Items, their order and random numbers are the same with and without a listener.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

T = TypeVar("T")
# Seconds between two reports of a loop.
EVERY = 0.5


class Step(NamedTuple):
    """`done` of `total` steps of the loop named `what`; `total` is 0 if unknown."""

    what: str
    done: int
    total: int


Listener = Callable[[Step], None]
# One per process: all loops of an artefact run in one thread.
_listener: Listener | None = None


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield the items, and report before each how many are done; `total` defaults to their length, if known."""
    count = len(items) if total is None and isinstance(items, Sized) else total or 0
    for done, item in enumerate(items):
        step(what, done, count)
        yield item


def step(what: str, done: int, total: int) -> None:
    """Report to the listener, if there is one; for loops that are not over items."""
    if _listener is not None:
        _listener(Step(what, done, total))


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Pass steps of this process's loops to `listener`: the first of each loop, then one every `EVERY` seconds."""
    global _listener
    last_report, loop = -EVERY, ""

    def throttled(step: Step) -> None:
        nonlocal last_report, loop
        now = time.monotonic()
        if step.what != loop or now - last_report >= EVERY:
            last_report, loop = now, step.what
            listener(step)

    before, _listener = _listener, throttled
    try:
        yield
    finally:
        _listener = before
