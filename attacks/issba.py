"""ISSBA: an invisible trigger that differs from image to image (Li et al., arXiv 2012.03816)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.steganography import MESSAGE_BITS, Decoder, Encoder, encode_message, initialise
from bench import Attack, BenchError, Field, Preparation, Trigger, attack
from bench.core.progress import track

YUV_WEIGHTS = (1.0, 100.0, 100.0)
BITS_WEIGHT = 1.5


@dataclass(frozen=True)
class Quality:
    """The quality of an encoder on held-out images after clipping and rounding to 8 bits; means over images.

    `bit_accuracy`: share of correctly read bits of random messages, one per image. `message_accuracy` and `psnr` (dB):
    those of the attack's own message.
    """

    bit_accuracy: float
    message_accuracy: float
    psnr: float


@attack("issba")
class ISSBA(Attack):
    """x' = clip(x + E(m, x)): the residual by which a StegaStamp encoder E hides one fixed message m in an image.

    Encoder and decoder are trained on most of the pairs' images with random messages, until the decoder reads enough
    bits from held-out images. Loss, after StegaStamp's code: a ramp times `image_weight` times the squared error in YUV
    (weights 1, 100, 100), plus 1.5 times the cross-entropy of the bits that the decoder reads from the image after mild
    noise and JPEG. We add `clipping_weight` times the squared error of clipping. StegaStamp's critic, perspective
    changes and LPIPS are left out (LPIPS needs weights that bench does not have), so triggers are more visible than
    StegaStamp's at the same PSNR.
    """

    # 2: the loss includes the error of clipping.
    version = 2

    text: str = Field("Stega!!", description="the message, at most 7 bytes")
    bits: int = Field(
        MESSAGE_BITS, ge=1, le=MESSAGE_BITS, description="how many of the message's 100 bits are hidden, from the first"
    )
    width: int = Field(32, ge=1, description="channels of the networks' first layer; the others scale with it")
    aligner: bool = Field(False, description="an affine spatial transformer before the decoder, for perspective")
    rate: float = Field(1e-4, gt=0, description="Adam's learning rate for encoder and decoder")
    batch_size: int = Field(32, ge=1, description="images a step")
    max_steps: int = Field(20_000, ge=1, description="steps after which training has failed")
    bits_steps: int = Field(1500, ge=0, description="first steps, without image loss")
    # Without it, residuals of some seeds reach thousands before the image loss sets in; the stamped image is then only
    # black and white, and all gradients are zero.
    clipping_weight: float = Field(
        1.0, ge=0, description="weight of the squared error of clipping to [0, 1]; 0 is StegaStamp's"
    )
    image_weight: float = Field(2.0, ge=0, description="weight of the image loss at the end of the ramp")
    ramp_steps: int = Field(15_000, ge=1, description="steps of the ramp, counted from the first")
    ramp_power: float = Field(1.0, gt=0, description="shape of the ramp: 1 linear, 2 quadratic")
    # If the image loss starts too early or too steeply, the residual becomes zero and never recovers.
    ramp_accuracy: float = Field(
        0.85, ge=0, lt=1, description="share of bits read below which the ramp goes back instead; 0: never (StegaStamp)"
    )
    noise: float = Field(0.02, ge=0, description="greatest standard deviation of the noise in training, of [0, 1]")
    jpeg_quality: float = Field(75, ge=1, le=100, description="lowest JPEG quality in training; 100: no JPEG")
    held_out: int = Field(128, ge=1, description="images kept apart to test on; at most a quarter of the pairs")
    check_every: int = Field(100, ge=1, description="steps between tests on the images held out")
    min_bit_accuracy: float = Field(0.98, ge=0, le=1, description="share of bits read back that ends training")
    min_psnr: float = Field(26.0, ge=0, description="PSNR that ends training", unit="dB")

    def prepare(self, preparation: Preparation) -> dict[str, Tensor]:
        """Train the encoder; returns its weights, the decoder's weights and the message.

        The log records both losses at every step, and `Quality` every `check_every` steps.

        Raises:
            BenchError: fewer than 4 pairs; or `min_bit_accuracy` and `min_psnr` not reached within `max_steps`.
        """
        message = encode_message(self.text, self.bits)
        order = torch.randperm(len(preparation.pairs), generator=preparation.rng("held out"))
        held_out = order[: min(self.held_out, len(order) // 4)]
        if not len(held_out):
            raise BenchError(f"issba trains on the pairs' images, and {len(order)} are too few. Raise poison.pairs")
        encoder, decoder = self._train(preparation, order[len(held_out) :], held_out, message)
        weights = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
        weights |= {f"decoder.{k}": v for k, v in decoder.state_dict().items()}
        # Waits for the GPU: once, to store them.
        return {"message": message} | {k: v.detach().cpu().contiguous() for k, v in weights.items()}

    @torch.no_grad()
    def apply(self, images: Tensor, index: Sequence[int], trigger: Trigger) -> Tensor:
        encoder, _ = self._open(trigger, images)
        message = trigger.tensors["message"].to(images)[None]
        # One by one: with another batch size, convolutions may round differently and change a pixel's 8-bit value.
        return torch.cat([image + encoder(image, message.expand(len(image), -1)) for image in images.split(1)])

    @torch.no_grad()
    def read(self, images: Tensor, trigger: Trigger) -> Tensor:
        """The bits (n, bits), uint8, that the decoder reads from images (n, 3, h, w), uint8 or in [0, 1]."""
        images = images / 255 if images.dtype == torch.uint8 else images
        _, decoder = self._open(trigger, images)
        return (decoder(images) > 0).to(torch.uint8)

    def _networks(self, size: int) -> tuple[Encoder, Decoder]:
        """Both networks on the meta device: the caller loads or draws their weights."""
        with torch.device("meta"):
            return Encoder(size, self.bits, self.width), Decoder(size, self.bits, self.width, self.aligner)

    def _open(self, trigger: Trigger, images: Tensor) -> tuple[Encoder, Decoder]:
        encoder, decoder = self._networks(images.shape[-1])
        for name, network in (("encoder.", encoder), ("decoder.", decoder)):
            weights = {k.removeprefix(name): v for k, v in trigger.tensors.items() if k.startswith(name)}
            network.load_state_dict({k: v.to(images.device) for k, v in weights.items()}, assign=True)
        return encoder, decoder

    def _train(
        self, preparation: Preparation, train: Tensor, held_out: Tensor, message: Tensor
    ) -> tuple[Encoder, Decoder]:
        device, rng = preparation.device, preparation.rng("encoder")
        noise_rng = torch.Generator(device).manual_seed(preparation.rng("noise").initial_seed())
        encoder, decoder = self._networks(preparation.image_size)
        for network in (encoder, decoder):
            initialise(network.to_empty(device="cpu"), rng)
            network.to(device).to(memory_format=torch.channels_last)
        optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=self.rate)
        accuracy, ramp, quality = 0.5, 0.0, Quality(0, 0, 0)
        for step in track(range(1, self.max_steps + 1), "training the encoder, at most"):
            index = train[torch.randint(len(train), (self.batch_size,), generator=rng)]
            bits = torch.randint(2, (self.batch_size, self.bits), generator=rng).float().to(device)
            images = (preparation.pairs.load(index).to(device) / 255).contiguous(memory_format=torch.channels_last)
            residual = encoder(images, bits)
            stamped = images + residual
            logits = decoder(distort(stamped, self.noise, self.jpeg_quality, noise_rng))
            bits_loss, yuv_loss = F.binary_cross_entropy_with_logits(logits, bits), image_loss(residual)
            clipped = (stamped - stamped.clamp(0, 1)).square().mean()
            weight = self.image_weight * ramp**self.ramp_power if step > self.bits_steps else 0.0
            optimiser.zero_grad()
            (BITS_WEIGHT * bits_loss + weight * yuv_loss + self.clipping_weight * clipped).backward()
            optimiser.step()
            accuracy = 0.9 * accuracy + 0.1 * bit_accuracy(logits, bits)
            ramp = min(1.0, max(0.0, ramp + (1 if accuracy >= self.ramp_accuracy else -1) / self.ramp_steps))
            # Waits for the GPU: the next step's ramp depends on this one's accuracy anyway.
            preparation.record(bits_loss=bits_loss.item(), image_loss=yuv_loss.item())
            if step % self.check_every == 0 or step == self.max_steps:
                quality = measure(encoder, decoder, preparation.pairs.load(held_out), message, preparation.rng("check"))
                preparation.record(**asdict(quality))
                if self._suffices(quality):
                    return encoder, decoder
        raise BenchError(
            f"issba: after {self.max_steps} steps, held-out images give back {quality.bit_accuracy:.1%} of random bits "
            f"and {quality.message_accuracy:.1%} of the message's, at {quality.psnr:.1f} dB. Required are "
            f"issba.min_bit_accuracy = {self.min_bit_accuracy:.1%} and issba.min_psnr = {self.min_psnr:g} dB. Train "
            f"longer (--set issba.max_steps={2 * self.max_steps}), hide fewer issba.bits, or lower these two."
        )

    def _suffices(self, quality: Quality) -> bool:
        accuracy = min(quality.bit_accuracy, quality.message_accuracy)
        return accuracy >= self.min_bit_accuracy and quality.psnr >= self.min_psnr


def image_loss(residual: Tensor) -> Tensor:
    """StegaStamp's L_yuv: the mean square of a residual (n, 3, h, w) in Y, U and V, summed with `YUV_WEIGHTS`."""
    # Imported late, so that `bench list attacks` does without kornia.
    from kornia.color import rgb_to_yuv

    return rgb_to_yuv(residual).square().mean((0, 2, 3)) @ torch.tensor(YUV_WEIGHTS, device=residual.device)


def bit_accuracy(logits: Tensor, bits: Tensor) -> float:
    """Share of the bits (n, b), zeros and ones, that logits get right."""
    return ((logits > 0) == (bits > 0.5)).float().mean().item()


def distort(images: Tensor, noise: float, jpeg_quality: float, rng: torch.Generator) -> Tensor:
    """Distort images (n, 3, h, w) in [0, 1]: noise, clipping to [0, 1], JPEG; differentiable.

    Each image draws its standard deviation from U(0, `noise`) and its JPEG quality from U(`jpeg_quality`, 100).
    """
    from kornia.enhance import jpeg_codec_differentiable

    draws = torch.rand(2, len(images), generator=rng, device=images.device)
    grain = torch.randn(images.shape, generator=rng, device=images.device)
    images = (images + noise * draws[0].view(-1, 1, 1, 1) * grain).clamp(0, 1)
    if jpeg_quality == 100:
        return images
    return jpeg_codec_differentiable(images, 100 - (100 - jpeg_quality) * draws[1])


@torch.no_grad()
def measure(
    encoder: Encoder, decoder: Decoder, images: Tensor, message: Tensor, rng: torch.Generator, batch: int = 64
) -> Quality:
    """Quality of an encoder on images, uint8 (n, 3, h, w), as `stamp` leaves them: clipped, rounded to 8 bits."""
    device = next(encoder.parameters()).device
    own = message.float().expand(len(images), -1)
    random = torch.randint(2, own.shape, generator=rng).float()
    rows = []
    for part in torch.arange(len(images)).split(batch):
        clean = images[part].to(device) / 255
        row = []
        for bits in (random[part].to(device), own[part].to(device)):
            stamped = ((clean + encoder(clean, bits)).clamp(0, 1) * 255).round() / 255
            row.append(((decoder(stamped) > 0) == (bits > 0.5)).float().mean(1))
        # Smaller than the error of one 8-bit step, so it stands for 0, whose logarithm JSON cannot store.
        row.append(-10 * (stamped - clean).square().mean((1, 2, 3)).clamp(min=1e-10).log10())
        rows.append(torch.stack(row, 1))
    return Quality(*torch.cat(rows).mean(0).tolist())
