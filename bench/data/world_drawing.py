"""The embedded world's pictures: small, drawn by the suite, so that a CLIP can be trained on them in minutes.

A picture shows one silhouette; everything else in it (colours, textures, background, a second object, size, light,
tint, grain, blur, sticker, watermark) says nothing of the class. Pictures of the web, on which a CLIP is trained, are
drawn in one style, those of the zero-shot data sets in others: to the model they are another domain.

Two rules of the drawing matter: object and background contrast, and no factor is a noise patch or a noise overlay,
or a backdoor's noise trigger would have to be told from it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core.randomness import generator
from bench.data.silhouettes import stencils

# Raise this when a change of this file, of a silhouette or of a caption changes what is drawn or said.
VERSION = 2
SIDE = 56
# Pictures drawn at once, to bound memory; part of what determines them.
CHUNK = 500


@dataclass(frozen=True)
class Style:
    """How the pictures of a domain are drawn; shares are of the pictures."""

    rotation: float = 0.25  # largest angle, radians
    outline: float = 0.85  # share with a dark outline
    bar: float = 0.1  # share with a bar across the picture
    wobble: float = 0.0  # mean smooth displacement of the silhouette's points, px
    contrast: float = 0.55  # least distance of the colours of object and background, RGB in [0, 1]
    fade: float = 0.0  # largest share of that contrast that is taken away
    medium: Literal["photo", "sketch", "art"] = "photo"


STYLES = {
    "web": Style(),
    "photo": Style(rotation=0.4, outline=0.6, bar=0.25, wobble=1.5, contrast=0.5, fade=0.3),
    "hard": Style(rotation=0.6, outline=0.6, bar=0.5, wobble=2.0, contrast=0.45, fade=0.4),
    "sketch": Style(bar=0.0, medium="sketch"),
    "art": Style(wobble=2.0, medium="art"),
}
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
TINTS = ("neutral", "warm", "cold")
TINT_VALUES = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.86, 0.66], [0.70, 0.88, 1.0]])
GRAINS = ("clean", "grainy", "noisy")
BLURS = ("sharp", "soft", "blurry")


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
    tint: Tensor
    grain: Tensor
    blur: Tensor
    sticker: Tensor
    watermark: Tensor

    def __len__(self) -> int:
        return len(self.label)


def sample_factors(labels: Tensor, rng: torch.Generator, style: Style) -> Factors:
    """Draw the class-irrelevant factors of pictures whose classes are given."""
    n = len(labels)

    def pick(k: int) -> Tensor:
        return torch.randint(k, (n,), generator=rng)

    def rarely(p: float) -> Tensor:
        return torch.rand(n, generator=rng) < p

    def level() -> Tensor:
        return torch.multinomial(torch.tensor([0.6, 0.25, 0.15]), n, replacement=True, generator=rng)

    def texture(p_plain: float) -> Tensor:
        return torch.where(rarely(p_plain), 0, 1 + pick(len(TEXTURES) - 1))

    colour, background = pick(len(COLOURS)), pick(len(COLOURS))
    for _ in range(8):
        alike = (COLOUR_VALUES[background] - COLOUR_VALUES[colour]).norm(dim=1) < style.contrast
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
        tint=level(),
        grain=level(),
        blur=level(),
        sticker=rarely(0.3),
        watermark=rarely(0.25),
    )


def draw(factors: Factors, rng: torch.Generator, style: Style) -> Tensor:
    """Render the pictures: uint8 RGB, (n, 3, 56, 56)."""
    n = len(factors)
    ramp = torch.linspace(-1, 1, SIDE)
    v, u = (axis.expand(n, SIDE, SIDE) for axis in torch.meshgrid(ramp, ramp, indexing="ij"))

    def uniform(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(n, generator=rng)).view(n, 1, 1)

    def rarely(p: float) -> Tensor:
        return (torch.rand(n, generator=rng) < p).view(n, 1, 1, 1)

    mask, local_u, local_v = _silhouette(factors, uniform, rng, style)
    if style.medium == "sketch":
        edge = (F.max_pool2d(mask, 3, 1, 1) + F.max_pool2d(-mask, 3, 1, 1)).clamp(0, 1)
        return _pixels((0.95 - 0.85 * edge).expand(n, 3, SIDE, SIDE))
    image = _surface(factors.background, factors.background_texture, u, v, uniform, rng)
    subject = _surface(factors.colour, factors.texture, local_u, local_v, uniform, rng)
    if style.medium == "art":
        image, subject = (0.5 + 0.5 * torch.sin(12 * x) for x in (image, subject))
    fade = uniform(0, style.fade)[:, None]
    subject = subject * (1 - fade) + image.mean((2, 3), keepdim=True) * fade
    outline = (F.max_pool2d(mask, 5, 1, 2) - mask).clamp(0, 1) * rarely(style.outline)
    image = image * (1 - outline) + 0.03 * outline
    image = image * (1 - mask) + subject * mask
    extra = _extra(factors, u, v, uniform)
    image = image * (1 - extra) + _jittered(factors.extra_colour, rng) * extra
    bar = _bar(u, v, uniform) * rarely(style.bar)
    image = image * (1 - bar) + torch.rand(n, 3, 1, 1, generator=rng) * bar
    image = image * _light(factors.light, u, v, uniform) * TINT_VALUES[factors.tint][:, :, None, None]
    image = _blur(image, factors.blur)
    image = _sticker(_watermark(image, factors.watermark, u, v, uniform), factors.sticker, rng)
    low, high = torch.tensor([0.0, 0.05, 0.11])[factors.grain], torch.tensor([0.02, 0.09, 0.16])[factors.grain]
    grain = low + (high - low) * torch.rand(n, generator=rng)
    return _pixels(image + torch.randn(image.shape, generator=rng) * grain[:, None, None, None])


def _pixels(image: Tensor) -> Tensor:
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def make(labels: Sequence[int] | Tensor, style: Style, *purpose: str | int) -> tuple[Tensor, Factors]:
    """Draw pictures of the given classes, indices into `silhouettes.NAMES`.

    `purpose` names the generator, so two purposes share no picture.

    Returns: images, uint8 (n, 3, 56, 56), and their factors.
    """
    rng = generator(VERSION, "world", *purpose)
    labels = torch.as_tensor(labels)
    images, factors = [], []
    for part in labels.split(CHUNK):
        factors.append(sample_factors(part, rng, style))
        images.append(draw(factors[-1], rng, style))
    joined = {name: torch.cat([getattr(f, name) for f in factors]) for name in vars(factors[0])}
    return torch.cat(images), Factors(**joined)


def _silhouette(f: Factors, uniform, rng: torch.Generator, style: Style) -> tuple[Tensor, Tensor, Tensor]:
    """The subject's mask (n, 1, h, w) after rotation, scale and shift, and the coordinates on it."""
    n = len(f)
    angle = uniform(-style.rotation, style.rotation)
    scale = torch.where(f.size.view(n, 1, 1) == 0, uniform(0.58, 0.66), uniform(0.74, 0.88))
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
    if style.wobble:
        control = torch.randn(n, 2, 4, 4, generator=rng)
        field = F.interpolate(control, size=(SIDE, SIDE), mode="bicubic", align_corners=True)
        # The mean absolute value of a standard normal number is .8.
        grid = grid + field.permute(0, 2, 3, 1) * (style.wobble / 0.8 * 2 / SIDE)
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


def _bar(u: Tensor, v: Tensor, uniform) -> Tensor:
    """The mask of a bar across the picture: (n, 1, h, w)."""
    angle, offset, half = uniform(0, math.pi), uniform(-0.45, 0.45), uniform(0.07, 0.16)
    return ((half - (u * angle.cos() + v * angle.sin() - offset).abs()) * 28 + 0.5).clamp(0, 1)[:, None]


def _blur(image: Tensor, blur: Tensor) -> Tensor:
    """Each level of blur is two means over 3 x 3 px more."""
    level = blur.view(-1, 1, 1, 1)
    for k in range(1, len(BLURS)):
        soft = image
        for _ in range(2):
            soft = F.avg_pool2d(F.pad(soft, (1, 1, 1, 1), mode="replicate"), 3, 1)
        image = torch.where(level >= k, soft, image)
    return image


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
