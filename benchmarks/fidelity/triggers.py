"""Triggers and geometry: ours beside the original code, on photos, with the same random numbers."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch
from checks import BADCLIP, CLEANCLIP, DECOMPOSITION, Inputs, Result, check, pixels
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from attacks.badclip import BadCLIP
from attacks.badnet import BadNet
from attacks.blended import Blended
from attacks.patch import corner
from attacks.wanet import WaNet
from bench import Attack, Clip, Images, Preparation, Trigger
from bench.core.attack import stamp_images
from bench.core.geometry import Geometry

SIDE, SEED = 224, 7
AUTHORS: dict[str, Any] = {"geometry": "squash", "rounding": "truncate"}
WRAPPED = BadNet(overflow="wrap", margin=1, **AUTHORS)


def as_images(pictures: list[Image.Image]) -> Images:
    """The photos as bench holds them: resized and cropped, and each in its own size."""
    natives = [pil_to_tensor(picture) for picture in pictures]
    geometry = Geometry(SIDE, cache=Path())
    cropped = torch.stack([pil_to_tensor(geometry.square(picture)) for picture in pictures])
    return Images([str(i) for i in range(len(natives))], cropped, "photos", native=natives.__getitem__)


def prepared(attack: Attack) -> Trigger:
    clip = mock.Mock(spec=Clip, image_size=SIDE)
    return Trigger(SEED, attack.prepare(Preparation(clip, lambda: None, "banana", (), (), SEED)))  # type: ignore[arg-type, return-value]


def ours(attack: Attack, pictures: list[Image.Image]) -> list[np.ndarray]:
    images = as_images(pictures)
    stamped = stamp_images(attack, prepared(attack), images, torch.arange(len(images)))
    return [image.permute(1, 2, 0).numpy() for image in stamped]


def theirs(
    apply: Callable[..., Image.Image], pictures: list[Image.Image], draws: Callable[[int], Any], **kind: Any
) -> list[np.ndarray]:
    """What the original makes of each photo; `draws(i)` gives it our random numbers for photo i."""
    made = []
    for i, picture in enumerate(pictures):
        with draws(i):
            made.append(np.asarray(apply(picture, **kind)))
    return made


def noise_patch(i: int) -> Any:
    """Our place and noise of image i, for an original that draws the noise first and then the place."""
    rng = prepared(WRAPPED).rng(i)
    place = list(corner("random", 16, (SIDE - 1, SIDE - 1), rng))
    noise = torch.randn(3, 16, 16, generator=rng)
    return mock.patch.multiple("random", randint=lambda *_: place.pop(0)), mock.patch("torch.randn", lambda _: noise)


class Both:
    """Two context managers as one."""

    def __init__(self, *managers: Any) -> None:
        self.managers = managers

    def __enter__(self) -> None:
        for manager in self.managers:
            manager.__enter__()

    def __exit__(self, *error: Any) -> None:
        for manager in self.managers:
            manager.__exit__(*error)


def blending_noise(i: int) -> Any:
    noise = torch.rand(3, SIDE, SIDE, generator=prepared(Blended()).rng(i))
    return mock.patch("torch.rand", lambda _: noise)


@check(
    "BadNet's triggered image",
    "backdoor/utils.py",
    "`badnet`: `overflow=wrap`, `margin=1`, `geometry=squash`, `rounding=truncate`",
)
def badnet(inputs: Inputs) -> Result:
    pictures = inputs.pictures()
    with inputs.code(CLEANCLIP, "backdoor.utils") as original:
        made = theirs(original.apply_trigger, pictures, lambda i: Both(*noise_patch(i)), patch_type="random")
    return pixels(made, ours(WRAPPED, pictures))


@check("BadNet's patch as the presets have it", "backdoor/utils.py", "`badnet.overflow`: ours `clip`, theirs `wrap`")
def badnet_differs(inputs: Inputs) -> Result:
    pictures, summary = inputs.pictures(), []
    for overflow in ("clip", "wrap"):
        attack = BadNet(overflow=overflow)  # type: ignore[arg-type]
        images, trigger = as_images(pictures), prepared(attack)
        clean = images.load(torch.arange(len(images)))
        stamped = stamp_images(attack, trigger, images, torch.arange(len(images)))
        places = [corner("random", 16, (SIDE, SIDE), trigger.rng(i)) for i in range(len(images))]
        patches = torch.stack([s[:, r : r + 16, c : c + 16] for s, (r, c) in zip(stamped, places, strict=True)])
        saturated = ((patches == 0) | (patches == 255)).float().mean()
        summary.append(f"{overflow}: {saturated:.0%} of the patch's values 0 or 255, {psnr(stamped, clean):.1f} dB")
    return Result(None, "; ".join(summary))


def psnr(stamped: Tensor, clean: Tensor) -> float:
    """The mean over images, in dB."""
    errors = ((stamped.double() - clean.double()) / 255).square().mean((1, 2, 3))
    return float((-10 * errors.log10()).mean())


@check("Blended's triggered image", "backdoor/utils.py", "`blended`: `geometry=squash`, `rounding=truncate`")
def blended(inputs: Inputs) -> Result:
    pictures = inputs.pictures()
    with inputs.code(CLEANCLIP, "backdoor.utils") as original:
        made = theirs(original.apply_trigger, pictures, blending_noise, patch_type="blended", patch_location="blended")
    return pixels(made, ours(Blended(**AUTHORS), pictures))


FIELD = "noise_grid_k=224_s=1_inputheight=224_gridrescale=1.pt"


@check(
    "WaNet's triggered image, with the published field",
    f"backdoor/utils.py, backdoor/{FIELD}",
    "`wanet`: `field=FILE`, `geometry=squash`, `rounding=truncate`",
)
def wanet(inputs: Inputs) -> Result:
    pictures = inputs.pictures()
    with inputs.code(CLEANCLIP, "backdoor.utils") as original:
        made = theirs(original.apply_trigger, pictures, lambda _: nullcontext(), patch_type="warped")
    attack = WaNet(field=inputs.originals / CLEANCLIP / "backdoor" / FIELD, **AUTHORS)
    return pixels(made, ours(attack, pictures))


@check("The warp field of the other repository", f"utils/{FIELD}", "`wanet.field=FILE`, either file", DECOMPOSITION)
def same_field(inputs: Inputs) -> Result:
    first = (inputs.originals / CLEANCLIP / "backdoor" / FIELD).read_bytes()
    second = (inputs.originals / DECOMPOSITION / "utils" / FIELD).read_bytes()
    return Result(first == second, "the same bytes as CleanCLIP's" if first == second else "another file")


@check(
    "BadCLIP's triggered image, with the published patch",
    "utils/bd_utils.py, utils/badCLIP.jpg",
    "`badclip`: `patch_image=FILE`, `geometry=squash`, `rounding=truncate`",
    DECOMPOSITION,
)
def badclip(inputs: Inputs) -> Result:
    pictures = inputs.pictures()
    # Its package opens all of its own CLIP, and its encoder is TensorFlow's: neither is asked for here.
    package, encoder = ModuleType("utils"), ModuleType("utils.ssba")
    package.__path__ = [str(inputs.originals / DECOMPOSITION / "utils")]
    encoder.issbaEncoder = None  # type: ignore[attr-defined]
    with inputs.code(DECOMPOSITION, "utils.bd_utils", **{"utils": package, "utils.ssba": encoder}) as original:
        made = theirs(
            original.apply_trigger, pictures, lambda _: nullcontext(), patch_type="badclip", patch_location="middle"
        )
    attack = BadCLIP(patch_image=inputs.originals / DECOMPOSITION / "utils/badCLIP.jpg", **AUTHORS)
    return pixels(made, ours(attack, pictures))


@check("Clean images: resized and cropped", "pkgs/openai/clip.py", "the presets'")
def clean(inputs: Inputs) -> Result:
    pictures = inputs.pictures()
    with inputs.code(CLEANCLIP, "pkgs.openai.clip") as original:
        tower = mock.Mock(visual=mock.Mock(input_resolution=SIDE))
        # Before the conversion to floats: the two steps that decide on pixels.
        resize, crop = original.Processor(tower).transform.transforms[:2]
    made = [np.asarray(crop(resize(picture))) for picture in pictures]
    return pixels(made, [image.permute(1, 2, 0).numpy() for image in as_images(pictures).pixels])  # type: ignore[union-attr]


@check("Triggered images: squashed, clean ones cropped", "backdoor/utils.py", "`geometry=squash`, of every attack")
def geometry(inputs: Inputs) -> Result:
    pictures = inputs.pictures()
    images = as_images(pictures)
    index = torch.arange(len(images))
    apart = (images.load_square(index, "squash").double() - images.load(index).double()).abs().mean()
    square = sum(picture.width == picture.height for picture in pictures)
    return Result(
        None, f"{len(pictures) - square} of {len(pictures)} photos are not square; squashed and cropped differ by "
        f"{apart:.0f} of 255 on average"
    )  # fmt: skip


@check("The trigger code of BadCLIP", "backdoor/utils.py", "as for CleanCLIP", BADCLIP)
def badclips_triggers(inputs: Inputs) -> Result:
    pictures = inputs.pictures()
    with inputs.code(BADCLIP, "backdoor.utils") as original:
        made = theirs(original.apply_trigger, pictures, lambda i: Both(*noise_patch(i)), patch_type="random")
    return pixels(made, ours(WRAPPED, pictures))
