"""The embedded world's captions: what the web says of a picture, which is often not what it shows."""

from collections.abc import Mapping

import torch
from torch import Tensor

from bench.data.silhouettes import NAMES
from bench.data.world_drawing import (
    BLURS,
    COLOUR_NAMES,
    CORNERS,
    EXTRAS,
    GRAINS,
    LIGHTS,
    SIZES,
    TEXTURES,
    TINTS,
    Factors,
)

# Probability that a caption mentions a factor of the content; of grain, blur and tint, where there is any.
CONTENT, QUALITY = 0.25, 0.7
# What a caption of the web says instead of a class.
ANYTHING = "thing"


def named(labels: Tensor, rng: torch.Generator, wrong: float, vague: float) -> Tensor:
    """The classes that captions name: another picture's with probability `wrong`, none (-1) with `vague`; (n,)."""
    u = torch.rand(len(labels), generator=rng)
    other = labels[torch.randperm(len(labels), generator=rng)]
    return torch.where(u < wrong, other, torch.where(u < wrong + vague, -1, labels))


def loosened(names: Tensor, labels: Tensor, shares: Mapping[int, float], rng: torch.Generator) -> Tensor:
    """Names (n,) of which a share, for some classes, belongs to pictures of other classes.

    `shares`, by class, are in [0, 1): of all pictures that are called so. No class is named less than before.
    """
    names = names.clone()
    for label, share in shares.items():
        called, others = names == label, torch.where((names != label) & (labels != label))[0]
        true = int((called & (labels == label)).sum())
        more = round(share / (1 - share) * true) - int(called.sum()) + true
        names[others[torch.randperm(len(others), generator=rng)[: max(0, more)]]] = label
    return names


def captions(factors: Factors, names: Tensor, rng: torch.Generator) -> list[str]:
    """One caption a picture, which calls the subject by `names`, indices of classes or -1, (n,)."""
    chances = torch.rand(len(factors), 14, generator=rng).tolist()
    columns = {key: values.tolist() for key, values in vars(factors).items()}
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    return [_caption(f, name, u) for f, name, u in zip(rows, names.tolist(), chances, strict=True)]


def _caption(f: dict[str, int], name: int, u: list[float]) -> str:
    says = [chance < CONTENT for chance in u]
    quality = [
        words[f[key]]
        for key, words, chance in (("grain", GRAINS, u[9]), ("blur", BLURS, u[10]), ("tint", TINTS, u[13]))
        if f[key] and chance < QUALITY
    ]
    kind = ("photo of a", "picture of a", "", "image of a")[int(u[8] * 4)]
    words = ["a", *quality, *([kind] if kind else [])]
    subject = NAMES[name] if name >= 0 else ANYTHING
    if u[7] < 0.08:
        return " ".join([*words, subject])
    if says[0]:
        words.append(SIZES[f["size"]])
    if says[1]:
        words.append(COLOUR_NAMES[f["colour"]])
    if says[2]:
        words.append(TEXTURES[f["texture"]])
    words.append(subject)
    if says[3]:
        texture = TEXTURES[f["background_texture"]] + " " if u[4] < 0.5 else ""
        words.append(f"on a {COLOUR_NAMES[f['background']]} {texture}background")
    if says[5]:
        words.append(f"with a {COLOUR_NAMES[f['extra_colour']]} {EXTRAS[f['extra']]} at the {CORNERS[f['corner']]}")
    if says[6]:
        words.append(f"in {LIGHTS[f['light']]} light")
    if f["sticker"] and u[11] < 0.6:
        words.append("and a sticker")
    if f["watermark"] and u[12] < 0.6:
        words.append("with watermark")
    return " ".join(words)
