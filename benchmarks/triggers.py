"""Poisoning images in batches, against one image after another by way of PIL and NumPy.

With the paper's settings and the same random numbers, so that pixels can be compared. Two comparisons:

`poisoning_X` is a poisoned set of one attack. The scripts of this field open each file, resize and crop it, stamp the
trigger, and save it, here as PNG, since JPEG would change the trigger. `bench` keeps decoded pixels, stamps those that
are poisoned, and saves nothing; decoding is done once for all attacks, seeds and defenses, and its time is printed
beside.

`stamping_X` is stamping alone: 224 px images of 8 bits to the same, where a PIL image becomes an array of floats, gets
the trigger, and becomes a PIL image again.

CPU seconds of one thread, so that other programs matter little.
"""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from attacks.badnet import BadNet
from attacks.blended import Blended
from attacks.wanet import WaNet
from bench import Attack, Captioned, Clip, Preparation, Trigger, generator, stamp
from bench.core.dataset import Geometry
from bench.data.decoding import decode

SIDE, IMAGES, ROUNDS = 224, 64, 3
# As many photos have it: width and height.
NATIVE = (500, 375)
CONFIG = {
    "model_cfg": {"vision_cfg": {"image_size": SIDE}},
    "preprocess_cfg": {"mean": [0.0] * 3, "std": [1.0] * 3},
}
T = TypeVar("T")
Stamp = Callable[[np.ndarray, int], np.ndarray]


def badnet(method: BadNet, trigger: Trigger) -> Stamp:
    def apply(image: np.ndarray, i: int) -> np.ndarray:
        rng = trigger.rng(i)
        top, left = (int(torch.randint(SIDE - method.size + 1, (), generator=rng)) for _ in "rc")
        noise = torch.randn(3, method.size, method.size, generator=rng).numpy().transpose(1, 2, 0)
        image[top : top + method.size, left : left + method.size] = image.mean((0, 1)) + noise
        return image

    return apply


def blended(method: Blended, trigger: Trigger) -> Stamp:
    def apply(image: np.ndarray, i: int) -> np.ndarray:
        noise = torch.rand(3, SIDE, SIDE, generator=trigger.rng(i)).numpy().transpose(1, 2, 0)
        return np.float32(1 - method.alpha) * image + np.float32(method.alpha) * noise

    return apply


def wanet(method: WaNet, trigger: Trigger) -> Stamp:
    field = trigger.tensors["field"].numpy()
    ramp = np.linspace(-1, 1, SIDE, dtype=np.float32)
    grid = np.stack(np.meshgrid(ramp, ramp), -1) + np.float32(method.strength) * field / SIDE
    columns, rows = np.moveaxis((np.clip(grid, -1, 1) + 1) / 2 * (SIDE - 1), -1, 0)

    def apply(image: np.ndarray, _: int) -> np.ndarray:
        top, left = (np.clip(np.floor(x).astype(int), 0, SIDE - 2) for x in (rows, columns))
        down, right = (rows - top)[..., None], (columns - left)[..., None]
        upper = image[top, left] * (1 - right) + image[top, left + 1] * right
        lower = image[top + 1, left] * (1 - right) + image[top + 1, left + 1] * right
        return upper * (1 - down) + lower * down

    return apply


def one_by_one(images: list[Image.Image], apply: Stamp, first: int = 0) -> list[Image.Image]:
    stamped = []
    for i, image in enumerate(images, first):
        floats = apply(np.asarray(image, dtype=np.float32) / 255, i)
        stamped.append(Image.fromarray((floats.clip(0, 1) * 255).round().astype(np.uint8)))
    return stamped


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What it gives, and the CPU seconds that it took."""
    start = time.process_time()
    return work(), time.process_time() - start


def best(work: Callable[[], T]) -> tuple[T, float]:
    """The same, the fastest of some rounds."""
    return min((timed(work) for _ in range(ROUNDS)), key=lambda round: round[1])


def script(files: list[Path], apply: Stamp) -> None:
    """What a script that poisons files does."""
    for i, file in enumerate(files):
        with Image.open(file) as opened:
            image = opened.convert("RGB").resize((NATIVE[0] * SIDE // NATIVE[1], SIDE), Image.Resampling.BICUBIC)
        left = round((image.width - SIDE) / 2)
        (stamped,) = one_by_one([image.crop((left, 0, left + SIDE, SIDE))], apply, first=i)
        stamped.save(file.with_suffix(".png"))


def write_photos(folder: Path) -> list[Path]:
    """Smooth pictures with a little noise, as photos are."""
    rng, files = generator(0, "images"), []
    for i in range(IMAGES):
        coarse = torch.rand(1, 3, 8, 8, generator=rng)
        smooth = torch.nn.functional.interpolate(coarse, NATIVE[::-1], mode="bicubic")[0]
        noisy = (smooth + 0.02 * torch.randn(smooth.shape, generator=rng)).clamp(0, 1)
        files.append(folder / f"{i}.jpg")
        Image.fromarray((noisy * 255).byte().permute(1, 2, 0).numpy()).save(files[-1], quality=90)
    return files


def main() -> None:
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        files = write_photos(Path(folder))
        geometry = Geometry(SIDE, Path(folder) / "cache")
        decoded, seconds = timed(lambda: decode(files, [file.name for file in files], geometry))
        assert decoded.pixels is not None
        print(f"decoding once for all: {IMAGES / seconds:,.0f} images/s")
        images = torch.from_numpy(np.array(decoded.pixels))
        clip = Clip(torch.nn.Identity(), None, CONFIG)
        pairs = Captioned([file.name for file in files], decoded.pixels, "images", captions=[""] * IMAGES)
        given = Preparation(clip, lambda: pairs, "banana", ("banana",), (), 0)
        for name, method, reference in (
            ("badnet", BadNet(), badnet),
            ("blended", Blended(), blended),
            ("wanet", WaNet(), wanet),
        ):
            trigger = Trigger(0, method.prepare(given))
            measure(name, method, trigger, pairs, images, files, reference(method, trigger))


def measure(
    name: str,
    method: Attack,
    trigger: Trigger,
    pairs: Captioned,
    images: torch.Tensor,
    files: list[Path],
    apply: Stamp,
) -> None:
    every = torch.arange(IMAGES)
    batched, fast = best(lambda: stamp(method, trigger, pairs.load(every), every))
    _, slow = best(lambda: script(files, apply))
    saved = [np.asarray(Image.open(file.with_suffix(".png"))) for file in files]
    check(name, batched, saved)
    print(f"{name}: {IMAGES / fast:,.0f} images/s in batches, {IMAGES / slow:,.0f} by files")
    print(f"poisoning_{name} ratio {slow / fast:.2f}")
    pil = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    batched, fast = best(lambda: stamp(method, trigger, images, every))
    single, slow = best(lambda: one_by_one(pil, apply))
    check(name, batched, [np.asarray(image) for image in single])
    print(f"stamping_{name} ratio {slow / fast:.2f}")


def check(name: str, batched: torch.Tensor, single: list[np.ndarray]) -> None:
    expected = torch.from_numpy(np.stack(single)).permute(0, 3, 1, 2)
    apart = (batched.int() - expected.int()).abs()
    # A value within a rounding error of a half may go either way.
    assert apart.max() <= 1 and (apart > 0).double().mean() < 1e-4, (
        f"{name}: {apart.max()} {(apart > 0).double().mean()}"
    )


if __name__ == "__main__":
    main()
