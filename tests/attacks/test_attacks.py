"""BadNet, Blended and WaNet: each trigger against an independent NumPy and SciPy implementation."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy import stats
from scipy.ndimage import map_coordinates
from torch import Tensor
from torchvision.transforms import ToPILImage
from torchvision.transforms.v2 import functional as TF

from attacks.badnet import BadNet
from attacks.blended import Blended
from attacks.patch import corner, paste
from attacks.wanet import WaNet
from bench import Attack, BenchError, Captioned, Clip, Geometry, Images, Preparation, Trigger, attacks, generator, stamp
from bench.core.attack import AttackNeed, stamp_images

SIDE = 224
TRIGGERS: dict[str, Attack] = {
    "badnet": BadNet(),
    "badnet-wrap": BadNet(overflow="wrap"),
    "badnet-fixed": BadNet(pattern="fixed"),
    "badnet-checker": BadNet(pattern="checker"),
    "badnet-yellow": BadNet(pattern="yellow"),
    "badnet-center": BadNet(place="center"),
    "badnet-lower_right": BadNet(place="lower_right"),
    "blended": Blended(),
    "blended-fixed": Blended(key="fixed", alpha=0.3),
    "wanet": WaNet(),
    "wanet-smooth": WaNet(grid=4, strength=0.5),
    "wanet-mini": WaNet(grid=4, strength=8),
}
PATCHES = {name: attack for name, attack in TRIGGERS.items() if isinstance(attack, BadNet)}


def table(attacks: dict[str, Any]) -> Any:
    return pytest.mark.parametrize("attack", attacks.values(), ids=attacks.keys())


def prepare(attack: Attack, side: int = SIDE, seed: int = 7) -> Trigger:
    """What the attack prepares for images of a size; these attacks look at nothing else of the model."""
    clip = cast(Clip, SimpleNamespace(image_size=side))
    given = Preparation(clip, lambda: cast(Captioned, None), "banana", ("banana",), ("a photo of a {}.",), seed)
    return Trigger(seed, attack.prepare(given))


def noise_images(n: int, side: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (n, 3, side, side), generator=generator(seed, "images"), dtype=torch.uint8)


@pytest.fixture(scope="session")
def photo() -> Tensor:
    """A natural image, uint8 (1, 3, 224, 224), as the shared pipeline crops it: a photo that matplotlib ships."""
    file = min((Path(matplotlib.get_data_path()) / "sample_data").glob("*.jpg"))
    pixels = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)
    resized = TF.resize(pixels, [SIDE], interpolation=TF.InterpolationMode.BICUBIC, antialias=True)
    return TF.center_crop(resized, [SIDE])[None]


def psnr(changed: Tensor, original: Tensor) -> float:
    """In dB, of uint8 images."""
    return -10 * np.log10(((changed.double() - original.double()) / 255).pow(2).mean().item())


# --- any trigger


@pytest.mark.parametrize(
    ("need", "take"), [("clean_model", "clip"), ("class_names", "classes"), ("named_captions", "named_in_pool")]
)
def test_an_attack_that_takes_more_than_it_declares_is_refused(need: AttackNeed, take: str) -> None:
    clip = cast(Clip, SimpleNamespace(image_size=SIDE))
    pairs = Captioned(["a", "b"], torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8), "", captions=["a banana", "a cat"])
    given = Preparation(clip, lambda: pairs, "banana", ("banana", "cat"), ("{}",), 0)
    assert getattr(replace(given, needs=frozenset({need})), take) is not None
    with pytest.raises(
        BenchError, match=rf"takes `{need}` and does not declare it: write needs = frozenset\(\{{'{need}'"
    ):
        getattr(replace(given, needs=frozenset(get_args(AttackNeed)) - {need}), take)
    assert replace(given, needs=frozenset()).image_size == SIDE, "that is no secret"


@table(TRIGGERS)
def test_output_is_8_bit_and_the_input_is_left_alone(attack: Attack) -> None:
    trigger, images = prepare(attack, side=32), noise_images(5, 32)
    before, floats = images.clone(), images.float() / 255
    out, applied = stamp(attack, trigger, images, range(5)), attack.apply(floats, range(5), trigger)
    assert out.dtype == torch.uint8
    assert out.shape == images.shape
    assert torch.equal(images, before)
    assert torch.equal(floats, before.float() / 255)
    assert applied.min() >= -1e-6
    assert applied.max() <= 1 + 1e-6
    # Rounded, never truncated.
    assert torch.equal(out, torch.from_numpy(np.rint(applied.clamp(0, 1).numpy() * 255).astype(np.uint8)))


@table(TRIGGERS)
def test_seed_and_index_determine_the_trigger_whatever_else_is_in_the_batch(attack: Attack) -> None:
    trigger, images, index = prepare(attack, side=32), noise_images(5, 32), [3, 11, 4, 0, 99_999]
    out = stamp(attack, trigger, images, index)
    torch.manual_seed(123)
    assert torch.equal(stamp(attack, prepare(attack, side=32), images, torch.tensor(index)), out)
    assert torch.equal(stamp(attack, trigger, images.flip(0), index[::-1]).flip(0), out)
    for k, i in enumerate(index):
        assert torch.equal(stamp(attack, trigger, images[k : k + 1], [i])[0], out[k])


@table({k: v for k, v in TRIGGERS.items() if k != "badnet-checker" and k != "badnet-yellow"})
def test_another_seed_is_another_trigger(attack: Attack) -> None:
    images = noise_images(1, 32)
    one, two = (stamp(attack, prepare(attack, side=32, seed=seed), images, [0]) for seed in (7, 8))
    assert not torch.equal(one, two)


@table({name: TRIGGERS[name] for name in ("badnet", "badnet-wrap", "blended")})
def test_noise_is_redrawn_for_each_image(attack: Attack) -> None:
    images = noise_images(1, 32).expand(2, -1, -1, -1)
    one, two = stamp(attack, prepare(attack, side=32), images, [0, 1])
    assert not torch.equal(one, two)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda images: images[:, :, :5], "images of shape (2, 3, 5, 32) for (2, 3, 32, 32)"),
        # Torch would repeat it for every image.
        (lambda images: images[:1], "images of shape (1, 3, 32, 32) for (2, 3, 32, 32)"),
        # 8 bits would make it black.
        (lambda images: images * torch.nan, "values that are not finite"),
    ],
)
def test_an_attack_that_returns_unusable_images_is_an_error(change: Any, told: str) -> None:
    class Careless(Attack):
        def apply(self, images: Tensor, index: Any, trigger: Trigger) -> Tensor:
            return change(images)

    with pytest.raises(BenchError) as error:
        stamp(Careless(), Trigger(0, {}), noise_images(2, 32), range(2))
    assert str(error.value) == f"Careless returned {told}. Return images of the same shape, in [0, 1]."


def test_registered_under_the_names_of_the_field() -> None:
    assert (attacks["badnet"], attacks["blended"], attacks["wanet"]) == (BadNet, Blended, WaNet)


def test_learning_rates_of_paper_v1() -> None:
    """1e-5, which is the recipe's own, and 1.5e-5 for WaNet."""
    assert [TRIGGERS[name].learning_rate for name in ("badnet", "blended", "wanet")] == [None, None, 1.5e-5]


# Section 9: ranges over six photos; ours is a seventh, so the ends are taken loosely.
@pytest.mark.parametrize(
    ("attack", "low", "high"),
    [
        (BadNet(), 26.7, 30.3),
        (BadNet(overflow="wrap"), 27.9, 33.7),
        (Blended(), 20.6, 23.3),
        (WaNet(), 23.5, 33.9),
        (WaNet(grid=4, strength=0.5), 30.6, 40.5),
    ],
    ids=["badnet", "badnet-wrap", "blended", "wanet", "wanet-smooth"],
)
def test_psnr_on_a_photo(attack: Attack, low: float, high: float, photo: Tensor) -> None:
    trigger = prepare(attack)
    mean = np.mean([psnr(stamp(attack, trigger, photo, [i]), photo) for i in range(8)])
    assert low - 1 <= mean <= high + 1


# --- BadNet


@table(PATCHES)
def test_a_patch_changes_768_values_in_a_square(attack: BadNet) -> None:
    # A value that no patch has, so that all of the patch can be seen.
    image = torch.full((1, 3, SIDE, SIDE), 0.123)
    changed = (attack.apply(image, [5], prepare(attack)) != image)[0]
    assert changed.sum() == 768
    _, rows, columns = torch.where(changed)
    assert rows.max() - rows.min() == columns.max() - columns.min() == 15


@table(PATCHES)
@pytest.mark.parametrize("value", [0, 127, 255])
def test_a_patch_never_costs_more_than_22_9_db(attack: BadNet, value: int) -> None:
    image = torch.full((1, 3, SIDE, SIDE), value, dtype=torch.uint8)
    assert psnr(stamp(attack, prepare(attack), image, [0]), image) >= 22.9


@pytest.mark.parametrize("overflow", ["clip", "wrap"])
def test_badnet_is_noise_around_the_mean_colour_in_numpy(overflow: Any) -> None:
    attack, seed, images = BadNet(overflow=overflow), 7, noise_images(3, 40).float().numpy() / 255
    expected = images.copy()
    for image, i in zip(expected, (2, 9, 4), strict=True):
        rng = generator(seed, "trigger", i)
        row, column = (int(torch.randint(40 - 16 + 1, (), generator=rng)) for _ in range(2))
        noise = image.mean((1, 2))[:, None, None] + torch.randn(3, 16, 16, generator=rng).numpy()
        patch = np.clip(noise, 0, 1) if overflow == "clip" else np.mod(np.trunc(noise * 255), 256) / 255
        image[:, row : row + 16, column : column + 16] = patch
    out = attack.apply(torch.from_numpy(images), [2, 9, 4], Trigger(seed))
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-5)


def patch_values(attack: BadNet, value: float, n: int = 60) -> np.ndarray:
    """All values of n patches on images of one value: the patch is the whole image."""
    return attack.apply(torch.full((n, 3, 16, 16), value), range(n), prepare(attack, side=16)).numpy().ravel()


@pytest.mark.parametrize("mean", [0.5, 0.2])
def test_clipped_noise_is_gaussian_of_deviation_1(mean: float) -> None:
    values, normal = patch_values(BadNet(), mean), stats.norm(mean, 1)
    # 62 % are saturated at a mean of 1/2.
    assert np.mean(values == 0) == pytest.approx(normal.cdf(0), abs=0.01)
    assert np.mean(values == 1) == pytest.approx(normal.sf(1), abs=0.01)
    inside = values[(values > 0) & (values < 1)]
    assert stats.kstest(inside, stats.truncnorm(-mean, 1 - mean, loc=mean).cdf).pvalue > 1e-3


def test_wrapping_is_what_a_conversion_to_bytes_does() -> None:
    """torchvision's ToPILImage, which the authors save with, multiplies by 255 and casts; -0.7 becomes 0, not 255."""
    values = torch.tensor([-0.7, -1.2, 0.4, 254.9, 255.4, 256.3, 511.5, -255.5]) / 255
    attack = BadNet(overflow="wrap", size=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", lambda *_, **__: values.repeat(3, 8, 1))
        out = attack.apply(torch.zeros(1, 3, 8, 8), [0], Trigger(0))[0]
    assert (out * 255).round()[0, 0].tolist() == [0, 255, 0, 254, 255, 0, 255, 1]
    assert torch.equal(
        (out * 255).round().to(torch.uint8), (values * 255).to(torch.int64).to(torch.uint8).repeat(3, 8, 1)
    )


def test_a_margin_keeps_random_places_from_the_last_rows_and_columns() -> None:
    attack, images = BadNet(size=4, margin=1), torch.zeros(200, 3, 6, 6)
    changed = (attack.apply(images, range(200), Trigger(1)) != 0).any(1).any(0)
    assert changed[:5, :5].all()
    assert not changed[5].any() and not changed[:, 5].any()
    corner_only = BadNet(size=4, margin=1, place="lower_right").apply(images[:1], [0], Trigger(1))
    assert (corner_only[0, :, -1, -4:] != 0).any()


def test_wrapped_noise_is_almost_uniform() -> None:
    values = patch_values(BadNet(overflow="wrap"), 0.5)
    assert values.min() >= 0
    assert values.max() <= 1
    assert values.std() == pytest.approx(0.29, abs=0.01)
    assert np.mean((values == 0) | (values == 1)) < 0.01


def test_checker_and_yellow() -> None:
    trigger = prepare(BadNet(pattern="checker", size=4))
    white = np.add.outer(np.arange(4) % 2, np.arange(4) % 2) == 0
    np.testing.assert_array_equal(trigger.tensors["patch"].numpy(), np.broadcast_to(white, (3, 4, 4)))
    yellow = prepare(BadNet(pattern="yellow", size=4)).tensors["patch"]
    assert torch.equal(yellow, torch.tensor([1.0, 1.0, 0.0])[:, None, None].expand(3, 4, 4))


def test_random_places_are_uniform_up_to_the_last_row_and_column() -> None:
    places = np.array([corner("random", 16, (SIDE, SIDE), generator(0, "trigger", i)) for i in range(20_000)])
    for counts in (np.bincount(axis, minlength=209) for axis in places.T):
        assert len(counts) == 209
        assert counts[208] > 0
        assert stats.chisquare(counts).pvalue > 1e-3
    assert abs(stats.spearmanr(*places.T).statistic) < 0.03


def test_every_place_is_stamped() -> None:
    """On images of 20 px, 16-px patches have 5 x 5 places, and stamped images show them all."""
    image = torch.full((600, 3, 20, 20), 0.123)
    changed = (BadNet().apply(image, range(600), Trigger(0)) != image).any(1)
    rows, columns = changed.any(2).int().argmax(1), changed.any(1).int().argmax(1)
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == {(r, q) for r in range(5) for q in range(5)}


@pytest.mark.parametrize(("place", "first", "last"), [("center", 104, 119), ("lower_right", 208, 223)])
def test_fixed_places(place: Any, first: int, last: int) -> None:
    image = torch.full((1, 3, SIDE, SIDE), 0.123)
    changed = (BadNet(place=place).apply(image, [0], Trigger(0)) != image)[0, 0]
    for axis in (0, 1):
        touched = torch.where(changed.any(axis))[0]
        assert (int(touched.min()), int(touched.max())) == (first, last)


@pytest.mark.parametrize("place", ["random", "center", "lower_right"])
def test_a_patch_larger_than_the_image_is_an_error(place: Any) -> None:
    with pytest.raises(BenchError, match=r"33 px does not fit into images of 32 x 32 px\. .* --set ATTACK\.size=6"):
        BadNet(size=33, place=place).apply(torch.zeros(1, 3, 32, 32), [0], Trigger(0))


def test_paste_is_differentiable_in_the_patch_and_leaves_images_alone() -> None:
    rng = generator(0)
    images, patch = torch.rand(3, 3, 8, 8, generator=rng), torch.rand(3, 4, 4, generator=rng, requires_grad=True)
    before = images.clone()
    out = paste(images, patch)
    out.sum().backward()
    assert torch.equal(images, before)
    assert torch.equal(out[:, :, 2:6, 2:6], patch.expand(3, -1, -1, -1))
    torch.testing.assert_close(patch.grad, torch.full_like(patch, 3))


# --- Blended


@pytest.mark.parametrize("key", ["resample", "fixed"])
def test_blended_is_a_convex_mix_with_uniform_noise(key: Any) -> None:
    images, index, trigger = noise_images(3, 64), [4, 2, 8], prepare(Blended(key=key), side=64)
    floats = images.float() / 255
    noise = Blended(key=key, alpha=1).apply(floats, index, trigger).expand(3, -1, -1, -1)
    assert stats.kstest(noise[0].numpy().ravel(), "uniform").pvalue > 1e-3
    assert torch.equal(noise[0], noise[1]) == (key == "fixed")
    expected = 0.8 * floats.double().numpy() + 0.2 * noise.double().numpy()
    np.testing.assert_allclose(Blended(key=key).apply(floats, index, trigger).numpy(), expected, atol=1e-6)
    np.testing.assert_array_equal(stamp(Blended(key=key), trigger, images, index), np.rint(255 * expected))
    assert torch.equal(stamp(Blended(key=key, alpha=0), trigger, images, index), images)


@pytest.mark.parametrize("value", [0.0, 0.25, 0.5, 1.0])
def test_blended_changes_no_value_by_more_than_alpha(value: float) -> None:
    image = torch.full((1, 3, 64, 64), value)
    change = (Blended().apply(image, [0], prepare(Blended(), side=64)) - image).abs()
    assert 0.09 < change.max() <= 0.2 + 1e-6


@pytest.mark.parametrize(("value", "decibels"), [(0.5, 24.8), (0.0, 18.8), (1.0, 18.8), (0.3, None)])
def test_blended_error_on_constant_images(value: float, decibels: float | None) -> None:
    image = torch.full((4, 3, SIDE, SIDE), value)
    error = (Blended().apply(image, range(4), prepare(Blended())) - image).double().pow(2).mean().item()
    assert error == pytest.approx(0.04 * (1 / 12 + (0.5 - value) ** 2), rel=0.01)
    if decibels is not None:
        assert -10 * np.log10(error) == pytest.approx(decibels, abs=0.1)


def test_blended_with_a_picture(tmp_path: Path) -> None:
    file = tmp_path / "key.png"
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    attack, images = Blended(key="image", key_image=file), noise_images(2, 32)
    out = stamp(attack, prepare(attack, side=32), images, [0, 1])
    expected = np.rint(0.8 * images.numpy().astype(float) + 0.2 * pixels.transpose(2, 0, 1))
    np.testing.assert_array_equal(out.numpy(), expected)


@pytest.mark.parametrize("file", [Path("nowhere.png"), Path(__file__), Path(__file__).parent])
def test_blended_with_what_is_no_picture_is_an_error(file: Path) -> None:
    with pytest.raises(BenchError, match=r"a picture is needed, --set ATTACK\.key_image=FILE"):
        prepare(Blended(key="image", key_image=file))


@pytest.mark.parametrize(
    "given", [{"key": "image"}, {"key_image": "key.png"}, {"key": "fixed", "key_image": "key.png"}]
)
def test_blended_uses_the_picture_that_it_is_given_or_says_so(given: dict[str, str]) -> None:
    with pytest.raises(BenchError, match=r"setting blended = .*key = image and key_image = FILE go together"):
        Blended.parse(given, "blended")


# --- WaNet


def keys_bicubic(control: np.ndarray, size: int) -> np.ndarray:
    """Keys' bicubic convolution (a = -0.75) of (k, k) to (size, size), corners on corners, edges repeated."""

    def weight(x: np.ndarray, a: float = -0.75) -> np.ndarray:
        x = np.abs(x)
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
        return np.where(x <= 1, near, np.where(x < 2, far, 0))

    k = len(control)
    at = np.linspace(0, k - 1, size)
    taps = np.floor(at)[:, None] + np.arange(-1, 3)
    matrix = np.zeros((size, k))
    np.add.at(matrix, (np.arange(size)[:, None], taps.clip(0, k - 1).astype(int)), weight(at[:, None] - taps))
    return matrix @ control @ matrix.T


def warp(image: np.ndarray, shift: np.ndarray, rescale: float = 1.0) -> np.ndarray:
    """(3, n, n) sampled bilinearly at clip(I + shift / n, -1, 1) rescale; shift (n, n, 2) is (column, row)."""
    n = image.shape[-1]
    ramp = np.linspace(-1, 1, n)
    columns, rows = (
        (np.clip(identity + shift[..., axis] / n, -1, 1) * rescale + 1) / 2 * (n - 1)
        for axis, identity in enumerate(np.meshgrid(ramp, ramp))
    )
    return np.stack([map_coordinates(c, [rows, columns], order=1, mode="grid-constant") for c in image])


@pytest.mark.parametrize(("grid", "side"), [(4, 56), (4, 224), (7, 32), (1, 8), (32, 32)])
def test_wanet_field_is_a_bicubic_upsampling(grid: int, side: int) -> None:
    drawn = torch.rand(1, 2, grid, grid, generator=generator(7, "prepare", "grid"))[0].double().numpy() * 2 - 1
    control = drawn / np.abs(drawn).mean()
    expected = np.stack([keys_bicubic(axis, side) for axis in control], -1)
    np.testing.assert_allclose(prepare(WaNet(grid=grid), side).tensors["field"].numpy(), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("attack", "side"),
    [
        (WaNet(), 224),
        (WaNet(grid=4, strength=0.5), 224),
        (WaNet(grid=4, strength=8), 56),
        (WaNet(grid=4, strength=2, rescale=1.1), 56),
        (WaNet(grid=4, strength=2, rescale=0.9), 56),
    ],
    ids=["paper", "smooth", "mini", "beyond the edge", "zoomed"],
)
def test_wanet_is_bilinear_sampling_in_scipy(attack: WaNet, side: int) -> None:
    trigger, images = prepare(attack, side), noise_images(2, side)
    field = trigger.tensors["field"].double().numpy()
    expected = np.stack([warp(i, attack.strength * field, attack.rescale) for i in images.double().numpy() / 255])
    out = attack.apply(images.float() / 255, [0, 1], trigger)
    np.testing.assert_allclose(out.numpy(), expected, atol=2e-4)
    assert np.abs(stamp(attack, trigger, images, [0, 1]).numpy() - np.rint(255 * expected)).max() <= 1


@pytest.mark.parametrize("grid", [4, 224])
def test_wanet_of_no_strength_is_the_identity(grid: int) -> None:
    attack, images = WaNet(grid=grid, strength=0), noise_images(2, SIDE)
    trigger = prepare(attack)
    assert torch.equal(stamp(attack, trigger, images, [0, 1]), images)
    # Truncation instead of rounding would be off by one.
    assert not torch.equal((attack.apply(images.float() / 255, [0, 1], trigger) * 255).to(torch.uint8), images)


@pytest.mark.parametrize("value", [0, 77, 255])
@pytest.mark.parametrize(("grid", "strength"), [(224, 1.0), (4, 0.5), (4, 8.0)])
def test_wanet_leaves_constant_images_unchanged(value: int, grid: int, strength: float) -> None:
    attack, image = WaNet(grid=grid, strength=strength), torch.full((1, 3, SIDE, SIDE), value, dtype=torch.uint8)
    assert torch.equal(stamp(attack, prepare(attack), image, [0]), image)


def shifts(attack: WaNet, seed: int) -> np.ndarray:
    """|shift| of every pixel, in px an axis."""
    return np.abs(prepare(attack, seed=seed).tensors["field"].numpy()) * attack.strength / SIDE * (SIDE - 1) / 2


def test_wanet_k224_is_a_jitter_of_half_a_pixel() -> None:
    jitter = shifts(WaNet(), seed=7)
    assert prepare(WaNet()).tensors["field"].abs().mean().item() == pytest.approx(1, abs=1e-5)
    assert jitter.mean() == pytest.approx(0.498, abs=5e-4)
    assert jitter.max() < 1
    # Neighbours have nothing to do with each other: this is no smooth warp.
    field = prepare(WaNet()).tensors["field"][..., 0].numpy()
    assert abs(np.corrcoef(field[:, 1:].ravel(), field[:, :-1].ravel())[0, 1]) < 0.02


def test_wanet_k4_is_a_smooth_warp_of_a_fifth_of_a_pixel() -> None:
    smooth = WaNet(grid=4, strength=0.5)
    assert np.mean([shifts(smooth, seed).mean() for seed in range(40)]) == pytest.approx(0.19, abs=0.015)
    field = prepare(smooth).tensors["field"][..., 0].numpy()
    assert np.corrcoef(field[:, 1:].ravel(), field[:, :-1].ravel())[0, 1] > 0.99


def test_wanet_noise_mode_disturbs_the_warp_and_keeps_the_captions() -> None:
    """VinAI's: U(-1, 1) / side per pixel on top of the warp, of each image's own."""
    attack, images, index = WaNet(grid=4, strength=0.5, noise_ratio=2), noise_images(2, 56), [8, 3]
    trigger = prepare(attack, 56)
    assert attack.decoys_per_poison == 2
    assert WaNet().decoys_per_poison == 0
    out, captions = attack.decoy(images.float() / 255, ["a cat", "a dog"], index, trigger)
    assert captions == ["a cat", "a dog"]
    field = trigger.tensors["field"].double().numpy()
    for image, got, i in zip(images.double().numpy() / 255, out.numpy(), index, strict=True):
        jitter = torch.rand(56, 56, 2, generator=generator(7, "trigger", i)).double().numpy() * 2 - 1
        np.testing.assert_allclose(got, warp(image, 0.5 * field + jitter), atol=2e-4)


# --- the authors' geometry, rounding and field


def wide_pictures(n: int = 3) -> Images:
    """Pictures of 60 x 30 px: a crop shows the middle, squashing shows all."""
    natives = [torch.randint(256, (3, 30, 60), generator=generator(i, "wide"), dtype=torch.uint8) for i in range(n)]
    geometry = Geometry(20, cache=Path())
    pixels = torch.stack([geometry.square(native) for native in natives])
    return Images([str(i) for i in range(n)], pixels, "", native=natives.__getitem__)


def test_squashed_images_are_pils() -> None:
    images, index = wide_pictures(), torch.tensor([2, 0])
    squashed = stamp_images(Blended(alpha=0, geometry="squash"), Trigger(0, {}), images, index)
    for row, i in zip(squashed, index.tolist(), strict=True):
        native = Image.fromarray(images.native(i).permute(1, 2, 0).numpy())
        assert np.array_equal(row.permute(1, 2, 0).numpy(), np.asarray(native.resize((20, 20))))
    assert torch.equal(stamp_images(Blended(alpha=0), Trigger(0, {}), images, index), images.load(index))


def test_images_without_another_size_stay_as_they_are() -> None:
    images = Images(["a", "b"], noise_images(2, 20), "")
    assert torch.equal(images.load_square(torch.tensor([1]), "squash"), images.load([1]))
    assert images.load_square(torch.tensor([], dtype=torch.long), "squash").shape == (0, 3, 20, 20)


def test_truncation_is_torchvisions() -> None:
    images, attack = noise_images(4, 24), Blended(rounding="truncate")
    trigger = Trigger(5, {})
    floats = attack.apply(images.float() / 255, range(4), trigger).clamp(0, 1)
    theirs = torch.stack([TF.pil_to_tensor(ToPILImage()(image)) for image in floats])
    assert torch.equal(stamp(attack, trigger, images, range(4)), theirs)
    assert not torch.equal(stamp(Blended(), trigger, images, range(4)), theirs)


def published_field(folder: Path, form: str, side: int = SIDE) -> Path:
    """A drawn field in a file of each form; CleanCLIP's has a first dimension of 1."""
    field = prepare(WaNet(), side).tensors["field"].contiguous()
    file = folder / f"field.{form}"
    if form == "npy":
        np.save(file, field.numpy())
    elif form == "safetensors":
        save_file({"anything": field}, file)
    else:
        torch.save(field[None], file)
    return file


@pytest.mark.parametrize("form", ["npy", "safetensors", "pt"])
def test_a_published_field_is_taken_as_it_is(tmp_path: Path, form: str) -> None:
    drawn, read = prepare(WaNet()), prepare(WaNet(field=published_field(tmp_path, form)), seed=1)
    assert torch.equal(drawn.tensors["field"], read.tensors["field"])
    images = noise_images(2, SIDE)
    assert torch.equal(stamp(WaNet(), drawn, images, [0, 1]), stamp(WaNet(), read, images, [0, 1]))


class Harmful:
    """What a file of pickled code would make."""

    def __reduce__(self) -> tuple:
        return (print, ("code was run",))


def test_fields_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def message(file: Path, side: int = SIDE) -> str:
        with pytest.raises(BenchError) as error:
            prepare(WaNet(field=file), side)
        return str(error.value)

    assert message(tmp_path / "none.npy").startswith(
        f"wanet.field = {tmp_path / 'none.npy'}: no such file. Give one of"
    )
    other = tmp_path / "field.txt"
    other.write_text("no tensor")
    assert "give a file of the kinds .safetensors, .npy, .pt, .pth" in message(other)
    assert "and images of 56 px need (56, 56, 2)" in message(published_field(tmp_path, "pt"), 56)
    harmful = tmp_path / "harmful.pt"
    torch.save({"field": Harmful()}, harmful)
    assert "cannot be read as plain tensors; code in a file is never run" in message(harmful)
    assert "code was run" not in capsys.readouterr().out
    several = tmp_path / "several.safetensors"
    save_file({"a": torch.zeros(2), "b": torch.zeros(2)}, several)
    assert "holds 2 entries, and one tensor is needed" in message(several)
    damaged = tmp_path / "damaged.npy"
    damaged.write_bytes(b"no array")
    assert "cannot be read as plain tensors" in message(damaged)
    np.save(broken := tmp_path / "nan.npy", np.full((SIDE, SIDE, 2), np.nan))
    assert "not finite" in message(broken)
