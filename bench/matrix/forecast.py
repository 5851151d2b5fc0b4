"""How long a run takes: from like artefacts that were made before, else from declared work and a step timed here."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean

import torch

from bench.core.clip import Clip
from bench.experiment.settings import BASE, RunSettings, Variants
from bench.matrix.estimate import NOT_COUNTED, TUNED, work_of
from bench.matrix.plan import Node
from bench.matrix.stages import STAGES
from bench.matrix.watch import duration
from bench.models import ModelSettings, sizes
from bench.results.records import CARDS
from bench.results.store import Store
from bench.training.fine_tuning import contrastive_loss

# Of a timed step: images, and the seconds after which it is not repeated.
BATCH, ENOUGH, REPEATS = 8, 2.0, 3
HINT = "may be wrong by a factor of two, and by more while other programs run"


@dataclass(frozen=True)
class Pace:
    """What this machine takes: seconds per image of a forward pass of the image tower, and per pair of a step."""

    forward: float
    contrasted: float

    def __str__(self) -> str:
        return f"{1000 * self.forward:.2f} ms a forward pass, {1000 * self.contrasted:.2f} ms a pair of fine-tuning"


def measured_pace(clip: Clip, threads: int) -> Pace:
    """Time a forward pass and a step of fine-tuning of a CLIP on `threads` of the CPU, without changing it."""
    torch.set_num_threads(threads)
    size = clip.image_size
    images = torch.zeros(BATCH, 3, size, size, device=clip.device)
    tokens = clip.tokenize(["a photo of a dog."] * BATCH)
    weights = list(clip.model.parameters())
    trained = [weight.requires_grad for weight in weights]

    @torch.no_grad()
    def forward() -> None:
        clip.encode_image(images)

    def step() -> None:
        loss = contrastive_loss(clip.encode_image(images), clip.encode_text(tokens), clip.scale)
        torch.autograd.grad(loss, weights, allow_unused=True)

    try:
        clip.model.requires_grad_(True)
        return Pace(_seconds(forward, clip.device) / BATCH, _seconds(step, clip.device) / BATCH)
    finally:
        for weight, before in zip(weights, trained, strict=True):
            weight.requires_grad_(before)
        # Memory for the processes that make artefacts; without a GPU in use, it does nothing.
        torch.cuda.empty_cache()


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    """The shortest time of a few calls, the first of which is for warming up unless it takes long."""
    times: list[float] = []
    while len(times) <= REPEATS and sum(times) < ENOUGH:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


class LikeTimes:
    """How long artefacts took that were made before, and so how long one like them will take.

    Args:
        folders: results folders with such artefacts.
        usual: their model.
        device: where; times of other kinds of devices do not count. None: all count.
    """

    def __init__(self, folders: Sequence[Path], usual: ModelSettings, device: str | None = None) -> None:
        self._usual = usual
        self._times: dict[str, list[float]] = defaultdict(list)
        for store, kind in product(map(Store, folders), CARDS):
            for folder in sorted(store.path(kind, "").glob("[!.]*")):
                card = store.card(kind, folder.name)
                if device is None or card.device.partition(":")[0] == device.partition(":")[0]:
                    self.add(card.label, card.seconds)

    def add(self, label: str, seconds: float) -> None:
        for key in _likeness(label):
            self._times[key].append(seconds)

    def of(self, node: Node, run: RunSettings) -> float | None:
        """The mean seconds of the most alike; None where there is none.

        Those of other settings are scaled with the multiplications of the node's model.
        """
        same, *alike = _likeness(node.label)
        if same in self._times:
            return fmean(self._times[same])
        times = next((self._times[key] for key in alike if key in self._times), None)
        return fmean(times) * _slower(run.model, self._usual) if times else None


def _likeness(label: str) -> tuple[str, ...]:
    """What artefacts have in common, the most alike first, read off a label; never only the kind, nor another defense.

    >>> _likeness("defense badnet / rvpt, alpha=0, seed 0")
    ('defense badnet / rvpt, alpha=0', 'defense badnet / rvpt', 'defense / rvpt')

    Poisoning takes as long with any attack, and a trigger does not.

    >>> _likeness("backdoor badnet, seed 0")[-1], _likeness("trigger badnet, seed 0")[-1]
    ('backdoor / ', 'trigger badnet')
    """
    same, what = label.rpartition(",")[0], label.split(",")[0]
    kind, _, rest = what.partition(" ")
    return (same, what) if kind == "trigger" else (same, what, f"{kind} / {rest.partition(' / ')[2]}")


def _slower(model: ModelSettings, usual: ModelSettings) -> float:
    """How many times the multiplications of `usual` a model takes; 1 if unknown."""
    size, other = sizes(model), sizes(usual)
    return size.work / other.work if size and other else 1.0


class Forecast:
    """The time that the nodes of a run still need; it learns from those that were made.

    A node takes as long as like ones took, else what its declared work takes at the
    pace of this machine, times what nodes of its kind have taken so far over what was foreseen.

    Args:
        nodes: those to make.
        device: where; times of other devices do not count.
        folders: results folders whose artefacts tell times.
        processes: at work at a time.
    """

    def __init__(
        self,
        nodes: Iterable[Node],
        variants: Variants,
        pace: Pace,
        device: str,
        folders: Sequence[Path],
        processes: int,
    ) -> None:
        self._variants, self._pace, self._processes = variants, pace, processes
        self._left = {node.id: node for node in nodes}
        self._times = LikeTimes(folders, variants[BASE].model, device)
        # By kind: seconds foreseen from work alone, and taken.
        self._foreseen: dict[str, float] = defaultdict(float)
        self._taken: dict[str, float] = defaultdict(float)

    def made(self, node: Node, seconds: float) -> None:
        """A node was made."""
        self._foreseen[node.kind] += self._by_work(node)
        self._taken[node.kind] += seconds
        self._times.add(node.label, seconds)
        self._left.pop(node.id, None)

    def failed(self, node: Node) -> None:
        self._left.pop(node.id, None)

    @property
    def seconds(self) -> float:
        """Until all is made, if all processes are busy."""
        return sum(map(self._of, self._left.values())) / self._busy

    @property
    def _busy(self) -> int:
        return min(self._processes, max(1, len(self._left)))

    def __str__(self) -> str:
        """What takes how long, and where that is from."""
        kinds: dict[str, float] = defaultdict(float)
        for node in self._left.values():
            kinds[node.kind] += self._of(node) / self._busy
        parts = ", ".join(f"{kind}s {duration(seconds)}" for kind, seconds in kinds.items())
        like = sum(self._measured(node) is not None for node in self._left.values())
        sources = [f"{like} by like ones in the results folder"] if like else []
        if guessed := len(self._left) - like:
            sources.append(f"{guessed} by declared work and a step timed now ({self._pace}), which {HINT}")
        return (
            f"estimate: about {duration(self.seconds)} in all ({parts}). Of {len(self._left)} artefacts, "
            f"{'; '.join(sources)}. Not counted: {NOT_COUNTED}."
        )

    def _of(self, node: Node) -> float:
        measured = self._measured(node)
        if measured is not None:
            return measured
        foreseen = self._foreseen[node.kind]
        return self._by_work(node) * (self._taken[node.kind] / foreseen if foreseen else 1.0)

    def _measured(self, node: Node) -> float | None:
        return self._times.of(node, self._variants[node.variant])

    def _by_work(self, node: Node) -> float:
        run = self._variants[node.variant]
        work = work_of(node, run)
        images = (work.forward + TUNED * work.tuned) * self._pace.forward
        alone = (images + work.contrasted * self._pace.contrasted) * _slower(run.model, self._variants[BASE].model)
        return alone / (run.execution.gpus if STAGES[node.kind].shares_batches(node, run) else 1)
