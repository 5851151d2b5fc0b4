"""Visual prompt tuning (VPT, RVPT) and the linear probe, on a tiny CLIP and random images."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from tuning import CLASSES, PLAIN, SIDE, SMALL, first_tokens, fit, make_data, make_images, prompts_of

from bench import BenchError, CleanData, Clip, Defense, Labelled, Victim, defenses, generator
from bench.core.encoder import encode, encode_tokens, layers
from bench.core.images import crops, few_shot
from defenses import prompt_tuning
from defenses.linear_probe import LinearProbe, embed
from defenses.none import NoDefense
from defenses.prompt_tuning import PromptTuning
from defenses.rvpt import RVPT, feature_repelling
from defenses.tower import Tower
from defenses.vpt import VPT

# --- the settings of the papers


def test_registered_under_the_names_of_the_field() -> None:
    expected = {"vpt": VPT, "rvpt": RVPT, "linear_probe": LinearProbe, "none": NoDefense}
    assert {name: defenses[name] for name in expected} == expected


@pytest.mark.parametrize("method", [VPT(), RVPT()])
def test_prompt_tuning_has_the_paper_s_settings(method: PromptTuning) -> None:
    assert (method.depth, method.prompts, method.init, method.init_std) == (3, 50, "normal", 0.02)
    assert (method.learning_rate, method.momentum, method.weight_decay) == (0.002, 0.9, 5e-4)
    assert (method.shots, method.batch_size, method.epochs, method.warmup_epochs) == (16, 32, 50, 1)
    assert (method.min_crop, method.flip, method.views) == (0.08, True, None)


def test_rvpt_repels_with_weight_2_and_no_floor() -> None:
    assert (RVPT().alpha, RVPT().margin) == (2, -1)


def test_linear_probe_has_the_paper_s_settings() -> None:
    probe = LinearProbe()
    assert (probe.learning_rate, probe.momentum, probe.batch_size, probe.epochs) == (0.01, 0.9, 32, 40)
    assert probe.shots == RVPT().shots


# --- the feature-repelling loss


def numpy_repelling(prompted: np.ndarray, frozen: np.ndarray, margin: float) -> float:
    norms = np.linalg.norm(prompted, axis=-1) * np.linalg.norm(frozen, axis=-1)
    per_image = ((prompted * frozen).sum(-1) / norms).mean(0)
    return float(np.maximum(per_image, margin).mean())


@pytest.mark.parametrize("margin", [-1.0, 0.0, 0.1, 1.0])
def test_l_fr_is_the_mean_cosine_with_a_floor_per_image(margin: float) -> None:
    a, b = (torch.randn(3, 7, 8, generator=generator(0, name)) for name in "ab")
    expected = numpy_repelling(a.double().numpy(), b.double().numpy(), margin)
    assert feature_repelling(a, b, margin).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("scale", [1.0, -3.0, 0.0])
def test_l_fr_of_known_directions(scale: float) -> None:
    """In [-1, 1], whatever the lengths: the same direction, the opposite one, an orthogonal one."""
    a = torch.randn(3, 7, 8, generator=generator(0))
    b = a * scale if scale else torch.cat([-a[..., 4:], a[..., :4]], -1)
    assert feature_repelling(a, b).item() == pytest.approx(np.sign(scale), abs=1e-6)


def test_l_fr_of_half_precision_takes_norms_in_fp32() -> None:
    a = torch.full((1, 1, 64), 200.0, dtype=torch.float16)
    assert feature_repelling(a, a).item() == pytest.approx(1, abs=1e-6)


# --- prompt tuning: what changes, what does not


@pytest.mark.parametrize("method", [VPT(**SMALL), RVPT(**SMALL), RVPT(**SMALL, views=1)], ids=["vpt", "rvpt", "cached"])
def test_prompts_alone_change(method: PromptTuning, tiny_clip: Clip) -> None:
    """Gradients reach P^D..P^(L-1) and nothing else; every other tensor is byte-identical."""
    before = tiny_clip.fingerprint()
    victim, _ = fit(method, tiny_clip)
    assert tiny_clip.fingerprint() == victim.clip.fingerprint() == before
    assert all(p.grad is None for p in tiny_clip.model.parameters())
    assert victim.prompts is not None
    assert victim.prompts.shape == (3, 3, 32)
    assert not victim.prompts.requires_grad
    assert victim.head is None
    assert set(victim.delta(tiny_clip).tensors) == {"prompts"}
    start = prompts_of(method.model_copy(update={"epochs": 0}), tiny_clip)
    assert ((victim.prompts - start).abs().amax((1, 2)) > 0).all()


def test_the_frozen_branch_carries_no_graph(tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    loss = RVPT.loss

    def spy(self: RVPT, prompted: Tensor, frozen: Tensor) -> Any:
        assert prompted.requires_grad
        seen.append(frozen)
        return loss(self, prompted, frozen)

    monkeypatch.setattr(RVPT, "loss", spy)
    fit(RVPT(**SMALL), tiny_clip)
    assert len(seen) == 6
    assert not any(frozen.requires_grad for frozen in seen)


def test_both_encoders_see_the_same_view(tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """The repelled class tokens are those of the unprompted tower on the very same augmented image."""

    hidden: list[Tensor] = []
    encode_with_prompts = Tower.encode

    def see(self: Tower, entering: Tensor, prompts: Tensor | None = None) -> Any:
        if prompts is not None:
            hidden.append(entering)
        return encode_with_prompts(self, entering, prompts)

    def check(self: RVPT, prompted: Tensor, frozen: Tensor) -> Any:
        torch.testing.assert_close(frozen, encode_tokens(tiny_clip, hidden[-1], self.depth).class_tokens)
        return prompted.new_zeros(()), {}

    monkeypatch.setattr(Tower, "encode", see)
    monkeypatch.setattr(RVPT, "loss", check)
    for views in (None, 2):
        fit(RVPT(**SMALL, views=views), tiny_clip)
    assert len(hidden) == 12
    assert not any(entering.requires_grad for entering in hidden)


def test_no_epochs_leave_the_initial_prompts(tiny_clip: Clip) -> None:
    """N(0, 0.02^2); the original VPT's are uniform up to sqrt(6 / (3 patch^2 + width))."""
    normal = prompts_of(VPT(epochs=0, depth=0, prompts=200), tiny_clip)
    assert normal.shape == (4, 200, 32)
    assert normal.mean().item() == pytest.approx(0, abs=5e-4)
    assert normal.std().item() == pytest.approx(0.02, rel=0.02)
    uniform, bound = (
        prompts_of(VPT(epochs=0, depth=0, prompts=200, init="vpt"), tiny_clip),
        math.sqrt(6 / (3 * 64 + 32)),
    )
    assert uniform.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert uniform.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize("method", [VPT(**{**SMALL, "prompts": 0}), RVPT(**{**SMALL, "prompts": 0})])
def test_no_prompts_are_no_defense(method: PromptTuning, tiny_clip: Clip) -> None:
    """Without prompts a fit leaves every embedding as the base model has it, bit for bit."""
    victim, _ = fit(method, tiny_clip)
    images = make_images().load(range(4))
    assert torch.equal(victim.encode(images).embedding, encode(tiny_clip, images).embedding)


@pytest.mark.parametrize("views", [None, 2])
def test_a_fit_depends_on_its_seed_alone(tiny_clip: Clip, views: int | None) -> None:
    method, fits = RVPT(**SMALL, views=views), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        fits.append(prompts_of(method, tiny_clip))
        # And it leaves the global generator where it was.
        state = torch.random.get_rng_state()
        torch.manual_seed(seed)
        assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(*fits)
    assert not torch.equal(fits[0], prompts_of(method, tiny_clip, make_data(seed=1)))


# --- prompt tuning: the losses


def manual_fit(method: RVPT, clip: Clip, data: CleanData) -> Tensor:
    """RVPT on whole batches without augmentation: plain autograd on whole forwards, and SGD by hand."""
    shots = data.shots(method.shots)
    texts = clip.encode_text([f"a photo of a {name}." for name in CLASSES]).detach()
    frozen = encode(clip, shots.load(range(len(shots)))).class_tokens[method.depth :].detach()
    shape = (layers(clip) - method.depth, method.prompts, 32)
    prompts = torch.randn(shape, generator=data.rng("prompts")) * method.init_std
    velocity = None
    for epoch in range(method.epochs):
        prompts.requires_grad_()
        seen = encode(clip, shots.load(range(len(shots))), prompts)
        logits = clip.model.logit_scale.exp().detach() * F.normalize(seen.embedding, dim=-1) @ texts.T
        cosines = F.cosine_similarity(seen.class_tokens, frozen, dim=-1)
        loss = F.cross_entropy(logits, shots.labels) + method.alpha * cosines.mean(0).clamp(min=method.margin).mean()
        (gradient,) = torch.autograd.grad(loss, prompts)
        gradient = gradient + method.weight_decay * prompts.detach()
        velocity = gradient if velocity is None else method.momentum * velocity + gradient
        rate = method.learning_rate * (1 + math.cos(math.pi * epoch / method.epochs)) / 2
        prompts = prompts.detach() - rate * velocity
    return prompts


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"alpha": 0.5, "margin": 0.9},
        {"alpha": 0},
        {"depth": 0},
        {"depth": 3},
        {"weight_decay": 0.5, "momentum": 0.5},
    ],
    ids=str,
)
def test_rvpt_is_its_equations(settings: dict[str, Any], tiny_clip: Clip) -> None:
    """Whole-batch training against a second implementation: eq. 2 to 5, SGD, cosine."""
    method = RVPT(**{**PLAIN, "batch_size": 12, "epochs": 5} | settings)
    expected = manual_fit(method, tiny_clip, make_data())
    torch.testing.assert_close(prompts_of(method, tiny_clip), expected, atol=1e-5, rtol=1e-4)


def test_margin_1_and_alpha_0_are_vpt_bit_for_bit(tiny_clip: Clip) -> None:
    """A floor of 1 leaves no cosine to push down, and a weight of 0 nothing to push with."""
    vpt = prompts_of(VPT(**SMALL), tiny_clip)
    assert torch.equal(prompts_of(RVPT(**SMALL, margin=1), tiny_clip), vpt)
    assert torch.equal(prompts_of(RVPT(**SMALL, alpha=0), tiny_clip), vpt)
    plain = prompts_of(RVPT(**SMALL), tiny_clip)
    assert torch.equal(prompts_of(RVPT(**SMALL, margin=-1), tiny_clip), plain)
    assert not torch.equal(plain, vpt)


def test_a_margin_stops_repelling_there(tiny_clip: Clip) -> None:
    settings = {**PLAIN, "batch_size": 12, "epochs": 40, "alpha": 20.0}
    _, free = fit(RVPT(**settings), tiny_clip)
    _, floored = fit(RVPT(**settings, margin=0.9), tiny_clip)
    assert free.log["fr"][-1] < 0.85
    assert floored.log["fr"][-1] == pytest.approx(0.9, abs=0.02)


def test_l_fr_falls_from_near_1_while_only_ce_is_driven_down_without_it(tiny_clip: Clip) -> None:
    """How far it falls is a matter of the model, and this one is random."""
    settings = {**PLAIN, "depth": 0, "prompts": 8, "batch_size": 12, "epochs": 30}
    repelling, data = fit(RVPT(**settings), tiny_clip)
    plain, plain_data = fit(RVPT(**settings, alpha=0), tiny_clip)
    curve, plain_ce = data.log["fr"], plain_data.log["ce"]
    assert len(curve) == len(plain_ce) == 30
    assert 0.9 < curve[0] <= 1
    assert curve[-1] < 0.8
    assert np.mean([later < earlier for earlier, later in pairwise(curve)]) > 0.9
    assert "fr" not in plain_data.log
    assert plain_ce[-1] < plain_ce[0] - 0.03
    images = make_images().load(range(12))
    frozen = encode(tiny_clip, images).class_tokens
    ends = [feature_repelling(victim.encode(images).class_tokens, frozen).item() for victim in (repelling, plain)]
    assert ends[0] == pytest.approx(curve[-1], abs=0.01)
    assert ends[1] > ends[0] + 0.1


# --- prompt tuning: the schedule


@pytest.mark.parametrize(("warmup", "epochs"), [(0, 8), (1, 8), (1, 50), (2, 8)])
def test_sgd_gets_the_rates_of_coop(warmup: int, epochs: int, tiny_clip: Clip) -> None:
    """Constant 1e-5, then torch's cosine annealing over all epochs from its start, as Dassl chains the two."""
    method = VPT(**PLAIN | {"epochs": epochs, "warmup_epochs": warmup})
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=method.learning_rate)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    expected = [1e-5] * warmup
    for _ in range(epochs - warmup):
        expected.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        cosine.step()
    rates: list[float] = []
    handle = register_optimizer_step_pre_hook(lambda optimiser, *_: rates.append(optimiser.param_groups[0]["lr"]))
    try:
        fit(method, tiny_clip)
    finally:
        handle.remove()
    assert rates == pytest.approx([rate for rate in expected for _ in range(2)]), "two steps an epoch"


# --- prompt tuning: the views


def test_cached_and_fresh_features_train_the_same(tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """With views that are the images themselves, which nothing tells apart but the order of computation."""
    monkeypatch.setattr(prompt_tuning, "crops", lambda shots, index, *_: shots.load(index))
    fresh, cached = (prompts_of(RVPT(**SMALL, views=views), tiny_clip) for views in (None, 1))
    torch.testing.assert_close(cached, fresh, atol=1e-5, rtol=1e-4)
    # And that is what no augmentation means.
    torch.testing.assert_close(prompts_of(RVPT(**PLAIN), tiny_clip), fresh, atol=1e-5, rtol=1e-4)


def views_of(method: PromptTuning, shots: Labelled, seeds: range) -> list[Tensor]:
    how = method.min_crop, method.max_aspect, method.flip
    return [crops(shots, torch.arange(len(shots)), seed, *how) for seed in seeds]


def test_views_are_seeded_crops_of_native_images() -> None:
    shots, method = make_images(), VPT()
    first, again, other = views_of(method, shots, range(1))[0], *(views_of(method, shots, range(2)))
    assert first.shape == (12, 3, SIDE, SIDE)
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_crop_and_flip_views_are_the_images() -> None:
    shots = make_images()
    (view,) = views_of(VPT(min_crop=1, flip=False), shots, range(1))
    assert torch.equal(view, shots.load(range(12)))


@pytest.mark.parametrize("native", [(40, 56), (32, 32), (90, 30), None])
def test_without_crop_views_are_the_images_or_their_mirrors(native: tuple[int, int] | None) -> None:
    shots = make_images(native)
    images = cast(Tensor, shots.pixels)
    same = mirrored = 0
    for view in views_of(VPT(min_crop=1), shots, range(5)):
        for image, original in zip(view, images, strict=True):
            same += torch.equal(image, original)
            mirrored += torch.equal(image, original.flip(-1))
    assert same + mirrored == 60
    assert same > 15
    assert mirrored > 15


def test_crops_take_the_share_of_the_area_that_is_set() -> None:
    """On ramps a crop's extent can be read off: what it spans of the full range."""
    ramp = torch.linspace(0, 255, 96).round().to(torch.uint8)
    native = torch.stack([ramp.expand(96, 96), ramp[:, None].expand(96, 96), torch.zeros(96, 96, dtype=torch.uint8)])
    shots = replace(make_images(), native=lambda _: native)
    for low in (0.08, 0.85):
        views = torch.cat(views_of(VPT(min_crop=low, flip=False), shots, range(10))).float()
        width, height = (views[:, c].amax((1, 2)) - views[:, c].amin((1, 2)) for c in (0, 1))
        area = width * height / 255**2
        assert low - 0.05 < area.min() < low + 0.15
        assert 0.8 < area.max() <= 1


def test_cached_views_are_as_many_as_asked_for(tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def spy(shots: Labelled, index: Tensor, seed: int, *how: Any) -> Tensor:
        seeds.append(seed)
        return crops(shots, index, seed, *how)

    monkeypatch.setattr(prompt_tuning, "crops", spy)
    for wanted, expected in ((1, 1), (2, 2), (9, 3), (None, 6)):
        seeds.clear()
        fit(VPT(**SMALL, views=wanted), tiny_clip)
        assert len(set(seeds)) == len(seeds) == expected


# --- prompt tuning: what it cannot do


@pytest.mark.parametrize("depth", [4, 5])
def test_too_deep_is_an_error(tiny_clip: Clip, depth: int) -> None:
    with pytest.raises(BenchError, match=f"depth = {depth}, but this image tower has 4 blocks: no block gets prompts"):
        fit(VPT(depth=depth), tiny_clip)


@pytest.mark.parametrize("worn", [{"prompts": torch.zeros(1, 1, 32)}, {"head": torch.nn.Linear(32, 3)}])
def test_prompts_go_on_a_clip_without_prompts_or_head(tiny_clip: Clip, worn: dict[str, Any]) -> None:
    with pytest.raises(BenchError, match="needs a CLIP without prompts or a head; it can follow cleanclip only"):
        RVPT(**SMALL).fit(Victim(tiny_clip, **worn), make_data())


def test_a_resnet_gets_no_prompts(resnet: Clip) -> None:
    message = r"is a ModifiedResNet\. Use --defenses cleanclip,linear_probe,unlearn, or a ViT"
    with pytest.raises(BenchError, match=message):
        fit(VPT(**SMALL), resnet)


# --- few shots


def test_few_shots_are_exact_seeded_and_the_same_for_every_defense() -> None:
    data = make_data(make_images(per_class=9))
    shots = data.shots(4)
    assert torch.bincount(shots.labels).tolist() == [4, 4, 4]
    assert len(set(shots.ids)) == 12
    assert shots.ids == data.shots(4).ids != make_data(make_images(per_class=9), seed=1).shots(4).ids
    for i, id in enumerate(shots.ids):
        assert torch.equal(shots.load([i])[0], data.train.load([int(id)])[0])
        assert torch.equal(shots.load_native(i), data.train.load_native(int(id)))
        assert shots.labels[i] == data.train.labels[int(id)]


@pytest.mark.parametrize("mapped", [False, True], ids=["in memory", "memory-mapped"])
def test_a_class_with_fewer_gives_all_it_has(mapped: bool) -> None:
    train = make_images(mapped=mapped).subset(torch.tensor([0, 1, 2, 3, 4, 6, 9]))
    shots = few_shot(train, 3, generator(0))
    assert torch.bincount(shots.labels).tolist() == [3, 2, 1]
    assert isinstance(shots.load([0]), Tensor)


@pytest.mark.parametrize("method", [VPT(**SMALL), LinearProbe(shots=4, epochs=1)], ids=["vpt", "linear_probe"])
def test_the_images_that_were_used_are_known(method: Defense, tiny_clip: Clip) -> None:
    data = make_data(make_images(per_class=9))
    assert data.used == []
    fit(method, tiny_clip, data)
    assert data.used == make_data(make_images(per_class=9)).shots(4).ids
    assert len(data.used) == 12


def test_a_class_can_be_left_out_and_keeps_its_number() -> None:
    shots = make_data().shots(2, without=1)
    assert shots.labels.tolist() == [0, 0, 2, 2]
    assert shots.classes == CLASSES


def test_a_class_without_images_is_an_error() -> None:
    train = make_images().subset(torch.tensor([0, 1, 3]))
    message = r"class 'house' has no training image to tune on\. Add images, or remove the class\."
    with pytest.raises(BenchError, match=message):
        few_shot(train, 2, generator(0))


# --- none, and the linear probe


def test_none_is_the_victim_itself(tiny_clip: Clip) -> None:
    victim = Victim(tiny_clip)
    assert NoDefense().fit(victim, make_data()) is victim


def probe_features(victim: Victim, data: CleanData, shots: int) -> tuple[np.ndarray, np.ndarray]:
    images = data.shots(shots)
    with torch.no_grad():
        features = victim.encode(images.load(range(len(images)))).embedding
    return features.double().numpy(), images.labels.numpy()


def test_linear_probe_is_softmax_regression_in_numpy(tiny_clip: Clip) -> None:
    """SGD with momentum at a constant rate, from the probe's own start, on raw embeddings; a whole batch a step."""
    method, data = LinearProbe(shots=4, batch_size=12, epochs=20, learning_rate=0.05), make_data()
    x, y = probe_features(Victim(tiny_clip), data, 4)
    start = LinearProbe(shots=4, batch_size=12, epochs=1, learning_rate=1e-30).fit(Victim(tiny_clip), data).head
    assert start is not None
    parameters = np.concatenate([start.weight.double().numpy(), start.bias.double().numpy()[:, None]], 1)
    velocity, x1 = np.zeros_like(parameters), np.concatenate([x, np.ones((12, 1))], 1)
    for _ in range(20):
        scores = np.exp(x1 @ parameters.T)
        slope = (scores / scores.sum(1, keepdims=True) - np.eye(3)[y]).T @ x1 / 12
        velocity = 0.9 * velocity + slope
        parameters = parameters - 0.05 * velocity
    head = method.fit(Victim(tiny_clip), data).head
    assert head is not None
    np.testing.assert_allclose(head.weight, parameters[:, :-1], atol=1e-5)
    np.testing.assert_allclose(head.bias, parameters[:, -1], atol=1e-5)


def test_linear_probe_leaves_the_encoder_alone_and_needs_no_text(tiny_clip: Clip) -> None:
    """The head alone is trained: the encoder is byte-identical, and no text enters the logits."""
    before, (victim, data) = tiny_clip.fingerprint(), fit(LinearProbe(shots=4, epochs=5, batch_size=5), tiny_clip)
    assert tiny_clip.fingerprint() == victim.clip.fingerprint() == before
    assert set(victim.delta(tiny_clip).tensors) == {"head.weight", "head.bias"}
    assert victim.head is not None
    assert not victim.head.weight.requires_grad
    assert len(data.log["ce"]) == 15
    assert data.log["ce"][-1] < data.log["ce"][0]
    # Another text tower, the same logits.
    deaf = tiny_clip.copy()
    with torch.no_grad():
        for name, parameter in deaf.model.named_parameters():
            if not name.startswith("visual."):
                parameter.zero_()
    other, _ = fit(LinearProbe(shots=4, epochs=5, batch_size=5), deaf)
    images = make_images().load(range(5))
    with torch.no_grad():
        first, second = (v.logits(v.encode(images), torch.full((3, 32), torch.nan)) for v in (victim, other))
    assert torch.equal(first, second)


@pytest.mark.parametrize("mapped", [False, True], ids=["in memory", "memory-mapped"])
def test_cached_features_are_those_of_the_images(tiny_clip: Clip, mapped: bool) -> None:
    images = make_images(mapped=mapped)
    cached = embed(Victim(tiny_clip), images, batch_size=5)
    with torch.no_grad():
        single = torch.cat([encode(tiny_clip, images.load([i])).embedding for i in range(12)])
    torch.testing.assert_close(cached, single, atol=1e-5, rtol=1e-5)
    # The probe wants lengths: raw embeddings, not unit-norm ones.
    assert (cached.norm(dim=-1) - 1).abs().min() > 0.01


def test_linear_probe_after_prompts_probes_the_prompted_encoder(tiny_clip: Clip) -> None:
    prompted = replace(Victim(tiny_clip), prompts=torch.randn(3, 3, 32, generator=generator(0)))
    probed, plain = (
        LinearProbe(shots=4, epochs=3).fit(victim, make_data()) for victim in (prompted, Victim(tiny_clip))
    )
    assert probed.prompts is prompted.prompts
    assert probed.head is not None
    assert plain.head is not None
    assert not torch.equal(probed.head.weight, plain.head.weight)
    assert set(probed.delta(tiny_clip).tensors) == {"prompts", "head.weight", "head.bias"}


@pytest.mark.parametrize("feature", ["embedding", "penultimate"])
@pytest.mark.parametrize("normalise", [False, True])
def test_what_the_probe_reads_is_what_it_is_trained_on(feature: Any, normalise: bool, tiny_config: dict) -> None:
    """The class token after ln_post, before the projection (768 numbers of ViT-B/32), or the embedding of 512."""
    tiny_config["model_cfg"]["embed_dim"] = tiny_config["model_cfg"]["text_cfg"]["width"] = 16
    clip = Clip.from_config(tiny_config)
    victim, data = fit(LinearProbe(shots=4, epochs=30, feature=feature, normalise=normalise), clip)
    assert victim.head is not None
    assert victim.head.weight.shape == (3, 16 if feature == "embedding" else 32)
    images = make_images().load(range(5))
    with torch.no_grad():
        hidden = first_tokens(clip, images)
        for block in clip.visual.transformer.resblocks:
            hidden = block(hidden)
        features = clip.visual.ln_post(hidden[:, 0])
        features = features @ clip.visual.proj if feature == "embedding" else features
        features = features / features.norm(dim=-1, keepdim=True) if normalise else features
        expected = features @ victim.head.weight.T + victim.head.bias
        again = Victim.restore(clip, victim.delta(clip))
        for one in (victim, again):
            seen = one.logits(one.encode(images), torch.full((3, 16), torch.nan))
            torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-4)
        # The features of training are those of test: the head has learnt its images.
        shots = data.shots(4)
        losses = F.cross_entropy(one.logits(one.encode(shots.load(range(12))), features), shots.labels)
    assert losses.item() < data.log["ce"][0]
    delta = victim.delta(clip)
    assert set(delta.tensors) == {"head.weight", "head.bias"}
    assert (delta.settings["reads"], delta.settings["unit_norm"]) == (feature, normalise)


@pytest.mark.parametrize("mapped", [False, True], ids=["in memory", "memory-mapped"])
def test_a_probe_of_the_whole_training_set(tiny_clip: Clip, mapped: bool) -> None:
    data = make_data(make_images(per_class=9, mapped=mapped))
    victim, _ = fit(LinearProbe(shots=None, epochs=2, batch_size=9), tiny_clip, data)
    assert len(data.log["ce"]) == 2 * 27 / 9
    assert data.used == list(data.train.ids)
    assert victim.head is not None
    again = make_data(make_images(per_class=9, mapped=mapped))
    few, _ = fit(LinearProbe(shots=2, epochs=2, batch_size=9), tiny_clip, again)
    assert few.head is not None
    assert len(again.used) == 6
    assert not torch.equal(few.head.weight, victim.head.weight)


def test_linear_probe_works_on_a_resnet(resnet: Clip) -> None:
    before, (victim, _) = resnet.fingerprint(), fit(LinearProbe(shots=4, epochs=3), resnet)
    assert resnet.fingerprint() == before
    assert victim.head is not None
    assert victim.head.weight.shape == (3, 32)


def test_a_probe_depends_on_its_seed_alone(tiny_clip: Clip) -> None:

    def make(seed: int) -> Tensor:
        head = fit(LinearProbe(shots=4, epochs=2), tiny_clip, make_data(seed=seed))[0].head
        assert head is not None
        return head.weight

    first = make(0)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    assert torch.equal(make(0), first)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(make(1), first)
