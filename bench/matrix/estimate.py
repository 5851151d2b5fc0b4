"""Estimated GPU hours and disk space of a plan, by a simple model that is printed beside its result.

Times per image and step are the paper's (v1, table S7: one RTX 3090, half precision, ViT-B/32). CleanCLIP: 4:46:21
for 100,000 pairs and 10 epochs, each pair in two views. RVPT: 45:05 for 16,000 images and 50 epochs; a frozen forward
pass is assumed to take a quarter of a step. For other towers, times are scaled by the multiplications in their blocks.
"""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

from bench.core.cost import Scale, Sizes, Work
from bench.core.dataset import Dataset
from bench.core.errors import BenchError
from bench.data.files import FileDataset
from bench.experiment.settings import RunSettings, Variants
from bench.matrix.plan import Node
from bench.matrix.stages import STAGES
from bench.models import ModelSettings, sizes

CLEANING = 17_181 / (100_000 * 10)
POISONING = CLEANING / 2
TUNING = 2_705 / (16_000 * 50)
# A step of prompt tuning over a forward pass of the image tower.
TUNED = 4
FORWARD = TUNING / TUNED
REFERENCE = ModelSettings(name="ViT-B-32", pretrained="openai")
# Classes and test images.
IMAGENET = (1000, 50_000)
NOT_COUNTED = "reading images, ISSBA's encoder, methods of plug-ins"
ASSUMPTION = (
    f"assumed: an RTX 3090 in half precision and, for ViT-B-32, {1000 * POISONING:.1f} ms a pair and epoch of "
    f"poisoning, {1000 * CLEANING:.1f} ms of CleanCLIP, {1000 * TUNING:.1f} ms an image and epoch of prompt tuning, "
    f"{1000 * FORWARD:.2f} ms a forward pass (paper v1, table S7); other towers by their multiplications. "
    "--speed 4 is a GPU four times as fast. Images: decoded ones, kept where the disk has room. Not counted: "
    f"{NOT_COUNTED}."
)


@dataclass(frozen=True)
class Cost:
    """GPU seconds, and bytes on disk."""

    seconds: float = 0.0
    size: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.seconds + other.seconds, self.size + other.size)


def estimate(nodes: Iterable[Node], variants: Variants, speed: float = 1.0) -> dict[str, Cost]:
    """The cost of nodes by kind; the kind `images` is the decoded images, which are kept if the disk has room."""
    total: dict[str, Cost] = {}
    decoded: dict[tuple[str, ...], float] = {}
    for node in nodes:
        run = variants[node.variant]
        size = _sizes(run.model)
        work = work_of(node, run)
        slower = size.work / _sizes(REFERENCE).work / speed
        total[node.kind] = total.get(node.kind, Cost()) + Cost(_seconds(work) * slower, work.size)
        for what, n in _images(node, run, work).items():
            key = (what, run.tested_on if what == "test" else "", str(size.image_size))
            decoded[key] = max(decoded.get(key, 0), n * 3 * size.image_size**2)
    return total | {"images": Cost(0, sum(decoded.values()))}


def work_of(node: Node, run: RunSettings) -> Work:
    """What a node costs, as its stage and methods declare."""
    return STAGES[node.kind].work(node, run, Scale(_sizes(run.model), *_data_scale(node, run)))


def _seconds(work: Work) -> float:
    return work.forward * FORWARD + work.tuned * TUNING + work.contrasted * POISONING


def _data_scale(node: Node, run: RunSettings) -> tuple[int, int]:
    """Classes and test images of the data set that a node uses."""
    return data_size(run, run.tested_on if node.kind == "evaluation" else run.tuned_on or run.dataset)


def _images(node: Node, run: RunSettings, work: Work) -> dict[str, int]:
    """How many decoded images a node adds to the cache, by their use."""
    if node.kind == "evaluation":
        return {"test": data_size(run, run.tested_on)[1]}
    return {node.kind: work.pairs} if work.pairs else {}


def data_size(run: RunSettings, name: str) -> tuple[int, int]:
    """Classes and test images of a data set; ImageNet's if it must be read to know them."""
    data = run.data(name)
    images = _test_images(data) or IMAGENET[1]
    return _classes(data) or IMAGENET[0], min(images, run.evaluate.limit or images)


def _classes(data: Dataset) -> int | None:
    if isinstance(data, FileDataset) and data.size:
        return data.size
    with contextlib.suppress(BenchError):
        return len(data.classes())
    return None


def _test_images(data: Dataset) -> int | None:
    return data.published.get("test") if isinstance(data, FileDataset) else getattr(data, "test", None)


def unknown_sizes(variants: Variants) -> list[str]:
    """Data sets and models of unknown size, for which ImageNet's or ViT-B-32's is assumed."""
    unknown = []
    for run in variants.values():
        name = run.tested_on
        if _test_images(run.data(name)) is None:
            unknown.append(name)
        if sizes(run.model) is None:
            unknown.append(run.model.label)
    return list(dict.fromkeys(unknown))


def _sizes(model: ModelSettings) -> Sizes:
    known = sizes(model) or sizes(REFERENCE)
    assert known is not None
    return known
