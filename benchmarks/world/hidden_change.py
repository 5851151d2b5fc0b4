"""An attacker who hides the change of the weights from those who compare them with the reference.

    python -m benchmarks.world.hidden_change backdoored.safetensors --out hidden
    bench audit hidden --reference mini

Noise is added to every matrix of the image tower: normal, with the standard deviation of that matrix's change, times
`--noise`. Writes a folder that open_clip opens.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import Clip, generator
from bench.checkpoints.subject import settings_of
from bench.models import ModelSettings, load_model


def hidden(clip: Clip, reference: Clip, noise: float, rng: torch.Generator) -> Clip:
    """A copy with noise on the matrices of the image tower that differ from the reference's."""
    copy, before = clip.copy(), dict(reference.model.named_parameters())
    with torch.no_grad():
        for name, weights in copy.model.named_parameters():
            change = (weights - before[name]).std() if name.startswith("visual") and weights.ndim > 1 else 0
            weights += noise * change * torch.randn(weights.shape, generator=rng)
    return copy


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="weights of `mini`, or a folder of open_clip's")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the model that hides it")
    parser.add_argument("--noise", type=float, default=1.0, help="its standard deviation, in those of the change")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    clip, reference = (load_model(settings, "cpu") for settings in (settings_of(given.model), ModelSettings()))
    hidden(clip, reference, given.noise, generator(given.seed, "hidden change")).save(given.out, torch.float32)
    print(f"written: {given.out}")


if __name__ == "__main__":
    main()
