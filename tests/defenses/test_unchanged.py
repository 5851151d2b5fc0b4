"""What a defense leaves as it was: the losses of the first release, and a model where no prompt is.

And what RVPT does to a backdoored model of the embedded world.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from tuning import SMALL, fit, make_images

from attacks.badnet import BadNet
from bench import CleanData, Clip, Defense, Geometry, Preparation, Trigger, Victim, generator, stamp
from bench.core.encoder import encode
from bench.core.poisoning import draw_manifest, poison
from bench.data.world import World
from bench.models import ModelSettings, load_model
from bench.training.fine_tuning import FineTuning, contrastive_loss, fine_tune
from defenses.linear_probe import LinearProbe
from defenses.rvpt import RVPT, feature_repelling
from defenses.vpt import VPT

# What the last commit before the ablations prints; defaults of later settings must not change it.
#   git worktree add ../first 8603747 && cd ../first && cat > tests/test_print.py <<END
#   from test_defenses import *
#   METHODS = [VPT(**SMALL), RVPT(**SMALL), RVPT(**SMALL, views=1), RVPT(**SMALL, margin=0.9, alpha=0.5),
#              LinearProbe(shots=4, epochs=1, batch_size=5)]
#   def test_print(tiny_clip):
#       for method in METHODS:
#           print(method, fit(method, tiny_clip)[1].log)
#   END
#   python -m pytest -s tests/test_print.py -k test_print
RECORDED = [
    (VPT(**SMALL), "ce", [1.0946512, 1.2132491, 1.1850778, 1.3256152, 1.1206046, 1.2644565]),
    (RVPT(**SMALL), "ce", [1.0946512, 1.2146167, 1.1877509, 1.3071326, 1.1002884, 1.3036845]),
    (RVPT(**SMALL), "fr", [0.9976280, 0.9971359, 0.9932305, 0.9932091, 0.9841500, 0.9748824]),
    (RVPT(**SMALL, views=1), "ce", [1.0108348, 1.2412292, 0.9827469, 1.1423326, 0.9969149, 1.1826973]),
    (RVPT(**SMALL, views=1), "fr", [0.9972618, 0.9964447, 0.9945266, 0.9936633, 0.9877818, 0.9825436]),
    (RVPT(**SMALL, margin=0.9, alpha=0.5), "fr", [0.9976280, 0.9973372, 0.9943193, 0.9953662, 0.9906145, 0.9855211]),
    (LinearProbe(shots=4, epochs=1, batch_size=5), "ce", [1.2176936, 1.2818159, 0.9558485]),
]


@pytest.mark.parametrize(("method", "curve", "values"), RECORDED)
def test_losses_are_those_of_the_first_release(
    method: Defense, curve: str, values: list[float], tiny_clip: Clip
) -> None:
    _, data = fit(method, tiny_clip)
    assert data.log[curve] == pytest.approx(values, rel=2e-4)


@pytest.mark.parametrize("settings", [{}, {"tokens": "all"}, {"permutation": "split"}, {"permutation": "mix"}], ids=str)
def test_no_graph_and_no_change_where_no_prompt_is(settings: dict[str, Any], tiny_clip: Clip) -> None:
    """Every other tensor is byte-identical, and none of it has a gradient."""
    before = tiny_clip.fingerprint()
    victim, _ = fit(RVPT(**SMALL | {"depth": 0} | settings), tiny_clip)
    assert tiny_clip.fingerprint() == victim.clip.fingerprint() == before
    assert all(p.grad is None and p.requires_grad for p in tiny_clip.model.parameters())
    assert victim.prompts is not None
    assert not victim.prompts.requires_grad


@pytest.mark.parametrize("settings", [{"tokens": "all"}, {"permutation": "intertwine"}, {"distance": "l2"}], ids=str)
def test_no_prompts_are_the_base_model_in_every_ablation(settings: dict[str, Any], tiny_clip: Clip) -> None:
    """A fit without prompts, and the victim restored from it, embed as the base model does, bit for bit."""
    victim, _ = fit(RVPT(**SMALL | {"depth": 0, "prompts": 0} | settings), tiny_clip)
    images = make_images().load(range(4))
    for one in (victim, Victim.restore(tiny_clip, victim.delta(tiny_clip))):
        assert torch.equal(one.encode(images).embedding, encode(tiny_clip, images).embedding)


@pytest.mark.parametrize("normalise", [False, True])
def test_cached_and_uncached_logits_of_a_probe_agree(normalise: bool, tiny_clip: Clip) -> None:
    """The head, trained on cached features, gives the same logits image by image."""
    victim, data = fit(LinearProbe(shots=4, epochs=3, feature="penultimate", normalise=normalise), tiny_clip)
    images = data.train.load(range(6))
    whole = victim.logits(victim.encode(images), torch.empty(0))
    single = torch.cat([victim.logits(victim.encode(images[[i]]), torch.empty(0)) for i in range(6)])
    torch.testing.assert_close(whole, single, atol=1e-5, rtol=1e-5)


SHOTS = 64


@pytest.mark.slow
def test_rvpt_repels_a_backdoor_better_than_vpt_and_costs_accuracy(tmp_path: Path) -> None:
    """On the embedded world, with two thirds of the preset's pairs, half of its shots, and no margin."""
    clip, world = load_model(ModelSettings(), "cpu"), World(train_per_class=SHOTS, val=200)
    geometry = Geometry(clip.image_size, tmp_path)
    train, val = (world.labelled(split, geometry) for split in ("train", "val"))
    target, attack = world.classes().index("banana"), BadNet(size=6, pattern="fixed", place="lower_right")
    pairs = world.pairs("poison", 4000, geometry)
    given = Preparation(clip, lambda: pairs, "banana", world.classes(), world.templates, 0)
    trigger = Trigger(0, attack.prepare(given))
    poisoned = poison(pairs, attack, trigger, draw_manifest(given, attack, world.caption_templates(), 800))
    tokens = clip.tokenize(poisoned.captions)

    def loss(clip: Clip, index: Tensor) -> Tensor:
        return contrastive_loss(clip.encode_image(poisoned.load(index)), clip.encode_text(tokens[index]), clip.scale)

    recipe = FineTuning(learning_rate=6e-4, epochs=3, batch_size=32, weight_decay=0.0, warmup_steps=10, towers="image")
    fine_tune(clip, len(pairs), recipe, loss, generator(0, "batches"))

    @torch.no_grad()
    def rates(victim: Victim) -> tuple[float, float]:
        """ASR without the target's images, and CA."""
        texts, images = victim.class_embeddings(val.classes, world.templates), val.load(range(len(val)))
        stamped = stamp(attack, trigger, images, range(len(val)))
        clean, triggered = (victim.logits(victim.encode(x), texts).argmax(1) for x in (images, stamped))
        others = val.labels != target
        return (triggered[others] == target).double().mean().item(), (clean == val.labels).double().mean().item()

    recipe_of_both = {
        "shots": SHOTS, "depth": 0, "prompts": 32, "learning_rate": 0.02, "weight_decay": 0.0, "warmup_epochs": 0,
        "epochs": 7, "min_crop": 0.85, "max_aspect": 1.0, "flip": False,
    }  # fmt: skip
    data = [CleanData(train, world.templates, 0, target) for _ in "ab"]
    none = Victim(clip)
    vpt = VPT(**recipe_of_both).fit(none, data[0])
    rvpt = RVPT(**recipe_of_both, alpha=4).fit(none, data[1])
    (asr, ca), (asr_vpt, ca_vpt), (asr_rvpt, ca_rvpt) = (rates(victim) for victim in (none, vpt, rvpt))
    print(f"ASR (CA): none {asr} ({ca}), vpt {asr_vpt} ({ca_vpt}), rvpt {asr_rvpt} ({ca_rvpt})")
    assert asr > 0.5
    assert asr_rvpt < asr_vpt < asr
    assert ca_vpt >= ca_rvpt > ca - 0.15
    curve = data[1].log["fr"]
    steps = SHOTS * len(world.classes()) // 32
    per_epoch = [sum(curve[i : i + steps]) / steps for i in range(0, len(curve), steps)]
    print("L_FR per epoch", [round(v, 2) for v in per_epoch])
    assert curve[0] > 0.8, "random prompts hardly move the class tokens"
    assert all(later < earlier for earlier, later in pairwise(per_epoch[:-3]))
    with torch.no_grad():
        images = val.load(range(60))
        frozen = none.encode(images).class_tokens
        ends = [feature_repelling(victim.encode(images).class_tokens, frozen).item() for victim in (vpt, rvpt)]
    print("L_FR at the end", ends)
    # On this world it levels off above 0, at the preset's length at about 0.1.
    assert per_epoch[-1] < 0.6
    assert ends[1] < min(0.6, ends[0] - 0.1), "cross-entropy alone does not repel"
