"""How far a long loop has come, told to whoever listens: `bench run` does, and shows it.

A loop says it in one line, and need not know whether anybody listens:

    for batch in track(batches, "fine-tuning", total=500):
        ...

Nothing is drawn, reordered or kept: numbers are the same with a listener and without.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

T = TypeVar("T")
# A listener hears of a loop once in so many seconds, however short its steps are.
EVERY = 0.5


class Step(NamedTuple):
    """`done` of `total` steps of what is being done."""

    what: str
    done: int
    total: int


Listener = Callable[[Step], None]
# One a process: a node is made in one thread.
_listener: Listener | None = None


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """The same items; before each, the listener is told how many are done. `total` is the length if there is one."""
    count = len(items) if total is None and isinstance(items, Sized) else total or 0
    for done, item in enumerate(items):
        step(what, done, count)
        yield item


def step(what: str, done: int, total: int) -> None:
    """Tell the listener, if there is one: for loops that are not over items."""
    if _listener is not None:
        _listener(Step(what, done, total))


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Listen to this process's loops, at most every half a second; the first step of another loop is always heard."""
    global _listener
    heard, loop = -EVERY, ""

    def hear(step: Step) -> None:
        nonlocal heard, loop
        now = time.monotonic()
        if step.what != loop or now - heard >= EVERY:
            heard, loop = now, step.what
            listener(step)

    before, _listener = _listener, hear
    try:
        yield
    finally:
        _listener = before
