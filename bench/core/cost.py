"""What a method costs, before it is run: passes of images, and bytes on disk, from the sizes of model and data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """A CLIP with a vision transformer: `tokens` are those of an image, the class token's included."""

    blocks: int
    width: int
    tokens: int
    image_size: int
    embed_dim: int
    parameters: int

    @property
    def work(self) -> float:
        """Multiplications of the image tower's blocks for one image."""
        return self.blocks * self.tokens * (12 * self.width**2 + 2 * self.tokens * self.width)


@dataclass(frozen=True)
class Scale:
    """What an estimate starts from: the model's sizes; classes of the data set, and images that are evaluated."""

    sizes: Sizes
    classes: int
    images: int


@dataclass(frozen=True)
class Work:
    """What making an artefact takes.

    `forward`: images through the image tower. `tuned`: images times epochs, forward and backward through the image
    tower. `contrasted`: pairs times epochs, forward and backward through both towers. `size`: bytes on disk. `pairs`:
    different pairs that are read.
    """

    forward: float = 0.0
    tuned: float = 0.0
    contrasted: float = 0.0
    size: float = 0.0
    pairs: int = 0
