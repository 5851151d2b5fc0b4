"""Poisoning images: `stamp` on whole batches, against one image after another by way of PIL and NumPy.

Both take and give 224 px images of 8 bits, with the paper's settings and the same random numbers, so that their
pixels can be compared. The pipeline per image is what poisoning code of this field does: a PIL image becomes an array
of floats, gets the trigger, and becomes a PIL image again. CPU seconds of one thread, so that other programs matter
little.
"""

import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from attacks.badnet import BadNet
from attacks.blended import Blended
from attacks.wanet import WaNet
from bench import Attack, Captioned, Clip, Preparation, Trigger, generator, stamp

SIDE, IMAGES, ROUNDS = 224, 64, 3
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


def one_by_one(images: list[Image.Image], apply: Stamp) -> list[Image.Image]:
    stamped = []
    for i, image in enumerate(images):
        floats = apply(np.asarray(image, dtype=np.float32) / 255, i)
        stamped.append(Image.fromarray((floats.clip(0, 1) * 255).round().astype(np.uint8)))
    return stamped


def best(work: Callable[[], T]) -> tuple[T, float]:
    """What it gives, and the fewest CPU seconds that it took."""
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        given = work()
        times.append(time.process_time() - start)
    return given, min(times)


def main() -> None:
    torch.set_num_threads(1)
    # Smooth pictures with a little noise, as photos are.
    coarse = torch.rand(IMAGES, 3, 8, 8, generator=generator(0, "images"))
    smooth = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic").clamp(0, 1)
    images = (smooth * 255).round().to(torch.uint8)
    pil = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    config = {
        "model_cfg": {"vision_cfg": {"image_size": SIDE}},
        "preprocess_cfg": {"mean": [0.0] * 3, "std": [1.0] * 3},
    }
    clip = Clip(torch.nn.Identity(), None, config)
    pairs = Captioned([str(i) for i in range(IMAGES)], images, "images", captions=[""] * IMAGES)
    given = Preparation(clip, lambda: pairs, "banana", ("banana",), (), 0)
    for name, method, reference in (
        ("badnet", BadNet(), badnet),
        ("blended", Blended(), blended),
        ("wanet", WaNet(), wanet),
    ):
        trigger = Trigger(0, method.prepare(given))
        measure(name, method, trigger, images, pil, reference(method, trigger))


def measure(name: str, method: Attack, trigger: Trigger, images: torch.Tensor, pil: list, apply: Stamp) -> None:
    batched, fast = best(lambda: stamp(method, trigger, images, range(IMAGES)))
    single, slow = best(lambda: one_by_one(pil, apply))
    expected = torch.from_numpy(np.stack([np.asarray(image) for image in single])).permute(0, 3, 1, 2)
    apart = (batched.int() - expected.int()).abs()
    # A value within a rounding error of a half may go either way.
    assert apart.max() <= 1 and (apart > 0).double().mean() < 1e-4, (
        f"{name}: {apart.max()} {(apart > 0).double().mean()}"
    )
    print(f"{name}: {IMAGES / fast:,.0f} images/s in batches, {IMAGES / slow:,.0f} one by one")
    print(f"poisoning_{name} ratio {slow / fast:.2f}")


if __name__ == "__main__":
    main()
