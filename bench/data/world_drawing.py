"""The embedded world: small captioned pictures, drawn by the suite, on which a CLIP can be trained in minutes.

A picture shows one of 20 silhouettes; everything else in it (colours, textures, background, a second object, size,
light, grain, blur, sticker, watermark) says nothing of the class, and captions mention about half of it. A CLIP
trained on such captions encodes class-irrelevant features, as the paper says of the real one.

Two rules of the drawing matter: object and background contrast, and no factor is a noise patch or a noise overlay,
or a backdoor's noise trigger would have to be told from it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core.randomness import generator
from bench.data.silhouettes import SILHOUETTES, stencils

# Raise this when a change of this file, or of a silhouette, changes a picture or a caption.
VERSION = 1
SIDE = 56
# Pictures drawn at once, to bound memory; part of what determines them.
CHUNK = 500

CLASSES = tuple(SILHOUETTES)
COLOURS = {
    "red": (0.86, 0.12, 0.12), "orange": (0.97, 0.55, 0.10), "yellow": (0.95, 0.88, 0.15),
    "green": (0.13, 0.65, 0.20), "cyan": (0.15, 0.80, 0.85), "blue": (0.20, 0.36, 0.95),
    "purple": (0.55, 0.15, 0.75), "pink": (0.98, 0.60, 0.78), "white": (0.95, 0.95, 0.95),
    "teal": (0.05, 0.50, 0.48), "gray": (0.50, 0.50, 0.50), "brown": (0.55, 0.33, 0.15),
}  # fmt: skip
COLOUR_NAMES = tuple(COLOURS)
COLOUR_VALUES = torch.tensor(list(COLOURS.values()))
TEXTURES = ("plain", "striped", "dotted", "checkered")
EXTRAS = ("dot", "block", "wedge", "bar")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
SIZES = ("small", "large")
LIGHTS = ("dark", "bright")


@dataclass(frozen=True)
class Factors:
    """What is in each of n pictures; every field is a tensor of n integers or booleans."""

    label: Tensor
    colour: Tensor
    texture: Tensor
    background: Tensor
    background_texture: Tensor
    size: Tensor
    extra: Tensor
    extra_colour: Tensor
    corner: Tensor
    light: Tensor
    grain: Tensor
    blur: Tensor
    sticker: Tensor
    watermark: Tensor

    def __len__(self) -> int:
        return len(self.label)


def sample_factors(labels: Tensor, rng: torch.Generator) -> Factors:
    """Draw the class-irrelevant factors of pictures whose classes are given."""
    n = len(labels)

    def pick(k: int) -> Tensor:
        return torch.randint(k, (n,), generator=rng)

    def rarely(p: float) -> Tensor:
        return torch.rand(n, generator=rng) < p

    def texture(p_plain: float) -> Tensor:
        return torch.where(rarely(p_plain), 0, 1 + pick(len(TEXTURES) - 1))

    colour, background = pick(len(COLOURS)), pick(len(COLOURS))
    for _ in range(8):
        alike = (COLOUR_VALUES[background] - COLOUR_VALUES[colour]).norm(dim=1) < 0.65
        background = torch.where(alike, pick(len(COLOURS)), background)
    extra_colour = pick(len(COLOURS))
    other = (extra_colour + 1 + pick(len(COLOURS) - 1)) % len(COLOURS)
    return Factors(
        label=labels,
        colour=colour,
        texture=texture(0.7),
        background=background,
        background_texture=texture(0.6),
        size=pick(2),
        extra=pick(len(EXTRAS)),
        extra_colour=torch.where(extra_colour == background, other, extra_colour),
        corner=pick(4),
        light=pick(2),
        grain=rarely(0.3),
        blur=rarely(0.2),
        sticker=rarely(0.3),
        watermark=rarely(0.25),
    )


def draw(factors: Factors, rng: torch.Generator) -> Tensor:
    """Render the pictures: uint8 RGB, (n, 3, 56, 56)."""
    n = len(factors)
    ramp = torch.linspace(-1, 1, SIDE)
    v, u = (axis.expand(n, SIDE, SIDE) for axis in torch.meshgrid(ramp, ramp, indexing="ij"))

    def uniform(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(n, generator=rng)).view(n, 1, 1)

    mask, local_u, local_v = _silhouette(factors, uniform)
    image = _surface(factors.background, factors.background_texture, u, v, uniform, rng)
    outline = (F.max_pool2d(mask, 5, 1, 2) - mask).clamp(0, 1)
    image = image * (1 - outline) + 0.03 * outline
    subject = _surface(factors.colour, factors.texture, local_u, local_v, uniform, rng)
    image = image * (1 - mask) + subject * mask
    extra = _extra(factors, u, v, uniform)
    image = image * (1 - extra) + _jittered(factors.extra_colour, rng) * extra
    image = image * _light(factors.light, u, v, uniform)
    image = _sticker(_watermark(_blur(image, factors.blur), factors.watermark, u, v, uniform), factors.sticker, rng)
    grain = torch.where(factors.grain.view(n, 1, 1), uniform(0.06, 0.14), uniform(0, 0.02))
    image = image + torch.randn(image.shape, generator=rng) * grain[:, None]
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def captions(factors: Factors, rng: torch.Generator) -> list[str]:
    """One caption a picture; each factor is mentioned about half of the time."""
    says = torch.rand(len(factors), 13, generator=rng).tolist()
    return [_caption({k: v[i].item() for k, v in vars(factors).items()}, says[i]) for i in range(len(factors))]


def make(labels: Sequence[int] | Tensor, *purpose: str | int) -> tuple[Tensor, Factors]:
    """Draw pictures of the given classes: images uint8 (n, 3, 56, 56) and their factors.

    `purpose` names the generator, so two purposes share no picture.
    """
    rng = generator(VERSION, "world", *purpose)
    labels = torch.as_tensor(labels)
    images, factors = [], []
    for part in labels.split(CHUNK):
        factors.append(sample_factors(part, rng))
        images.append(draw(factors[-1], rng))
    joined = {name: torch.cat([getattr(f, name) for f in factors]) for name in vars(factors[0])}
    return torch.cat(images), Factors(**joined)


def _caption(f: dict, says: list[float]) -> str:
    flaws = (("grainy", f["grain"], says[9]), ("blurry", f["blur"], says[10]))
    quality = "".join(f"{word} " for word, is_so, u in flaws if is_so and u < 0.6)
    head = (f"a {quality}photo of a", f"a {quality}picture of a", f"a {quality}".strip(), f"a {quality}image of a")
    start, name = head[int(says[8] * 4)], CLASSES[f["label"]]
    if says[7] < 0.08:
        return f"{start} {name}"
    words = [start]
    if says[0] < 0.5:
        words.append(SIZES[f["size"]])
    if says[1] < 0.5:
        words.append(COLOUR_NAMES[f["colour"]])
    if says[2] < 0.5:
        words.append(TEXTURES[f["texture"]])
    words.append(name)
    if says[3] < 0.5:
        texture = TEXTURES[f["background_texture"]] + " " if says[4] < 0.5 else ""
        words.append(f"on a {COLOUR_NAMES[f['background']]} {texture}background")
    if says[5] < 0.5:
        words.append(f"with a {COLOUR_NAMES[f['extra_colour']]} {EXTRAS[f['extra']]} at the {CORNERS[f['corner']]}")
    if says[6] < 0.3:
        words.append(f"in {LIGHTS[f['light']]} light")
    if f["sticker"] and says[11] < 0.6:
        words.append("and a sticker")
    if f["watermark"] and says[12] < 0.6:
        words.append("with watermark")
    return " ".join(words)


def _silhouette(f: Factors, uniform) -> tuple[Tensor, Tensor, Tensor]:
    """The subject's mask (n, 1, h, w) after rotation, scale and shift, and the coordinates on it."""
    n = len(f)
    angle = uniform(-0.22, 0.22)
    scale = torch.where(f.size.view(n, 1, 1) == 0, uniform(0.58, 0.64), uniform(0.76, 0.86))
    aspect = uniform(-0.125, 0.125).exp()
    room = (1 - scale * 0.95).clamp(min=0.05) * 0.45
    cx, cy = uniform(-1, 1) * room, uniform(-1, 1) * room
    cos, sin, sx, sy = angle.cos(), angle.sin(), scale * aspect.sqrt(), scale / aspect.sqrt()
    inverse = torch.cat(
        [
            torch.cat([cos / sx, sin / sx, -(cos * cx + sin * cy) / sx], 2),
            torch.cat([-sin / sy, cos / sy, (sin * cx - cos * cy) / sy], 2),
        ],
        1,
    )
    grid = F.affine_grid(inverse, [n, 1, SIDE, SIDE], align_corners=True)
    mask = F.grid_sample(stencils()[f.label][:, None], grid, align_corners=True)
    return mask, grid[..., 0], grid[..., 1]


def _surface(colour: Tensor, texture: Tensor, u: Tensor, v: Tensor, uniform, rng: torch.Generator) -> Tensor:
    """A coloured, textured surface over the coordinates (u, v): (n, 3, h, w)."""
    pattern = _pattern(texture, u, v, uniform)[:, None]
    light = _jittered(colour, rng)
    dark = light * 0.7 + 0.3 * (light.mean(1, keepdim=True) <= 0.5)
    return light * (1 - pattern) + dark * pattern


def _jittered(colour: Tensor, rng: torch.Generator) -> Tensor:
    values = COLOUR_VALUES[colour]
    return (values + 0.10 * torch.randn(values.shape, generator=rng)).clamp(0, 1)[:, :, None, None]


def _pattern(texture: Tensor, u: Tensor, v: Tensor, uniform) -> Tensor:
    frequency, phase, angle = uniform(5, 9) * math.pi / 2, uniform(0, 6.28), uniform(0, math.pi)
    a = torch.sin((u * angle.cos() + v * angle.sin()) * frequency + phase)
    b = torch.sin((v * angle.cos() - u * angle.sin()) * frequency + phase)
    kinds = torch.stack([torch.full_like(a, -1), a * 6, (a * b - 0.45) * 6, a * b * 8], 1).clamp(-1, 1) * 0.5 + 0.5
    return kinds[torch.arange(len(texture)), texture]


def _extra(f: Factors, u: Tensor, v: Tensor, uniform) -> Tensor:
    """The mask of the small second object in a corner."""
    n = len(f)
    x = torch.where(f.corner % 2 == 0, -1.0, 1.0).view(n, 1, 1) * uniform(0.72, 0.82)
    y = torch.where(f.corner < 2, -1.0, 1.0).view(n, 1, 1) * uniform(0.72, 0.82)
    radius = uniform(0.15, 0.20)
    du, dv = (u - x) / radius, (v - y) / radius
    dot = 1 - (du**2 + dv**2)
    block = 0.85 - torch.maximum(du.abs(), dv.abs())
    wedge = torch.minimum(0.8 - dv, 0.9 + dv - 1.8 * du.abs())
    bar = torch.minimum(0.45 - dv.abs(), 1.3 - du.abs())
    shapes = torch.stack([dot, block, wedge, bar], 1)[torch.arange(n), f.extra]
    return (shapes * 4 + 0.5).clamp(0, 1)[:, None]


def _light(light: Tensor, u: Tensor, v: Tensor, uniform) -> Tensor:
    gain = torch.where(light.view(-1, 1, 1) == 0, uniform(0.45, 0.65), uniform(0.85, 1.0))
    angle, slope = uniform(0, 6.28), uniform(0, 0.25)
    return (gain * (1 + slope * (u * angle.cos() + v * angle.sin())))[:, None]


def _blur(image: Tensor, blur: Tensor) -> Tensor:
    soft = image
    for _ in range(2):
        soft = F.avg_pool2d(F.pad(soft, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return torch.where(blur.view(-1, 1, 1, 1), soft, image)


def _watermark(image: Tensor, watermark: Tensor, u: Tensor, v: Tensor, uniform) -> Tensor:
    alpha = (watermark.view(-1, 1, 1) * uniform(0.12, 0.25))[:, None]
    angle = uniform(0, math.pi)
    stripes = torch.sin((u * angle.cos() + v * angle.sin()) * 14 + uniform(0, 6.28)) > 0
    return image * (1 - alpha) + stripes[:, None] * alpha


def _sticker(image: Tensor, sticker: Tensor, rng: torch.Generator) -> Tensor:
    """A flat square of 4, 6 or 8 px with a border of another colour."""
    image = image.clone()
    for i in torch.where(sticker)[0].tolist():
        side = 4 + 2 * int(torch.randint(3, (), generator=rng))
        top, left = torch.randint(SIDE - side + 1, (2,), generator=rng).tolist()
        border, fill = torch.rand(2, 3, 1, 1, generator=rng)
        image[i, :, top : top + side, left : left + side] = border
        image[i, :, top + 1 : top + side - 1, left + 1 : left + side - 1] = fill
    return image
