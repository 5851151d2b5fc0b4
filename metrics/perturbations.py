"""Perturbations of clean images, for Perturbation Resistivity (paper v1 and v3, arXiv 2412.20392).

Triggers that serve as perturbations (badnet, blended, the cell's own) come from `attacks`.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.core.errors import unknown
from bench.core.randomness import generator

Perturbation = Callable[[Tensor, Sequence[int], int], Tensor]
"""`perturb(images, index, seed)`: perturbed images.

`images` is float RGB in [0, 1], (n, 3, h, w), before normalisation, and is not modified. The result has the same form;
it is not rounded to 8 bits, as that would erase the weakest noise. Randomness depends on `seed` and on the number of
each image in `index` (n,), never on the batch.
"""

BRIGHTNESS = 0.5
HUE = 0.3


def gaussian(std: float) -> Perturbation:
    """Gaussian noise with standard deviation `std`, independent for every channel and pixel.

    For one image and seed, noise of another `std` is the same noise, scaled. Paper v1 names 0.01 and 0.03, v3 0.001.
    v1's PR of 0.572 at 0.01 looks too low for a standard deviation of 0.01, so the papers may mean *variances*: 0.01 is
    then `std` = 0.1, 0.001 is 0.032, and 0.03 is 0.173. Report both readings.
    """

    def perturb(images: Tensor, index: Sequence[int], seed: int) -> Tensor:
        noise = torch.empty(images.shape)
        for row, i in zip(noise, index, strict=True):
            row.normal_(generator=generator(seed, "perturbation", "gaussian", i))
        return (images + std * noise.to(images)).clamp(0, 1)

    return perturb


def blur(kernel: int, std: float | None = None) -> Perturbation:
    """Gaussian blur with a kernel of `kernel` x `kernel` px and standard deviation `std` in px; borders are reflected.

    The papers do not state `std` for kernels 3 and 5; the default is OpenCV's and torchvision's,
    0.3 ((kernel - 1) / 2 - 1) + 0.8.
    """
    sigma = 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8 if std is None else std

    def perturb(images: Tensor, _index: Sequence[int], _seed: int) -> Tensor:
        # Imported late, so that importing this module does not need kornia.
        from kornia.filters import gaussian_blur2d

        return gaussian_blur2d(images, (kernel, kernel), (sigma, sigma), border_type="reflect").clamp(0, 1)

    return perturb


def jitter(images: Tensor, index: Sequence[int], seed: int) -> Tensor:
    """Colour jitter of paper v3, as torchvision's ColorJitter(brightness=0.5, hue=0.3): brightness first, then hue."""
    from kornia.enhance import adjust_hue

    brightness, hue = jitter_factors(index, seed)
    bright = (images * brightness.to(images).view(-1, 1, 1, 1)).clamp(0, 1)
    return adjust_hue(bright, 2 * math.pi * hue.to(images)).clamp(0, 1)


def jitter_factors(index: Sequence[int], seed: int) -> tuple[Tensor, Tensor]:
    """The random factors (n,) of `jitter`: brightness in [0.5, 1.5), and the shift of hue in [-0.3, 0.3) turns."""
    draws = torch.empty(len(index), 2)
    for row, i in zip(draws, index, strict=True):
        row.uniform_(-1, 1, generator=generator(seed, "perturbation", "jitter", i))
    return 1 + BRIGHTNESS * draws[:, 0], HUE * draws[:, 1]


def flip(images: Tensor, _index: Sequence[int], _seed: int) -> Tensor:
    """Every image mirrored left to right."""
    return images.flip(-1)


PERTURBATIONS: dict[str, Perturbation] = {
    **{f"gaussian-{std}": gaussian(std) for std in (0.001, 0.01, 0.03, 0.1)},
    "blur-3": blur(3),
    "blur-5": blur(5),
    # Paper v3: 'kernel 3, "variance 5"'. With 3 px, a standard deviation of 5 would hardly differ.
    "blur-3-v5": blur(3, math.sqrt(5)),
    "jitter": jitter,
    "flip": flip,
}


def perturbation(name: str) -> Perturbation:
    """The perturbation with this name.

    Raises:
        BenchError: there is none; the message suggests the nearest name.
    """
    if name not in PERTURBATIONS:
        hint = "Attacks' names and `trigger` are known too: --set zero_shot.perturbations=[flip,trigger]"
        raise unknown("perturbation", name, PERTURBATIONS, hint)
    return PERTURBATIONS[name]
