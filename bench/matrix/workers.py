"""Where nodes are made: in this process, in several, or on a Ray cluster."""

import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from pathlib import Path
from typing import Protocol

from bench.experiment.settings import BASE, Variants
from bench.matrix.job import Job, Workbench
from bench.matrix.plan import Node
from bench.matrix.ray_workers import RayWorkers
from bench.matrix.schedule import Outcome, Schedule, WorkUnit
from bench.matrix.stages.stage import Errors


class Workers(Protocol):
    """What makes units: as many at once as it has room for."""

    def room(self) -> bool: ...

    def start(self, unit: WorkUnit) -> None: ...

    def wait(self) -> list[tuple[WorkUnit, Errors | None]]:
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
            while crew.room() and (unit := schedule.next()):
                crew.start(unit)
            if not schedule.running:
                return
            for unit, errors in crew.wait():
                yield from schedule.died(unit) if errors is None else schedule.ended(unit, errors)


def _workers(job: Job, workers: int) -> Workers:
    if job.variants[BASE].execution.executor == "ray":
        return RayWorkers(job)
    return InProcess(job) if workers == 1 else LocalProcesses(job, workers)


class InProcess:
    """This process."""

    def __init__(self, job: Job) -> None:
        self._workbench = job.open()
        self._ended: list[tuple[WorkUnit, Errors | None]] = []

    def room(self) -> bool:
        return not self._ended

    def start(self, unit: WorkUnit) -> None:
        self._ended.append((unit, self._workbench.attempt(unit.nodes)))

    def wait(self) -> list[tuple[WorkUnit, Errors | None]]:
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        pass


class LocalProcesses:
    """Several processes of this machine, each a pool of its own: the death of one leaves the others at work."""

    def __init__(self, job: Job, workers: int) -> None:
        self._job = job
        self._idle = [self._open() for _ in range(workers)]
        self._running: dict[Future[Errors], tuple[ProcessPoolExecutor, WorkUnit]] = {}

    def room(self) -> bool:
        return bool(self._idle)

    def start(self, unit: WorkUnit) -> None:
        pool = self._idle.pop()
        try:
            future = pool.submit(_work, unit.nodes)
        except BrokenProcessPool:
            # Killed while it had nothing to do.
            pool = self._open()
            future = pool.submit(_work, unit.nodes)
        self._running[future] = pool, unit

    def wait(self) -> list[tuple[WorkUnit, Errors | None]]:
        ended: list[tuple[WorkUnit, Errors | None]] = []
        for future in wait(self._running, return_when=FIRST_COMPLETED).done:
            pool, unit = self._running.pop(future)
            try:
                ended.append((unit, future.result()))
            except BrokenProcessPool:
                ended.append((unit, None))
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


_workbench: Workbench | None = None


def _start_worker(job: Job) -> None:
    global _workbench
    # Ctrl-C reaches all processes of a terminal; the parent ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _workbench = job.open()


def _work(nodes: tuple[Node, ...]) -> Errors:
    assert _workbench is not None
    return _workbench.attempt(nodes)
