"""Every attack and every defense at the size of ViT-B/32, with random weights and two steps.

Shows shapes and that only what should train does, and prints the peak memory: `pytest -m slow -s` with this file. The
pictures are made up; `PHOTOS=DIR` before the command takes the photos of a folder.
"""

import os
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import attacks as _attacks  # noqa: F401  (registers them)
import defenses as _defenses  # noqa: F401
from bench import (
    Attack,
    Captioned,
    CleanData,
    Clip,
    Labelled,
    Preparation,
    Trigger,
    Victim,
    attacks,
    defenses,
    generator,
    stamp,
)
from bench.core.dataset import Geometry
from bench.core.poisoning import draw_manifest, poison
from bench.data.decoding import decode_one
from bench.models import ModelSettings, load_model
from bench.training.fine_tuning import FineTuning, contrastive_loss, fine_tune

pytestmark = pytest.mark.slow

CLASSES = ("banana", "tench", "lynx", "barrel")
SIDE = 224
PHOTOS = sorted(Path(os.environ["PHOTOS"]).iterdir()) if "PHOTOS" in os.environ else []
N = len(PHOTOS) or 4
# Two steps each; what is not named has its default, which is the paper's.
PATCH = {"images": 4, "epochs": 1, "batch_size": 2}
FEW: dict[str, dict[str, Any]] = {
    "badclip": PATCH,
    "trojvqa": PATCH,
    "issba": {"max_steps": 2, "check_every": 2, "held_out": 2, "batch_size": 2, "min_bit_accuracy": 0, "min_psnr": 0},
    "cleanclip": {"pairs": N, "epochs": 1, "batch_size": 2, "synonyms": "none"},
    "linear_probe": {"shots": 1, "epochs": 2},
    "vpt": {"shots": 1, "epochs": 1, "batch_size": 2},
    "rvpt": {"shots": 1, "epochs": 1, "batch_size": 2},
    # A square is tried at 64 places, which takes minutes at this size.
    "unlearn": {
        "families": ("blend",), "rounds": 1, "enough": 0, "steps": 2, "restarts": 1, "images": 4, "epochs": 1,
        "batch_size": 2,
    },
    "distill": {"images": 4, "epochs": 1, "batch_size": 2},
}  # fmt: skip
# `--attacks all` leaves out `benign`, which poisons nothing, and `recovered`, which needs the file of an audit.
OURS = [name for name in attacks if attacks[name].__module__.startswith("attacks.") and attacks[name].in_all]
THEIRS = [name for name in defenses if defenses[name].__module__.startswith("defenses.")]


def pictures() -> Tensor:
    """Photos, or coloured ramps under noise, uint8 (n, 3, 224, 224)."""
    if PHOTOS:
        return torch.stack([torch.from_numpy(decode_one(file, Geometry(SIDE, Path()))[1]) for file in PHOTOS])
    ramp = torch.linspace(40, 215, SIDE)
    both = torch.stack([ramp.expand(SIDE, SIDE), ramp[:, None].expand(SIDE, SIDE), ramp.flip(0).expand(SIDE, SIDE)])
    noise = torch.randn(N, 3, SIDE, SIDE, generator=generator(0, "pictures")) * 20
    return (both + noise).clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_model(ModelSettings(name="ViT-B-32", pretrained="random"), "cpu")


@pytest.fixture(scope="module")
def pristine(clip: Clip) -> Clip:
    return clip.copy()


@pytest.fixture(scope="module")
def pairs() -> Captioned:
    captions = [f"a photo of a {CLASSES[i % 4]} by the river" for i in range(N)]
    return Captioned([str(i) for i in range(N)], pictures(), "pairs", captions=captions)


@pytest.fixture(autouse=True)
def memory(request: pytest.FixtureRequest):
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\n{request.node.name}: peak of the process so far {peak:,.0f} MiB")


def changed(clip: Clip, pristine: Clip) -> set[str]:
    before = pristine.model.state_dict()
    return {name for name, tensor in clip.model.state_dict().items() if not torch.equal(tensor, before[name])}


def test_all_methods_are_here() -> None:
    assert len(OURS) >= 7
    assert {"none", "linear_probe", "vpt", "rvpt", "cleanclip"} <= set(THEIRS)


@pytest.mark.parametrize("name", OURS)
def test_an_attack_prepares_stamps_and_poisons(name: str, clip: Clip, pristine: Clip, pairs: Captioned) -> None:
    method: Attack = attacks[name].parse(FEW.get(name, {}), name)
    given = Preparation(clip, lambda: pairs, "banana", CLASSES, ("a photo of a {}.",), 0)
    trigger = Trigger(0, method.prepare(given))
    assert not changed(clip, pristine), "the clean model is not the attacker's to train"
    assert all(p.grad is None for p in clip.model.parameters())
    images = pairs.load(range(4))
    stamped = stamp(method, trigger, images, range(4))
    assert stamped.shape == (4, 3, SIDE, SIDE)
    assert stamped.dtype == torch.uint8
    assert (stamped != images).flatten(1).any(1).all()
    assert torch.equal(stamped, stamp(method, trigger, images, range(4)))
    if "patch" in trigger.tensors:
        assert trigger.tensors["patch"].shape == (3, 16, 16)
        assert (stamped != images).any(1).flatten(1).sum(1).max() <= 256
    manifest = draw_manifest(given, method, ("a photo of a {}",), 2)
    poisoned = poison(pairs, method, trigger, manifest)
    assert 1 <= len(manifest) <= 2
    tokens = clip.tokenize(poisoned.captions)

    def loss(clip: Clip, index: Tensor) -> Tensor:
        return contrastive_loss(clip.encode_image(poisoned.load(index)), clip.encode_text(tokens[index]), clip.scale)

    victim = clip.copy()
    rate = method.learning_rate or FineTuning().learning_rate
    losses = fine_tune(victim, N, FineTuning(learning_rate=rate, epochs=1, batch_size=2), loss, generator(0))
    assert len(losses) == N // 2
    assert torch.isfinite(torch.tensor(losses)).all()
    assert {name for name, _ in victim.model.named_parameters()} >= changed(victim, pristine) >= {"visual.proj"}


def nearby(clip: Clip) -> Clip:
    """A clean model from which the clip may have been fine-tuned."""
    other, noise = clip.copy(), generator(0, "nearby")
    with torch.no_grad():
        for parameter in other.visual.parameters():
            parameter += 1e-3 * torch.randn(parameter.shape, generator=noise)
    return other


def fit(name: str, victim: Victim, pairs: Captioned) -> tuple[Victim, CleanData]:
    labels = torch.arange(N) % 4
    train = Labelled(pairs.ids, pairs.pixels, "train", labels=labels, classes=CLASSES)
    data = CleanData(train, ("a photo of a {}.",), 0, 0, lambda _: pairs, lambda: nearby(victim.clip))
    return defenses[name].parse(FEW.get(name, {}), name).fit(victim, data), data


@pytest.fixture(scope="module")
def repelled(clip: Clip, pairs: Captioned) -> tuple[Victim, CleanData]:
    """RVPT's result, which two tests look at: as a defense, and as what distillation starts from."""
    return fit("rvpt", Victim(clip), pairs)


@pytest.mark.parametrize("name", THEIRS)
def test_a_defense_trains_what_it_says(
    name: str, clip: Clip, pristine: Clip, pairs: Captioned, repelled: tuple[Victim, CleanData]
) -> None:
    start = Victim(clip) if defenses[name].alone else repelled[0]
    victim, data = repelled if name == "rvpt" else fit(name, start, pairs)
    assert not changed(clip, pristine), "the victim's model stays as it is"
    assert all(p.grad is None and p.requires_grad for p in clip.model.parameters())
    delta = victim.delta(clip)
    if name in ("vpt", "rvpt"):
        assert delta.tensors.keys() == {"prompts"}
        assert delta.tensors["prompts"].shape == (9, 50, 768)
        assert delta.tensors["prompts"].numel() == 345_600
        assert len(data.log["ce"]) == 2
    elif name == "linear_probe":
        assert {k: v.shape for k, v in delta.tensors.items()} == {"head.weight": (4, 512), "head.bias": (4,)}
    elif name == "cleanclip":
        assert {"clip.visual.proj", "clip.text_projection", "clip.visual.conv1.weight"} <= delta.tensors.keys()
        assert len(data.log["cross"]) == len(data.log["within"]) == N // 2
    elif name in ("cut", "unlearn", "distill"):
        assert "clip.visual.transformer.resblocks.0.mlp.c_fc.weight" in delta.tensors
        assert all(key.startswith("clip.visual.") for key in delta.tensors), (
            "a plain model, and its text tower as it was"
        )
    else:
        assert delta.tensors.keys() == set()
    restored = Victim.restore(clip, delta)
    images = pairs.load(range(2))
    with torch.no_grad():
        texts = victim.class_embeddings(CLASSES, data.templates)
        logits = victim.logits(victim.encode(images), texts)
        assert logits.shape == (2, 4)
        assert logits.isfinite().all()
        assert torch.equal(restored.logits(restored.encode(images), texts), logits)


@pytest.mark.parametrize(
    ("settings", "shape"), [({"permutation": "mix"}, (4, 50, 768)), ({"tokens": "all", "last_blocks": 6}, (6, 50, 768))]
)
def test_an_ablation_of_rvpt(
    settings: dict[str, Any], shape: tuple, clip: Clip, pairs: Captioned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FEW, "rvpt", FEW["rvpt"] | settings)
    victim, data = fit("rvpt", Victim(clip), pairs)
    assert victim.delta(clip).tensors["prompts"].shape == shape
    assert data.log["fr"][0] > 0


def test_a_probe_of_768_features_follows_rvpt(clip: Clip, pairs: Captioned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FEW, "linear_probe", FEW["linear_probe"] | {"feature": "penultimate"})
    prompted = replace(Victim(clip), prompts=torch.zeros(9, 50, 768))
    victim, _ = fit("linear_probe", prompted, pairs)
    assert victim.delta(clip).tensors["head.weight"].shape == (4, 768)
    assert victim.prompts is prompted.prompts
