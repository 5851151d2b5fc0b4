"""The embedded world: small captioned pictures, drawn by this file, on which a CLIP can be trained in minutes.

A picture shows one of 20 silhouettes; everything else in it (colours, textures, background, a second object, size,
light, grain, blur, sticker, watermark) says nothing of the class, and captions mention about half of it. A CLIP
trained on such captions encodes class-irrelevant features, as the paper says of the real one.

Two rules of the drawing matter: object and background contrast, and no factor is a noise patch or a noise overlay,
or a backdoor's noise trigger would have to be told from it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from bench.core.randomness import generator

# Raise this when a change of this file changes a picture or a caption.
VERSION = 1
SIDE = 56

CLASSES = (
    "banana", "star", "heart", "ring", "cross", "house", "tree", "fish", "arrow", "key",
    "cup", "hourglass", "flower", "ladder", "anchor", "umbrella", "mushroom", "lightning", "butterfly", "bottle",
)  # fmt: skip
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


def make(labels: Sequence[int] | Tensor, *purpose: str | int, chunk: int = 500) -> tuple[Tensor, Factors]:
    """Draw pictures of the given classes: images uint8 (n, 3, 56, 56) and their factors.

    `purpose` names the generator, so two purposes share no picture. Pictures are drawn `chunk` at a time to bound
    memory; the chunk is part of what determines them.
    """
    rng = generator(VERSION, "world", *purpose)
    labels = torch.as_tensor(labels)
    images, factors = [], []
    for part in labels.split(chunk):
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
    mask = F.grid_sample(_stencils()[f.label][:, None], grid, align_corners=True)
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


@cache
def _stencils() -> Tensor:
    """The silhouettes as masks in [0, 1]: (20, 96, 96), drawn large and averaged down."""
    side, scale = 96, 4
    masks = []
    for name in CLASSES:
        pen = _Pen(side * scale)
        _SILHOUETTES[name](pen)
        masks.append(np.asarray(pen.image.resize((side, side), Image.Resampling.BOX), dtype=np.float32))
    stencils = torch.from_numpy(np.stack(masks))
    return stencils / stencils.amax((1, 2), keepdim=True)


class _Pen:
    """Draws on a square whose corners are (-1, -1) and (1, 1); `ink=0` erases."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.image = Image.new("F", (width, width), 0)
        self._draw = ImageDraw.Draw(self.image)

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return (x + 1) / 2 * self.width, (y + 1) / 2 * self.width

    def polygon(self, *points: tuple[float, float], ink: int = 1) -> None:
        self._draw.polygon([self._at(*p) for p in points], fill=ink)

    def box(self, x0: float, y0: float, x1: float, y1: float, ink: int = 1) -> None:
        self.polygon((x0, y0), (x1, y0), (x1, y1), (x0, y1), ink=ink)

    def disc(self, x: float, y: float, rx: float, ry: float | None = None, ink: int = 1) -> None:
        ry = rx if ry is None else ry
        self._draw.ellipse([self._at(x - rx, y - ry), self._at(x + rx, y + ry)], fill=ink)


def _banana(p: _Pen) -> None:
    p.disc(0, -0.15, 0.95, 0.9)
    p.disc(0, -0.50, 0.95, 0.85, ink=0)


def _star(p: _Pen) -> None:
    radii = [0.95 if i % 2 == 0 else 0.4 for i in range(10)]
    p.polygon(*((r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5)) for i, r in enumerate(radii)))


def _heart(p: _Pen) -> None:
    p.disc(-0.42, -0.35, 0.46)
    p.disc(0.42, -0.35, 0.46)
    p.polygon((-0.85, -0.18), (0.85, -0.18), (0, 0.9))


def _ring(p: _Pen) -> None:
    p.disc(0, 0, 0.9)
    p.disc(0, 0, 0.55, ink=0)


def _cross(p: _Pen) -> None:
    p.box(-0.25, -0.9, 0.25, 0.9)
    p.box(-0.9, -0.25, 0.9, 0.25)


def _house(p: _Pen) -> None:
    p.polygon((-0.95, -0.1), (0, -0.95), (0.95, -0.1))
    p.box(-0.7, -0.12, 0.7, 0.9)
    p.box(-0.18, 0.3, 0.18, 0.9, ink=0)


def _tree(p: _Pen) -> None:
    p.polygon((0, -0.95), (0.6, -0.3), (-0.6, -0.3))
    p.polygon((0, -0.6), (0.8, 0.45), (-0.8, 0.45))
    p.box(-0.15, 0.4, 0.15, 0.95)


def _fish(p: _Pen) -> None:
    p.disc(-0.15, 0, 0.72, 0.45)
    p.polygon((0.4, 0), (0.95, -0.5), (0.95, 0.5))
    p.disc(-0.5, -0.12, 0.09, ink=0)


def _arrow(p: _Pen) -> None:
    p.box(-0.95, -0.18, 0.25, 0.18)
    p.polygon((0.15, -0.6), (0.95, 0), (0.15, 0.6))


def _key(p: _Pen) -> None:
    p.disc(-0.55, 0, 0.4)
    p.disc(-0.55, 0, 0.18, ink=0)
    p.box(-0.2, -0.11, 0.95, 0.11)
    p.box(0.5, 0, 0.64, 0.45)
    p.box(0.78, 0, 0.92, 0.38)


def _cup(p: _Pen) -> None:
    p.box(-0.75, -0.7, 0.4, 0.75)
    p.disc(0.45, 0, 0.45, 0.5)
    p.disc(0.45, 0, 0.25, 0.28, ink=0)
    p.box(-0.75, -0.7, 0.35, 0.75)


def _hourglass(p: _Pen) -> None:
    p.polygon((-0.8, -0.9), (0.8, -0.9), (-0.8, 0.9), (0.8, 0.9))


def _flower(p: _Pen) -> None:
    for i in range(6):
        p.disc(0.55 * math.cos(i * math.pi / 3), 0.55 * math.sin(i * math.pi / 3), 0.34)
    p.disc(0, 0, 0.3)
    p.disc(0, 0, 0.18, ink=0)


def _ladder(p: _Pen) -> None:
    p.box(-0.55, -0.95, -0.33, 0.95)
    p.box(0.33, -0.95, 0.55, 0.95)
    for y in (-0.7, -0.25, 0.2, 0.65):
        p.box(-0.5, y - 0.09, 0.5, y + 0.09)


def _anchor(p: _Pen) -> None:
    p.disc(0, 0.15, 0.85, 0.78)
    p.disc(0, -0.05, 0.8, 0.65, ink=0)
    p.box(-0.95, -0.9, 0.95, 0.1, ink=0)
    p.box(-0.12, -0.55, 0.12, 0.9)
    p.box(-0.5, -0.4, 0.5, -0.2)
    p.disc(0, -0.7, 0.24)
    p.disc(0, -0.7, 0.1, ink=0)


def _umbrella(p: _Pen) -> None:
    p.disc(0, 0, 0.92, 0.9)
    p.box(-1, 0, 1, 1, ink=0)
    p.disc(0.15, 0.78, 0.22, 0.2)
    p.disc(0.15, 0.72, 0.09, 0.12, ink=0)
    p.box(0.02, 0.4, 0.5, 0.72, ink=0)
    p.box(-0.07, -0.1, 0.07, 0.8)


def _mushroom(p: _Pen) -> None:
    p.disc(0, -0.15, 0.9, 0.75)
    p.box(-1, -0.1, 1, 1, ink=0)
    p.polygon((-0.28, -0.12), (0.28, -0.12), (0.38, 0.9), (-0.38, 0.9))


def _lightning(p: _Pen) -> None:
    p.polygon((0.15, -0.95), (-0.6, 0.15), (-0.08, 0.15), (-0.3, 0.95), (0.6, -0.2), (0.05, -0.2), (0.5, -0.95))


def _butterfly(p: _Pen) -> None:
    p.disc(-0.5, -0.38, 0.45, 0.5)
    p.disc(0.5, -0.38, 0.45, 0.5)
    p.disc(-0.4, 0.45, 0.36, 0.42)
    p.disc(0.4, 0.45, 0.36, 0.42)
    p.disc(0, 0, 0.1, 0.8)


def _bottle(p: _Pen) -> None:
    p.box(-0.16, -0.95, 0.16, -0.3)
    p.disc(0, -0.1, 0.42, 0.4)
    p.box(-0.42, -0.1, 0.42, 0.92)


_SILHOUETTES = {
    "banana": _banana, "star": _star, "heart": _heart, "ring": _ring, "cross": _cross,
    "house": _house, "tree": _tree, "fish": _fish, "arrow": _arrow, "key": _key,
    "cup": _cup, "hourglass": _hourglass, "flower": _flower, "ladder": _ladder, "anchor": _anchor,
    "umbrella": _umbrella, "mushroom": _mushroom, "lightning": _lightning, "butterfly": _butterfly,
    "bottle": _bottle,
}  # fmt: skip
