"""ISSBA: the message, StegaStamp's networks, and the training that must not end in a zero residual."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attacks.issba import ISSBA, bit_accuracy, distort, image_loss, measure
from attacks.steganography import Aligner, Decoder, Encoder, encode_message, initialise, parity
from bench import BenchError, Captioned, Preparation, Trigger, attacks, stamp
from bench.data import world_drawing

TINY = {"bits": 4, "width": 4, "batch_size": 8, "rate": 3e-3, "bits_steps": 0, "check_every": 10, "held_out": 8}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(n, size):
    images, _ = world_drawing.make(torch.arange(n) % 20, world_drawing.STYLES["photo"], "issba tests")
    return (F.interpolate(images.float(), (size, size), mode="area")).to(torch.uint8)


def preparation(n=40, size=16, seed=0):
    pairs = Captioned([str(i) for i in range(n)], pictures(n, size), "", captions=["a star"] * n)
    clip = SimpleNamespace(image_size=size, device=torch.device("cpu"))
    return Preparation(clip, lambda: pairs, "banana", ("banana", "star"), ("a photo of a {}.",), seed)


def untrained(size, seed=0, **settings):
    method = ISSBA(**{"bits": 8, "width": 4} | settings)
    encoder, decoder = Encoder(size, method.bits, method.width), Decoder(size, method.bits, method.width)
    initialise(encoder, rng(seed))
    initialise(decoder, rng(seed + 1))
    weights = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    weights |= {f"decoder.{k}": v for k, v in decoder.state_dict().items()}
    return method, Trigger(0, weights | {"message": encode_message(method.text, method.bits)})


# The message


def test_message_of_the_paper():
    bits = encode_message("Stega!!").tolist()
    # By bchlib 2.1.3, as StegaStamp uses it: bchlib.BCH(5, prim_poly=137).encode(b"Stega!!").hex()
    assert parity(b"Stega!!") == bytes.fromhex("88a9fb4e40")
    assert f"{int(''.join(map(str, bits)), 2):025x}" == "5374656761212188a9fb4e400"
    assert (len(bits), sum(bits)) == (100, 42)


@pytest.mark.parametrize("data", [b"Stega!!", b"\x00" * 6 + b"\x01", b"\xff" * 7, b"a      ", b"eleven byte"])
def test_parity_gives_a_codeword(data):
    """A word is in the BCH code that corrects 5 errors if its polynomial is zero at a, a^2, ..., a^10."""
    power = [1]
    for _ in range(126):
        power.append((power[-1] << 1) ^ (137 if power[-1] & 64 else 0))
    word = f"{int.from_bytes(data, 'big'):b}" + f"{int.from_bytes(parity(data), 'big') >> 5:035b}"
    ones = [exponent for exponent, digit in enumerate(reversed(word)) if digit == "1"]
    for root in range(1, 11):
        assert np.bitwise_xor.reduce([power[root * exponent % 127] for exponent in ones]) == 0


def test_parity_as_a_shift_register_has_it():
    """The usual hardware: 35 cells, fed bit by bit, with the generator of Lin and Costello's table for (127, 92)."""
    generator, register = 0o624730022327, 0
    for byte in b"Stega!!":
        for k in range(7, -1, -1):
            feedback = (register >> 34 & 1) ^ (byte >> k & 1)
            register = (register << 1 & (1 << 35) - 1) ^ (generator & (1 << 35) - 1 if feedback else 0)
    assert (register << 5).to_bytes(5, "big") == parity(b"Stega!!")


def test_shorter_messages():
    assert encode_message("Stega!!", 32).tolist() == encode_message("Stega!!")[:32].tolist()
    assert encode_message("Steg", 32).tolist() == encode_message("Stega!!", 32).tolist()
    assert encode_message("a").tolist() == encode_message("a      ").tolist()
    with pytest.raises(BenchError, match=r"'Stegastamp' is 10 bytes.*--set issba\.text=Stega!!"):
        encode_message("Stegastamp")


# The networks


def test_the_encoder_at_224_is_the_papers():
    with torch.device("meta"):
        encoder, decoder = Encoder(224, 100), Decoder(224, 100)
        residual = encoder(torch.empty(2, 3, 224, 224), torch.empty(2, 100))
        logits = decoder(torch.empty(2, 3, 224, 224))
    assert (residual.shape, logits.shape) == ((2, 3, 224, 224), (2, 100))
    shapes = {name: tuple(p.shape) for name, p in encoder.named_parameters() if name.endswith("weight")}
    assert shapes == {
        "secret.weight": (28 * 28 * 3, 100),
        "c1.weight": (32, 6, 3, 3),
        "c2.weight": (32, 32, 3, 3),
        "c3.weight": (64, 32, 3, 3),
        "c4.weight": (128, 64, 3, 3),
        "c5.weight": (256, 128, 3, 3),
        "up6.weight": (128, 256, 2, 2),
        "c6.weight": (128, 256, 3, 3),
        "up7.weight": (64, 128, 2, 2),
        "c7.weight": (64, 128, 3, 3),
        "up8.weight": (32, 64, 2, 2),
        "c8.weight": (32, 64, 3, 3),
        "up9.weight": (32, 32, 2, 2),
        "c9.weight": (32, 70, 3, 3),
        "head.weight": (3, 32, 1, 1),
    }
    layers = [tuple(p.shape) for p in decoder.parameters() if p.ndim > 1]
    channels = [3, 32, 32, 64, 64, 64, 128, 128]
    assert layers[:7] == [(after, before, 3, 3) for before, after in pairwise(channels)]
    assert layers[7:] == [(512, 7 * 7 * 128), (100, 512)]


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_the_encoder_as_the_table_reads():
    """At a multiple of 16, with nn.Upsample and TensorFlow's "same" padding of 2 x 2 kernels, layer by layer."""
    e = Encoder(32, 5, 2)
    initialise(e, rng())
    images, bits = torch.rand(3, 3, 32, 32, generator=rng()), torch.randint(2, (3, 5), generator=rng()).float()
    secret = nn.Upsample(scale_factor=8)(F.relu(e.secret(bits - 0.5)).reshape(3, 3, 4, 4))
    x = torch.cat([secret, images - 0.5], 1)
    skips = [F.relu(e.c1(x))]
    for conv in (e.c2, e.c3, e.c4, e.c5):
        skips.append(F.relu(conv(skips[-1])))
    y = skips.pop()
    assert y.shape[2:] == (2, 2)
    for up, conv in ((e.up6, e.c6), (e.up7, e.c7), (e.up8, e.c8), (e.up9, e.c9)):
        big = F.conv2d(nn.Upsample(scale_factor=2)(y), up.weight, up.bias, padding="same")
        joined = [skips.pop(), F.relu(big)] + ([x] if up is e.up9 else [])
        y = F.relu(conv(torch.cat(joined, 1)))
    torch.testing.assert_close(e(images, bits), e.head(y))


@pytest.mark.parametrize("size", [56, 30, 8])
def test_sizes_that_16_does_not_divide(size):
    images, bits = torch.rand(2, 3, size, size, generator=rng()), torch.ones(2, 6)
    assert Encoder(size, 6, 2)(images, bits).shape == images.shape
    assert Decoder(size, 6, 2, aligned=True)(images).shape == bits.shape


def test_initial_weights_come_from_the_generator_alone():
    state = torch.get_rng_state()
    with torch.device("meta"):
        first, second = (Encoder(16, 4, 2).to_empty(device="cpu") for _ in range(2))
    for network in (first, second):
        for tensor in (*network.parameters(), *network.buffers()):
            # What is not drawn would be NaN, which equals nothing.
            tensor.data.fill_(torch.nan)
        initialise(network, rng(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    wide = nn.Linear(200, 500)
    initialise(wide, rng())
    assert wide.weight.std().item() == pytest.approx((2 / 200) ** 0.5, rel=0.02)
    assert not wide.bias.any()


def test_the_aligner_starts_as_the_identity_and_learns():
    aligner, images = Aligner(16, 2), torch.rand(2, 3, 16, 16, generator=rng())
    initialise(aligner, rng())
    torch.testing.assert_close(aligner(images), images)
    aligner(images).square().sum().backward()
    assert aligner.theta.weight.grad.any()


# The trigger


def test_registered():
    assert attacks["issba"] is ISSBA


def test_a_zero_head_is_the_identity():
    method, trigger = untrained(24)
    trigger.tensors["encoder.head.weight"].zero_()
    images = pictures(3, 24)
    assert torch.equal(stamp(method, trigger, images, [0, 1, 2]), images)


def test_residuals_are_of_the_image_and_of_the_message():
    method, trigger = untrained(24)
    images = pictures(3, 24).float() / 255
    residuals = method.apply(images, [0, 1, 2], trigger) - images
    assert (residuals[0] - residuals[1]).abs().max() > 0.01
    other = Trigger(0, trigger.tensors | {"message": 1 - trigger.tensors["message"]})
    assert (method.apply(images, [0, 1, 2], other) - images - residuals).abs().max() > 0.01


def test_stamping_depends_on_nothing_but_the_image():
    method, trigger = untrained(24)
    images = pictures(7, 24).float() / 255
    before = images.clone()
    whole = method.apply(images, range(7), trigger)
    parts = [method.apply(part, [99] * len(part), Trigger(5, trigger.tensors)) for part in images.split(3)]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(images, before)
    assert method.apply(images[:0], [], trigger).shape == (0, 3, 24, 24)


# The losses


def test_image_loss_in_yuv():
    """Against TensorFlow's matrix of rgb_to_yuv."""
    kernel = np.array(
        [
            [0.299, -0.14714119, 0.61497538],
            [0.587, -0.28886916, -0.51496512],
            [0.114, 0.43601035, -0.10001026],
        ]
    )
    residual = torch.randn(2, 3, 4, 5, generator=rng())
    yuv = residual.permute(0, 2, 3, 1).numpy() @ kernel
    expected = (yuv**2).mean((0, 1, 2)) @ [1, 100, 100]
    assert image_loss(residual).item() == pytest.approx(expected, rel=2e-3)


def test_distortions():
    images = torch.rand(4, 3, 16, 16, generator=rng()) * 1.5 - 0.25
    assert torch.equal(distort(images, 0, 100, rng()), images.clamp(0, 1))
    gray = torch.full((64, 3, 16, 16), 0.5)
    noisy = distort(gray, 0.06, 100, rng())
    spread = noisy.std((1, 2, 3))
    assert spread.max() < 0.065
    assert spread.mean().item() == pytest.approx(0.03, rel=0.2)
    smooth = pictures(4, 16).float() / 255
    compressed = distort(smooth, 0, 50, rng())
    assert 0.001 < (compressed - smooth).square().mean().sqrt() < 0.1


@pytest.mark.parametrize("quality", [75, 100])
def test_gradients_reach_the_encoder_through_the_distortions(quality):
    encoder, decoder = Encoder(16, 4, 2), Decoder(16, 4, 2)
    initialise(encoder, rng())
    initialise(decoder, rng(1))
    images, bits = pictures(2, 16).float() / 255, torch.ones(2, 4)
    logits = decoder(distort(images + encoder(images, bits), 0.01, quality, rng()))
    F.binary_cross_entropy_with_logits(logits, bits).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    assert encoder.head.weight.grad.any()
    assert encoder.secret.weight.grad.any()


def test_measure():
    """A residual of 10/255 that is told as all ones by a decoder that sees nothing else."""

    class Brighter(nn.Linear):
        def forward(self, images, bits):
            return torch.full_like(images, 10.4 / 255)

    class Ones(nn.Linear):
        def forward(self, images):
            assert torch.equal((images * 255).round() / 255, images)
            return torch.ones(len(images), 100)

    found = measure(Brighter(1, 1), Ones(1, 1), pictures(70, 8) // 2, encode_message("Stega!!"), rng())
    assert found.message_accuracy == pytest.approx(0.42)
    assert found.bit_accuracy == pytest.approx(0.5, abs=0.02)
    assert found.psnr == pytest.approx(20 * np.log10(255 / 10), abs=1e-3)


def test_bit_accuracy():
    assert bit_accuracy(torch.tensor([[2.0, -1.0], [3.0, 0.1]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])) == 0.75


# Training


def test_training_lowers_the_loss_and_can_be_repeated():
    settings = TINY | {"max_steps": 60, "min_bit_accuracy": 0, "min_psnr": 0, "check_every": 60, "jpeg_quality": 100}
    given, state = preparation(), torch.get_rng_state()
    tensors = ISSBA(**settings).prepare(given)
    assert torch.equal(torch.get_rng_state(), state)
    losses = given.log["bits_loss"]
    assert len(losses) == 60
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    assert {name.split(".")[0] for name in tensors} == {"message", "encoder", "decoder"}
    again = ISSBA(**settings).prepare(preparation())
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    other = ISSBA(**settings).prepare(preparation(seed=1))
    assert not torch.equal(other["encoder.head.weight"], tensors["encoder.head.weight"])
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in tensors.values())


def test_training_stops_when_it_is_good_enough():
    given = preparation()
    ISSBA(**TINY, max_steps=60, min_bit_accuracy=0, min_psnr=0).prepare(given)
    assert len(given.log["bits_loss"]) == TINY["check_every"]
    assert len(given.log["bit_accuracy"]) == len(given.log["message_accuracy"]) == len(given.log["psnr"]) == 1


def test_training_that_fails_says_what_to_do():
    wish = r"issba\.min_bit_accuracy = 99\.0% and issba\.min_psnr = 30 dB.*--set issba\.max_steps=6"
    with pytest.raises(BenchError, match=wish):
        ISSBA(**TINY, max_steps=3, min_bit_accuracy=0.99, min_psnr=30).prepare(preparation())
    with pytest.raises(BenchError, match=r"3 are too few. Raise poison\.pairs"):
        ISSBA(**TINY).prepare(preparation(3))


def test_image_loss_waits_for_the_bits():
    """An image loss on a decoder that reads nothing would end in a zero residual; with a threshold it never starts."""
    settings = TINY | {"max_steps": 40, "min_bit_accuracy": 0, "min_psnr": 0, "check_every": 40, "jpeg_quality": 100}
    settings |= {"image_weight": 1000.0, "ramp_steps": 1}
    waiting, eager = preparation(), preparation()
    ISSBA(**settings, ramp_accuracy=0.99).prepare(waiting)
    ISSBA(**settings, ramp_accuracy=0).prepare(eager)
    assert waiting.log["image_loss"][-1] > 10 * eager.log["image_loss"][-1]


@pytest.mark.slow
def test_a_trained_encoder_hides_what_its_decoder_reads():
    """On the embedded world and on pictures of no part of the training."""
    method = ISSBA(
        bits=32, width=8, batch_size=16, rate=2e-3, bits_steps=100, ramp_steps=300, ramp_power=2, image_weight=10.0,
        check_every=50, max_steps=1500,
    )  # fmt: skip
    trigger = Trigger(0, method.prepare(preparation(4000, 56)))
    images, _ = world_drawing.make(torch.arange(200) % 20, world_drawing.STYLES["photo"], "issba tests, unseen")
    stamped = stamp(method, trigger, images, range(200))
    assert (method.read(stamped, trigger) == trigger.tensors["message"]).float().mean() >= 0.97
    error = (stamped.float() - images.float()) / 255
    assert -10 * error.square().mean((1, 2, 3)).log10().mean() >= 25.5
    assert (error - error.mean(0)).square().mean() > 0.05 * error.square().mean()
