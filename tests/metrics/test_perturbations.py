"""Perturbations: names, contract, and effects against independent references."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from bench import BenchError
from metrics.perturbations import PERTURBATIONS, jitter_factors, perturbation

INDEX = [11, 4, 7, 902, 0]


@pytest.fixture
def images() -> Tensor:
    return torch.rand(len(INDEX), 3, 16, 12, generator=torch.Generator().manual_seed(0))


def test_names():
    assert list(PERTURBATIONS) == [
        "gaussian-0.001",
        "gaussian-0.01",
        "gaussian-0.03",
        "gaussian-0.1",
        "blur-3",
        "blur-5",
        "blur-3-v5",
        "jitter",
        "flip",
    ]
    assert perturbation("flip") is PERTURBATIONS["flip"]


def test_an_unknown_name_is_an_error_with_the_next_command():
    with pytest.raises(BenchError) as error:
        perturbation("gaussian-0.02")
    assert "unknown perturbation 'gaussian-0.02'. Did you mean 'gaussian-0.0" in str(error.value)
    assert "\nKnown: blur-3, blur-3-v5, blur-5, flip, gaussian-0.001" in str(error.value)
    assert str(error.value).endswith("--set zero_shot.perturbations=[flip,trigger]")


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_contract(name, images):
    before = images.clone()
    perturbed = perturbation(name)(images, INDEX, 0)
    assert torch.equal(images, before)
    assert perturbed.shape == images.shape
    assert perturbed.dtype == torch.float32
    assert perturbed.min() >= 0
    assert perturbed.max() <= 1
    assert not torch.equal(perturbed, images)
    assert perturbation(name)(images[:0], [], 0).shape == (0, 3, 16, 12)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_result_depends_on_seed_and_index_never_on_the_batch(name, images):
    perturb = perturbation(name)
    whole = perturb(images, INDEX, 0)
    torch.rand(7)  # the global generator is of no matter
    order = [3, 0, 4, 2, 1]
    shuffled = perturb(images[order], [INDEX[i] for i in order], 0)
    single = torch.cat([perturb(images[[i]], [INDEX[i]], 0) for i in range(len(INDEX))])
    assert torch.allclose(shuffled, whole[order], atol=1e-6)
    assert torch.allclose(single, whole, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "random"), [(name, name.startswith("gaussian") or name == "jitter") for name in PERTURBATIONS]
)
def test_only_noise_and_jitter_draw(name, random, images):
    perturb = perturbation(name)
    of_seed_0 = perturb(images, INDEX, 0)
    other_index = [i + 1 for i in INDEX]
    assert torch.equal(of_seed_0, perturb(images, INDEX, 1)) is not random
    assert torch.equal(of_seed_0, perturb(images, other_index, 0)) is not random


@pytest.mark.parametrize("name", ["gaussian-0.01", "jitter"])
def test_every_image_needs_its_number(name, images):
    with pytest.raises((ValueError, RuntimeError)):
        perturbation(name)(images, INDEX[:-1], 0)


@pytest.mark.parametrize("std", [0.001, 0.01, 0.03, 0.1])
def test_noise_has_the_standard_deviation_of_its_name(std):
    grey = torch.full((4, 3, 64, 64), 0.5)
    noise = perturbation(f"gaussian-{std}")(grey, range(4), 0) - grey
    assert noise.std().item() == pytest.approx(std, rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=0.03 * std)
    channels = torch.corrcoef(noise.transpose(0, 1).flatten(1))
    assert channels.fill_diagonal_(0).abs().max() < 0.05


def test_stronger_noise_is_the_same_noise_scaled():
    grey = torch.full((1, 3, 8, 8), 0.5)
    weak, strong = (perturbation(f"gaussian-{std}")(grey, [5], 0) - grey for std in (0.01, 0.03))
    assert torch.allclose(3 * weak, strong, atol=1e-6)


def test_noise_is_clipped():
    white = torch.ones(1, 3, 32, 32)
    noisy = perturbation("gaussian-0.1")(white, [0], 0)
    assert (noisy == 1).float().mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    # Without a sigma torchvision takes its own default, the one that blur-3 and blur-5 promise.
    ("name", "kernel", "sigma"),
    [("blur-3", 3, None), ("blur-5", 5, None), ("blur-3", 3, 0.8), ("blur-5", 5, 1.1), ("blur-3-v5", 3, math.sqrt(5))],
)
def test_blur_agrees_with_torchvision(name, kernel, sigma, images):
    expected = TF.gaussian_blur(images, [kernel, kernel], None if sigma is None else [sigma, sigma])
    assert torch.allclose(perturbation(name)(images, INDEX, 0), expected, atol=1e-5)


def test_jitter_agrees_with_torchvision(images):
    brightness, hue = jitter_factors(INDEX, 3)
    factors = zip(images, brightness.tolist(), hue.tolist(), strict=True)
    expected = torch.stack([TF.adjust_hue(TF.adjust_brightness(image, b), h) for image, b, h in factors])
    assert torch.allclose(perturbation("jitter")(images, INDEX, 3), expected, atol=1e-4)


def test_jitter_draws_the_whole_range_per_image():
    brightness, hue = jitter_factors(range(2000), 0)
    for draws, low, high in ((brightness, 0.5, 1.5), (hue, -0.3, 0.3)):
        quantiles = torch.quantile(draws, torch.tensor([0, 0.25, 0.5, 0.75, 1]))
        assert torch.allclose(quantiles, torch.linspace(low, high, 5), atol=0.05 * (high - low))
        assert low <= draws.min() and draws.max() <= high
    assert abs(torch.corrcoef(torch.stack([brightness, hue]))[0, 1]) < 0.1


def test_flip_mirrors_left_and_right(images):
    flipped = perturbation("flip")(images, INDEX, 0)
    assert torch.equal(flipped[..., 0], images[..., -1])
    assert torch.equal(perturbation("flip")(flipped, INDEX, 0), images)
