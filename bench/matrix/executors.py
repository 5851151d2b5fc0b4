"""Where nodes are made: in this process, or in several."""

import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.core.errors import BenchError
from bench.core.registry import load_plugins
from bench.matrix.plan import Node
from bench.matrix.settings import RunSettings
from bench.matrix.stages import Workshop, make
from bench.matrix.store import Store


@dataclass(frozen=True)
class Outcome:
    """How the making of a node ended: `error` is empty if it is there."""

    node: Node
    error: str = ""


def execute(
    nodes: list[Node], run: RunSettings, out: Path, device: str, workers: int, plugins: tuple[Path, ...]
) -> Iterator[Outcome]:
    """Make nodes, each as soon as those it needs are there; yields outcomes as they come.

    A node that needs a failed one is not tried. Numbers do not depend on the number of workers: each process has
    `run.threads` threads.
    """
    if workers == 1:
        torch.set_num_threads(run.threads)
        yield from _here(nodes, Workshop(run, Store(out), device))
    else:
        yield from _processes(nodes, run, out, device, workers, plugins)


def _here(nodes: list[Node], shop: Workshop) -> Iterator[Outcome]:
    failed: set[str] = set()
    for node in nodes:
        outcome = _blocked(node, failed) or Outcome(node, _attempt(node, shop))
        if outcome.error:
            failed.add(node.id)
        yield outcome


def _processes(
    nodes: list[Node], run: RunSettings, out: Path, device: str, workers: int, plugins: tuple[Path, ...]
) -> Iterator[Outcome]:
    waiting = {node.id: node for node in nodes}
    failed: set[str] = set()
    lost: set[str] = set()

    def pool() -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(workers, context, _start_worker, (run, out, device, plugins))

    executor = pool()
    running: dict[Future[str], Node] = {}
    try:
        while waiting or running:
            for node in list(waiting.values()):
                if blocked := _blocked(node, failed):
                    failed.add(node.id)
                    del waiting[node.id]
                    yield blocked
                elif len(running) < workers and not any(need in waiting or _is(need, running) for need in node.needs):
                    try:
                        running[executor.submit(_work, node)] = node
                    except BrokenProcessPool:
                        # Some worker died while we were looking elsewhere; its future says so below.
                        break
                    del waiting[node.id]
            if not running:
                if waiting:
                    executor = pool()
                continue
            broken = False
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                node = running.pop(future)
                try:
                    error = future.result()
                except BrokenProcessPool:
                    broken = True
                    if node.id not in lost:
                        # Another node's crash breaks the pool for all: each node in flight gets a second try.
                        lost.add(node.id)
                        waiting = {node.id: node, **waiting}
                        continue
                    error = "its worker process died twice, perhaps for want of memory: try fewer --workers"
                if error:
                    failed.add(node.id)
                yield Outcome(node, error)
            if broken:
                for node in running.values():
                    lost.add(node.id)
                    waiting = {node.id: node, **waiting}
                running = {}
                executor.shutdown(wait=False, cancel_futures=True)
                executor = pool()
    finally:
        for process in list((executor._processes or {}).values()):
            process.terminate()
        executor.shutdown(wait=True, cancel_futures=True)


def _is(id: str, running: dict[Future[str], Node]) -> bool:
    return any(node.id == id for node in running.values())


def _blocked(node: Node, failed: set[str]) -> Outcome | None:
    return Outcome(node, "not tried, since what it is made from failed") if failed & set(node.needs) else None


def _attempt(node: Node, shop: Workshop) -> str:
    try:
        make(node, shop)
    except BenchError as error:
        return str(error)
    except Exception as error:
        # One node's failure must not lose the others'; it is shown and counted at the end.
        return f"{type(error).__name__}: {error}"
    return ""


_shop: Workshop | None = None


def _start_worker(run: RunSettings, out: Path, device: str, plugins: tuple[Path, ...]) -> None:
    global _shop
    # Ctrl-C reaches all processes of a terminal; the parent ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    load_plugins(plugins)
    torch.set_num_threads(run.threads)
    _shop = Workshop(run, Store(out), device)


def _work(node: Node) -> str:
    assert _shop is not None
    return _attempt(node, _shop)
