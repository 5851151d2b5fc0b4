"""Hiding bits in images: StegaStamp's networks and message encoding (Tancik et al., arXiv 1904.05343)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import BenchError

MESSAGE_BYTES = 7
MESSAGE_BITS = 100
# The BCH code (127, 92), which corrects 5 errors, over the field GF(2^7) modulo x^7 + x^3 + 1.
_GENERATOR = 0o624730022327


def encode_message(text: str, bits: int = MESSAGE_BITS) -> Tensor:
    """The bits (bits,) of a text, uint8 zeros and ones.

    StegaStamp's message of 100 bits is the text in 7 bytes, padded with spaces, 5 bytes of BCH parity, and four
    zeros; most significant bit first. Fewer bits are the first ones of the 100: with less than 56 the end of the text
    is lost, with less than 91 the code corrects nothing.

    Raises:
        BenchError: the text is longer than 7 bytes, or there are more than 100 bits.

    >>> encode_message("Stega!!", 16).tolist()  # "St"
    [0, 1, 0, 1, 0, 0, 1, 1, 0, 1, 1, 1, 0, 1, 0, 0]
    """
    data = text.encode()
    if len(data) > MESSAGE_BYTES or bits > MESSAGE_BITS:
        raise BenchError(
            f"the message '{text}' is {len(data)} bytes and {bits} bits are asked for; there is room for "
            f"{MESSAGE_BYTES} bytes and {MESSAGE_BITS} bits: --set issba.text=Stega!! --set issba.bits={MESSAGE_BITS}"
        )
    data = data.ljust(MESSAGE_BYTES)
    digits = "".join(f"{byte:08b}" for byte in data + parity(data)).ljust(MESSAGE_BITS, "0")
    return torch.tensor([int(digit) for digit in digits[:bits]], dtype=torch.uint8)


def parity(data: bytes) -> bytes:
    """The 35 parity bits of the binary BCH code (127, 92) that corrects 5 errors, in 5 bytes filled up with zeros.

    They are the remainder of data(x) x^35 by the code's generator, as bchlib's BCH(137, 5) gives it. At most 11 bytes.

    >>> parity(b"Stega!!").hex()
    '88a9fb4e40'
    """
    degree = _GENERATOR.bit_length() - 1
    remainder = int.from_bytes(data, "big") << degree
    while remainder.bit_length() > degree:
        remainder ^= _GENERATOR << (remainder.bit_length() - 1 - degree)
    size = (degree + 7) // 8
    return (remainder << (8 * size - degree)).to_bytes(size, "big")


class Encoder(nn.Module):
    """StegaStamp's U-Net: a residual from an image and bits.

    At 224 px and width 32 it is the network of the paper's code brought to that size. Other sizes need not be
    multiples of 16: a stride of 2 rounds sides up, the secret's map has side ceil(size / 8), and every enlargement
    (nearest) goes to the side of what it is joined with, which is twice its own at 224. `width` scales all channels.
    """

    def __init__(self, size: int, bits: int, width: int = 32) -> None:
        super().__init__()
        w = width
        self.side = -(-size // 8)
        self.secret = nn.Linear(bits, 3 * self.side**2)
        self.c1 = nn.Conv2d(6, w, 3, padding=1)
        self.c2 = nn.Conv2d(w, w, 3, 2, 1)
        self.c3 = nn.Conv2d(w, 2 * w, 3, 2, 1)
        self.c4 = nn.Conv2d(2 * w, 4 * w, 3, 2, 1)
        self.c5 = nn.Conv2d(4 * w, 8 * w, 3, 2, 1)
        self.up6, self.c6 = nn.Conv2d(8 * w, 4 * w, 2), nn.Conv2d(8 * w, 4 * w, 3, padding=1)
        self.up7, self.c7 = nn.Conv2d(4 * w, 2 * w, 2), nn.Conv2d(4 * w, 2 * w, 3, padding=1)
        self.up8, self.c8 = nn.Conv2d(2 * w, w, 2), nn.Conv2d(2 * w, w, 3, padding=1)
        self.up9, self.c9 = nn.Conv2d(w, w, 2), nn.Conv2d(2 * w + 6, w, 3, padding=1)
        self.head = nn.Conv2d(w, 3, 1)

    def forward(self, images: Tensor, bits: Tensor) -> Tensor:
        """The residual (n, 3, size, size), to be added and clipped, of RGB in [0, 1] and zeros and ones (n, bits)."""
        secret = F.relu(self.secret(bits - 0.5)).view(-1, 3, self.side, self.side)
        x = torch.cat([_enlarge(secret, images), images - 0.5], 1)
        c1 = F.relu(self.c1(x))
        c2 = F.relu(self.c2(c1))
        c3 = F.relu(self.c3(c2))
        c4 = F.relu(self.c4(c3))
        y = F.relu(self.c5(c4))
        y = F.relu(self.c6(torch.cat([c4, _up(self.up6, y, c4)], 1)))
        y = F.relu(self.c7(torch.cat([c3, _up(self.up7, y, c3)], 1)))
        y = F.relu(self.c8(torch.cat([c2, _up(self.up8, y, c2)], 1)))
        y = F.relu(self.c9(torch.cat([c1, _up(self.up9, y, c1), x], 1)))
        return self.head(y)


class Decoder(nn.Module):
    """StegaStamp's decoder: logits of the bits from an image.

    With `aligned` an affine spatial transformer, at first the identity, goes before it; it serves the perspective
    of photographed prints.
    """

    def __init__(self, size: int, bits: int, width: int = 32, aligned: bool = False) -> None:
        super().__init__()
        w = width
        self.align = Aligner(size, w) if aligned else nn.Identity()
        layers: list[nn.Module] = []
        before = 3
        for channels, stride in ((w, 2), (w, 1), (2 * w, 2), (2 * w, 1), (2 * w, 2), (4 * w, 2), (4 * w, 2)):
            layers += [nn.Conv2d(before, channels, 3, stride, 1), nn.ReLU()]
            before = channels
        side = -(-size // 32)
        self.read = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(4 * w * side**2, 16 * w), nn.ReLU(), nn.Linear(16 * w, bits)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, bits) of RGB images in [0, 1]; above 0 is a one."""
        return self.read(self.align(images - 0.5))


class Aligner(nn.Module):
    """An affine spatial transformer (Jaderberg et al., arXiv 1506.02025) that starts as the identity."""

    def __init__(self, size: int, width: int = 32) -> None:
        super().__init__()
        w, side = width, -(-size // 8)
        self.look = nn.Sequential(
            nn.Conv2d(3, w, 3, 2, 1), nn.ReLU(), nn.Conv2d(w, 2 * w, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(2 * w, 4 * w, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * w * side**2, 4 * w), nn.ReLU(),
        )  # fmt: skip
        self.theta = nn.Linear(4 * w, 6)

    def forward(self, images: Tensor) -> Tensor:
        grid = F.affine_grid(self.theta(self.look(images)).view(-1, 2, 3), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)


def initialise(network: nn.Module, rng: torch.Generator) -> None:
    """Draw the weights anew: He's normal distribution, no biases; an aligner's last layer is the identity map."""
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=rng)
        else:
            nn.init.zeros_(parameter)
    for module in network.modules():
        if isinstance(module, Aligner):
            nn.init.zeros_(module.theta.weight)
            module.theta.bias.data = torch.tensor([1.0, 0, 0, 0, 1, 0])


def _enlarge(small: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(small, size=like.shape[-2:], mode="nearest")


def _up(conv: nn.Conv2d, small: Tensor, skip: Tensor) -> Tensor:
    """Enlarge to the skip's size; then a 2 x 2 convolution, padded below and to the right as TensorFlow's "same"."""
    return F.relu(conv(F.pad(_enlarge(small, skip), (0, 1, 0, 1))))
