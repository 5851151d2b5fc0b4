"""How far apart two processors poison the same model, and how far reruns of the gate move it (`Clip.nudged`).

Both results folders have the same settings; the processors may also be one with other kernels:

    bench run --preset gate --out results
    ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 bench run --preset gate --out elsewhere
    python -m benchmarks.gate.processors results elsewhere

Prints a row per backdoored model that both have: the mean distance of unit-norm embeddings of training images.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from bench import Clip
from bench.core.registry import load_plugins
from bench.results.folder import ResultsFolder


@torch.no_grad()
def distance(one: Clip, other: Clip, images: torch.Tensor) -> float:
    """The mean distance of the embeddings of images (n, 3, h, w)."""
    return (one.encode_image(images) - other.encode_image(images)).norm(dim=1).mean().item()


def table(base: ResultsFolder, other: ResultsFolder, images: int = 200, draws: Sequence[int] = (1, 2)) -> pd.DataFrame:
    """A row per backdoored model of both folders."""
    there, rows = {cell.backdoor for cell in other.cells}, []
    train = base.resources.train
    pictures = train.load(torch.linspace(0, len(train) - 1, min(images, len(train))).long())
    for cell in {cell.backdoor: cell for cell in base.cells if cell.backdoor in there}.values():
        clip, elsewhere = base.store.clip(cell.backdoor or ""), other.store.clip(cell.backdoor or "")
        moved = [distance(clip, clip.nudged(draw), pictures) for draw in draws]
        rows.append(
            {"attack": cell.attack, "seed": cell.seed}
            | {"elsewhere": distance(clip, elsewhere, pictures), "nudged": sum(moved) / len(moved)}
        )
    return pd.DataFrame(rows, columns=["attack", "seed", "elsewhere", "nudged"])


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("elsewhere", type=Path, help="results of the same settings on another processor")
    asked = parser.parse_args(words)
    load_plugins()
    print(table(ResultsFolder(asked.results), ResultsFolder(asked.elsewhere)).to_markdown(index=False, floatfmt=".2g"))


if __name__ == "__main__":
    main()
