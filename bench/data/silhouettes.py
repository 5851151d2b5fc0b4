"""The silhouettes of the embedded world.

20 are drawn by a function each, 30 are pictograms of a font, 12 are flowers that differ in the number and shape of
their petals.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw
from torch import Tensor


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

    def petal(self, angle: float, bloom: "Bloom") -> None:
        """A petal that points to an angle (radians): widest at two thirds of its length, or a third if pointed."""
        cos, sin, length = math.cos(angle), math.sin(angle), bloom.outer - bloom.inner
        shape = (lambda t: t**0.6 * (1 - t) / 0.4) if bloom.pointed else (lambda t: (t * (1 - t**3)) ** 0.5 / 0.73)
        along = [k / 24 for k in range(25)]
        side = [(bloom.inner + length * t, bloom.half_width * shape(t)) for t in along]
        outline = side + [(x, -y) for x, y in reversed(side)]
        self.polygon(*((cos * x - sin * y, sin * x + cos * y) for x, y in outline))


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


SILHOUETTES: dict[str, Callable[[_Pen], None]] = {
    "banana": _banana, "star": _star, "heart": _heart, "ring": _ring, "cross": _cross,
    "house": _house, "tree": _tree, "fish": _fish, "arrow": _arrow, "key": _key,
    "cup": _cup, "hourglass": _hourglass, "flower": _flower, "ladder": _ladder, "anchor": _anchor,
    "umbrella": _umbrella, "mushroom": _mushroom, "lightning": _lightning, "butterfly": _butterfly,
    "bottle": _bottle,
}  # fmt: skip


# Pictograms of the font DejaVu Sans, which matplotlib ships, that have natural names.
PICTOGRAMS = {
    "airplane": "✈", "scissors": "✂", "telephone": "☎", "envelope": "✉", "pencil": "✏",
    "sun": "☀", "cloud": "☁", "skull": "☠", "horse": "♞", "castle": "♜",
    "crown": "♛", "bishop": "♝", "pawn": "♟", "face": "☻", "note": "♫",
    "gear": "⚙", "spade": "♠", "diamond": "♦", "flag": "⚑", "snowflake": "❄",
    "hand": "☛", "scales": "⚖", "swords": "⚔", "hammer": "⚒", "urn": "⚱",
    "wheel": "☸", "clover": "☘", "monkey": "\U0001f435", "mouse": "\U0001f42d", "cat": "\U0001f431",
}  # fmt: skip


@dataclass(frozen=True)
class Bloom:
    """A flower seen from above; lengths are shares of half the picture's side."""

    petals: int
    half_width: float  # of a petal
    inner: float = 0.1  # where petals begin
    outer: float = 0.95  # where they end
    pointed: bool = False
    eye: float = 0.2  # radius of the centre
    hole: float = 0.0  # radius of a hole in the centre


FLOWERS = {
    "trillium": Bloom(3, 0.40, pointed=True, eye=0.1),
    "poppy": Bloom(4, 0.46, eye=0.3),
    "primrose": Bloom(5, 0.32, eye=0.15, hole=0.1),
    "buttercup": Bloom(5, 0.24, eye=0.3),
    "lily": Bloom(6, 0.22, pointed=True, eye=0.2),
    "daffodil": Bloom(6, 0.26, eye=0.42, hole=0.28),
    "clematis": Bloom(8, 0.20, pointed=True, eye=0.15),
    "cosmos": Bloom(8, 0.19, eye=0.25, hole=0.15),
    "daisy": Bloom(12, 0.10, eye=0.3),
    "sunflower": Bloom(16, 0.10, inner=0.4, pointed=True, eye=0.55),
    "aster": Bloom(20, 0.05, eye=0.25),
    "gerbera": Bloom(14, 0.09, inner=0.3, eye=0.5, hole=0.3),
}


def _flower_of(bloom: Bloom) -> Callable[[_Pen], None]:
    def draw(p: _Pen) -> None:
        for k in range(bloom.petals):
            p.petal(2 * math.pi * k / bloom.petals, bloom)
        p.disc(0, 0, bloom.eye)
        p.disc(0, 0, bloom.hole, ink=0)

    return draw


def _pictogram(sign: str, side: int) -> Image.Image:
    """A sign of the font, its longer side as long as the square's. From outlines: renderers of fonts differ."""
    # Here, as matplotlib takes longer to import than torch.
    from matplotlib import get_data_path
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    font = FontProperties(fname=f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf")
    outlines = TextPath((0, 0), sign, size=side, prop=font).to_polygons()
    points = np.concatenate(outlines)
    low, high = points.min(0), points.max(0)
    scale = 0.95 * side / (high - low).max()
    image = Image.new("1", (side, side))
    for outline in outlines:
        at = (outline - (low + high) / 2) * scale * [1, -1] + side / 2
        part = Image.new("1", (side, side))
        ImageDraw.Draw(part).polygon([tuple(p) for p in at], fill=1)
        # An outline within another is a hole.
        image = ImageChops.logical_xor(image, part)
    return image.convert("L")


NAMES = (*SILHOUETTES, *PICTOGRAMS, *FLOWERS)


@cache
def stencils() -> Tensor:
    """The silhouettes of `NAMES` as masks in [0, 1]: (62, 96, 96), drawn large and averaged down."""
    side, scale = 96, 4
    drawn = []
    for silhouette in [*SILHOUETTES.values(), *(_flower_of(bloom) for bloom in FLOWERS.values())]:
        pen = _Pen(side * scale)
        silhouette(pen)
        drawn.append(pen.image)
    drawn[len(SILHOUETTES) : len(SILHOUETTES)] = [_pictogram(sign, side * scale) for sign in PICTOGRAMS.values()]
    small = [np.asarray(image.resize((side, side), Image.Resampling.BOX), dtype=np.float32) for image in drawn]
    stencils = torch.from_numpy(np.stack(small))
    return stencils / stencils.amax((1, 2), keepdim=True)
