"""Estimated cost of a method: passes through the towers and bytes on disk, from the sizes of model and data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Sizes of a CLIP with a vision transformer; `tokens` counts an image's tokens, the class token included."""

    blocks: int
    width: int
    tokens: int
    image_size: int
    embed_dim: int
    parameters: int

    @property
    def work(self) -> float:
        """Multiplications in the image tower's blocks for one image."""
        return self.blocks * self.tokens * (12 * self.width**2 + 2 * self.tokens * self.width)


@dataclass(frozen=True)
class Scale:
    """The input of an estimate: the sizes of the model, the number of classes, and of evaluated images."""

    sizes: Sizes
    classes: int
    images: int


@dataclass(frozen=True)
class Work:
    """The cost of making one artefact.

    `forward`: images through the image tower. `tuned`: images times epochs, forward and backward through the image
    tower. `contrasted`: pairs times epochs, forward and backward through both towers. `size`: bytes on disk. `pairs`:
    distinct pairs that are read.
    """

    forward: float = 0.0
    tuned: float = 0.0
    contrasted: float = 0.0
    size: float = 0.0
    pairs: int = 0
