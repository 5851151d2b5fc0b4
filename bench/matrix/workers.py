"""Workers that make nodes: this process, several local processes, or a Ray cluster.

This process and local processes report their progress to a `Watch`; a Ray cluster does not.
"""

import multiprocessing
import queue
import signal
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.core.progress import Step, listening
from bench.experiment.settings import BASE, Variants
from bench.matrix.child_process import end_with_parent
from bench.matrix.job import Job, Workbench
from bench.matrix.plan import Node
from bench.matrix.ray_workers import RayWorkers
from bench.matrix.schedule import Outcome, Schedule, WorkUnit
from bench.matrix.stages.stage import Errors
from bench.matrix.watch import Watch

# Seconds between two polls of the progress of local processes.
POLL_EVERY = 0.5


class Workers(Protocol):
    """Makes work units, as many at a time as it has room for."""

    def room(self) -> bool: ...

    def start(self, unit: WorkUnit) -> None: ...

    def wait(self) -> list[tuple[WorkUnit, Errors | None]]:
        """Wait until units end; returns them with their errors, or None if the worker died."""
        ...

    def close(self) -> None:
        """Terminate all workers, also busy ones."""
        ...


def execute(
    nodes: list[Node],
    variants: Variants,
    out: Path,
    device: str,
    workers: int,
    plugins: tuple[Path, ...],
    watch: Watch | None = None,
) -> Iterator[Outcome]:
    """Make nodes, each once those it needs are made; yields their outcomes.

    A node that needs a failed one is not tried. Numbers depend neither on the executor nor on the number of workers;
    each process uses `threads` threads, a setting of the base variant.
    """
    job, watch = Job(variants, out, device, plugins), watch or Watch()
    schedule = Schedule(nodes)
    with closing(_workers(job, workers, watch)) as pool:
        while True:
            yield from schedule.blocked()
            while pool.room() and (unit := schedule.next()):
                pool.start(unit)
            if not schedule.running:
                return
            for unit, errors in pool.wait():
                watch.ended(unit.label)
                yield from schedule.died(unit) if errors is None else schedule.ended(unit, errors)


def _workers(job: Job, workers: int, watch: Watch) -> Workers:
    if job.variants[BASE].execution.executor == "ray":
        return RayWorkers(job)
    return InProcess(job, watch) if workers == 1 else LocalProcesses(job, workers, watch)


class InProcess:
    """Makes units in this process, one at a time."""

    def __init__(self, job: Job, watch: Watch) -> None:
        self._workbench = job.open()
        self._watch = watch
        self._ended: list[tuple[WorkUnit, Errors | None]] = []

    def room(self) -> bool:
        return not self._ended

    def start(self, unit: WorkUnit) -> None:
        with listening(lambda step: self._watch.report(unit.label, step)):
            self._ended.append((unit, self._workbench.attempt(unit.nodes)))

    def wait(self) -> list[tuple[WorkUnit, Errors | None]]:
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Worker:
    """A pool of one process, and the queue for its progress.

    The queue is not shared: a process that dies while it holds the lock of a shared queue would block the others.
    """

    pool: ProcessPoolExecutor
    messages: Any

    def steps(self, unit: WorkUnit) -> Iterator[Step]:
        """The steps of a unit that were reported since the last call; those of earlier units are dropped."""
        try:
            while True:
                id, step = self.messages.get_nowait()
                if id == unit.nodes[0].id:
                    yield step
        except (queue.Empty, EOFError, OSError):
            return


class LocalProcesses:
    """Several processes on this machine, each in a pool of its own, so that one can die without stopping the others."""

    def __init__(self, job: Job, workers: int, watch: Watch) -> None:
        self._job, self._watch = job, watch
        self._idle = [self._open() for _ in range(workers)]
        self._running: dict[Future[Errors], tuple[Worker, WorkUnit]] = {}

    def room(self) -> bool:
        return bool(self._idle)

    def start(self, unit: WorkUnit) -> None:
        worker = self._idle.pop()
        try:
            future = worker.pool.submit(_work, unit.nodes)
        except BrokenProcessPool:
            # The process was killed while idle.
            worker = self._open()
            future = worker.pool.submit(_work, unit.nodes)
        self._running[future] = worker, unit

    def wait(self) -> list[tuple[WorkUnit, Errors | None]]:
        ended: list[tuple[WorkUnit, Errors | None]] = []
        while not (done := wait(self._running, POLL_EVERY, FIRST_COMPLETED).done):
            self._tell()
        for future in done:
            worker, unit = self._running.pop(future)
            try:
                ended.append((unit, future.result()))
            except BrokenProcessPool:
                ended.append((unit, None))
                worker.pool.shutdown(wait=False)
                worker = self._open()
            self._idle.append(worker)
        self._tell()
        return ended

    def _tell(self) -> None:
        for worker, unit in self._running.values():
            for step in worker.steps(unit):
                self._watch.report(unit.label, step)

    def close(self) -> None:
        workers = [*self._idle, *(worker for worker, _ in self._running.values())]
        for worker in workers:
            for process in list((worker.pool._processes or {}).values()):
                process.terminate()
            worker.pool.shutdown(wait=True, cancel_futures=True)

    def _open(self) -> Worker:
        context = multiprocessing.get_context("spawn")
        messages = context.Queue()
        return Worker(ProcessPoolExecutor(1, context, _start_worker, (self._job, messages)), messages)


_workbench: Workbench | None = None
_messages: Any = None


def _start_worker(job: Job, messages: Any) -> None:
    global _workbench, _messages
    _messages = messages
    # The process must be able to end although nobody reads the queue any more.
    messages.cancel_join_thread()
    # Ctrl-C reaches all processes of a terminal; the parent ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    _workbench = job.open()


def _work(nodes: tuple[Node, ...]) -> Errors:
    assert _workbench is not None
    with listening(lambda step: _messages.put((nodes[0].id, step))):
        return _workbench.attempt(nodes)
