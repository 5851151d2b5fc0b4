"""Work units on the machines of a Ray cluster, with the results folder on a disk that all of them share."""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from bench.core.errors import BenchError
from bench.experiment.settings import BASE
from bench.matrix.job import Job, Workbench
from bench.matrix.plan import Node
from bench.matrix.schedule import WorkUnit
from bench.matrix.stages.stage import Errors
from bench.results.store import Store

# How often Ray restarts a unit whose worker process or machine was lost, before the schedule tries it alone.
RETRIES = 2
# Seconds to wait for files of another machine: a shared file system may show them late.
PATIENCE = 90.0


class RayWorkers:
    """Workers of the Ray cluster that RAY_ADDRESS or `ray start` names, else of a new one on this machine.

    They report no progress of a unit until it ends.

    Raises:
        BenchError: Ray is not installed, or no machine of the cluster has the resources that a unit needs.
    """

    def __init__(self, job: Job) -> None:
        self._ray = _import()
        run = job.variants[BASE].execution
        # No usage statistics are sent anywhere.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._ours = not self._ray.is_initialized()
        if self._ours:
            on_term = signal.getsignal(signal.SIGTERM)
            self._ray.init(log_to_driver=False)
            if threading.current_thread() is threading.main_thread():
                # Ray's own handler ends the process without a word.
                signal.signal(signal.SIGTERM, on_term)
        share = run.gpu_share
        gpus = share if share is not None else float(job.device.startswith("cuda")) * run.gpus
        needed = {"CPU": float(run.threads), "GPU": gpus, "memory": (run.memory_gb or 0) * 2**30}
        self._check(needed)
        # Ray makes only the assigned GPU visible to a unit.
        self._job = self._ray.put(Job(job.variants, job.out.resolve(), "cuda" if gpus else "cpu", job.plugins))
        self._store, self._limit = Store(job.out), run.workers
        options = {"num_cpus": needed["CPU"], "num_gpus": gpus, "memory": int(needed["memory"]), "max_retries": RETRIES}
        self._make: Any = self._ray.remote(**options)(_work)
        self._running: dict[Any, WorkUnit] = {}

    def room(self) -> bool:
        return self._limit is None or len(self._running) < self._limit

    def start(self, unit: WorkUnit) -> None:
        self._running[self._make.remote(self._job, unit.nodes)] = unit

    def wait(self) -> list[tuple[WorkUnit, Errors | None]]:
        references, _ = self._ray.wait(list(self._running))
        ended = [(reference, self._running.pop(reference)) for reference in references]
        return [(unit, self._errors(reference, unit)) for reference, unit in ended]

    def close(self) -> None:
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        if self._ours:
            self._ray.shutdown()

    def _errors(self, reference: Any, unit: WorkUnit) -> Errors | None:
        lost = self._ray.exceptions
        try:
            errors: Errors = self._ray.get(reference)
        except (lost.WorkerCrashedError, lost.NodeDiedError, lost.OutOfMemoryError, lost.ObjectLostError):
            return None
        except lost.RayError as error:
            reason = f"Ray: {str(error).strip().splitlines()[-1]}"
            return {node.id: reason for node in unit.nodes}
        made = [node for node in unit.nodes if node.id not in errors]
        if not _eventually(lambda: all(self._store.has(node.kind, node.id) for node in made)):
            reason = (
                f"made on another machine, but not in {self._store.out} here: give an --out that all machines share"
            )
            return dict(errors) | {node.id: reason for node in made}
        return errors

    def _check(self, needed: dict[str, float]) -> None:
        if needed["GPU"] > 1 and needed["GPU"] % 1:
            raise BenchError(f"gpu_share = {needed['GPU']:g}: a unit takes a part of one GPU, or whole ones")
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if any(all(machine.get(name, 0) >= amount for name, amount in needed.items()) for machine in machines):
            return
        amounts = ", ".join(f"{amount:g} {name}" for name, amount in needed.items() if amount)
        raise BenchError(
            f"a unit asks for {amounts}, and none of the {len(machines)} machines of the Ray cluster has that. "
            "Lower threads, gpu_share or memory_gb with --set, or add a machine with `ray start --address ...`"
        )


def _import() -> Any:
    try:
        import ray
    except ImportError:
        raise BenchError("--executor ray needs Ray: pip install 'clip-backdoor-bench[ray]'") from None
    return ray


def _eventually(condition: Callable[[], bool]) -> bool:
    """Whether a condition becomes true within `PATIENCE` seconds."""
    deadline = time.monotonic() + PATIENCE
    while not (true := condition()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return true


# The last job of this worker process, opened.
_opened: tuple[Job, Workbench] | None = None


def _work(job: Job, nodes: tuple[Node, ...]) -> Errors:
    """Make a unit's nodes on the machine where Ray runs this."""
    global _opened
    if not job.out.is_dir():
        reason = f"this machine of the cluster has no {job.out}: give an --out that all machines share"
        return {node.id: reason for node in nodes}
    if _opened is None or _opened[0] != job:
        _opened = job, job.open()
    # A lost worker may have made some of the nodes.
    store = Store(job.out)
    missing = [node for node in nodes if not store.has(node.kind, node.id)]
    return _opened[1].attempt(missing) if missing else {}
