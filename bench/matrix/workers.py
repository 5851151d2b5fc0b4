"""Where nodes are made: in this process, in several, or on a Ray cluster."""

import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from pathlib import Path
from typing import Protocol

from bench.experiment.resources import Resources
from bench.experiment.settings import BASE, Variants
from bench.matrix.job import Errors, Job, attempt
from bench.matrix.plan import Node
from bench.matrix.ray_workers import RayWorkers
from bench.matrix.schedule import Outcome, Schedule, Task


class Workers(Protocol):
    """What makes tasks: as many at once as it has room for."""

    def room(self) -> bool: ...

    def start(self, task: Task) -> None: ...

    def wait(self) -> list[tuple[Task, Errors | None]]:
        """Tasks that have ended, at least one; without errors where the worker died."""
        ...

    def close(self) -> None:
        """End the workers, whatever they do."""
        ...


def execute(
    nodes: list[Node], variants: Variants, out: Path, device: str, workers: int, plugins: tuple[Path, ...]
) -> Iterator[Outcome]:
    """Make nodes, each as soon as those it needs are there; yields outcomes as they come.

    A node that needs a failed one is not tried. Numbers do not depend on the executor, nor on the number of workers:
    each process has `threads` threads, a setting of the base variant.
    """
    job = Job(variants, out, device, plugins)
    schedule = Schedule(nodes)
    with closing(_workers(job, workers)) as crew:
        while True:
            yield from schedule.blocked()
            while crew.room() and (task := schedule.next()):
                crew.start(task)
            if not schedule.running:
                return
            for task, errors in crew.wait():
                yield from schedule.died(task) if errors is None else schedule.ended(task, errors)


def _workers(job: Job, workers: int) -> Workers:
    if job.variants[BASE].executor == "ray":
        return RayWorkers(job)
    return InProcess(job) if workers == 1 else LocalProcesses(job, workers)


class InProcess:
    """This process."""

    def __init__(self, job: Job) -> None:
        self._resources_of = job.open()
        self._ended: list[tuple[Task, Errors | None]] = []

    def room(self) -> bool:
        return not self._ended

    def start(self, task: Task) -> None:
        self._ended.append((task, attempt(task.nodes, self._resources_of)))

    def wait(self) -> list[tuple[Task, Errors | None]]:
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        pass


class LocalProcesses:
    """Several processes of this machine, each a pool of its own: the death of one leaves the others at work."""

    def __init__(self, job: Job, workers: int) -> None:
        self._job = job
        self._idle = [self._open() for _ in range(workers)]
        self._running: dict[Future[Errors], tuple[ProcessPoolExecutor, Task]] = {}

    def room(self) -> bool:
        return bool(self._idle)

    def start(self, task: Task) -> None:
        pool = self._idle.pop()
        try:
            future = pool.submit(_work, task.nodes)
        except BrokenProcessPool:
            # Killed while it had nothing to do.
            pool = self._open()
            future = pool.submit(_work, task.nodes)
        self._running[future] = pool, task

    def wait(self) -> list[tuple[Task, Errors | None]]:
        ended: list[tuple[Task, Errors | None]] = []
        for future in wait(self._running, return_when=FIRST_COMPLETED).done:
            pool, task = self._running.pop(future)
            try:
                ended.append((task, future.result()))
            except BrokenProcessPool:
                ended.append((task, None))
                pool.shutdown(wait=False)
                pool = self._open()
            self._idle.append(pool)
        return ended

    def close(self) -> None:
        pools = [*self._idle, *(pool for pool, _ in self._running.values())]
        for pool in pools:
            for process in list((pool._processes or {}).values()):
                process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)

    def _open(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _start_worker, (self._job,))


_resources_of: dict[str, Resources] = {}


def _start_worker(job: Job) -> None:
    global _resources_of
    # Ctrl-C reaches all processes of a terminal; the parent ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _resources_of = job.open()


def _work(nodes: tuple[Node, ...]) -> Errors:
    return attempt(nodes, _resources_of)
