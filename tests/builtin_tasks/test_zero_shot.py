"""Shared evaluation: victims seen together are as if each were alone, and nothing is done twice for them."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.builtin_tasks.zero_shot import PREDICTIONS, SIMILARITIES, ZeroShot
from bench.core.attack import Attack, Trigger, stamp
from bench.core.clip import Clip
from bench.core.dataset import Dataset
from bench.core.encoder import encode
from bench.core.errors import BenchError
from bench.core.images import Labelled
from bench.core.metric import Observations
from bench.core.randomness import generator
from bench.core.shared_encoding import encode_each, unified
from bench.core.task import Case
from bench.core.victim import Victim

N, BATCH = 23, 8
CLASSES = ("cat", "dog", "cow")
TASK = ZeroShot(perturbation_images=9, perturbations=("blur-3", "gaussian-0.1", "badnet", "trigger"))


def test_the_defaults_need_no_call_of_load_plugins_before() -> None:
    code = "from bench.builtin_tasks.zero_shot import ZeroShot; print(ZeroShot().fresh_triggers())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "('badnet', 'blended')", done.stderr


def test_an_unknown_perturbation_is_an_error() -> None:
    with pytest.raises(BenchError, match=r"unknown perturbation 'blur-33'\. Did you mean 'blur-3'\?"):
        ZeroShot(perturbations=("blur-33", "trigger"))


# How many images each call of `Noise.apply` got.
CALLS: list[int] = []


class Noise(Attack):
    """Adds noise that depends on the image's number."""

    def apply(self, images: Tensor, index, trigger: Trigger) -> Tensor:
        CALLS.append(len(images))
        return images + 0.2 * torch.stack([torch.randn(images.shape[1:], generator=trigger.rng(i)) for i in index])


class Keyed(Noise):
    text_key = "consider "


@pytest.fixture
def images() -> Labelled:
    pixels = torch.randint(256, (N, 3, 32, 32), generator=generator(0, "pixels"), dtype=torch.uint8)
    return Labelled([f"i{k}" for k in range(N)], pixels, "some", labels=torch.arange(N) % 3, classes=CLASSES)


@pytest.fixture
def victims(tiny_clip: Clip) -> dict[str, Victim]:
    """Opened one by one, as from a store: nothing is shared but equal in value."""
    rng = generator(0, "victims")
    late, early = 0.3 * torch.randn(2, 5, 32, generator=rng), 0.3 * torch.randn(3, 5, 32, generator=rng)
    head = torch.nn.Linear(32, 3)
    torch.nn.init.normal_(head.weight, generator=rng)
    tuned = tiny_clip.copy()
    for parameter in tuned.model.parameters():
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=rng)

    def again(clip: Clip) -> Clip:
        return clip.copy()

    return {
        "none": Victim(again(tiny_clip)),
        "head": Victim(again(tiny_clip), head=head),
        "late prompts": Victim(again(tiny_clip), prompts=late),
        "late prompts and head": Victim(again(tiny_clip), prompts=late.clone(), head=head),
        "early prompts": Victim(again(tiny_clip), prompts=early),
        "two blocks": Victim(again(tiny_clip), prompts=late.clone(), blocks=(1, 3)),
        "own template": Victim(again(tiny_clip), prompts=early.clone(), template="art of a {}"),
        "tuned": Victim(again(tuned)),
        "tuned and prompts": Victim(again(tuned), prompts=late.clone()),
    }


def look(
    victims: list[Victim], images: Labelled, attack: Attack | None = None, task: ZeroShot = TASK
) -> list[Observations | BenchError]:
    """What the task sees; fresh triggers of badnet are noise, too, with a seed of their own."""
    fresh = {"badnet": (Noise(), Trigger(7))}
    case = Case(Dataset(), images, attack or Noise(), Trigger(3), 1, 0, BATCH, fresh)
    return task.observe(unified(victims), case)


def assert_same(first: Observations, second: Observations) -> None:
    assert first.facts == second.facts == {"target": 1, "classes": list(CLASSES)}
    assert list(first.tables) == list(second.tables) == [PREDICTIONS, SIMILARITIES]
    for name in first.tables:
        pd.testing.assert_frame_equal(first[name], second[name], check_exact=True)


@pytest.mark.parametrize("attack", [Noise(), Keyed()])
def test_victims_seen_together_are_bit_for_bit_as_if_alone(
    victims: dict[str, Victim], images: Labelled, attack: Attack
) -> None:
    together = look(list(victims.values()), images, attack)
    for victim, seen in zip(victims.values(), together, strict=True):
        (alone,) = look([victim], images, attack)
        assert_same(seen, alone)
    first, second = together[0][SIMILARITIES], together[2][SIMILARITIES]
    assert not first.equals(second), "two different victims must not see the same"


def test_predictions_and_cosines_are_those_of_images_seen_one_by_one(
    victims: dict[str, Victim], images: Labelled
) -> None:
    victim = victims["late prompts"]
    (observed,) = look([victim], images)
    predictions, similarities = observed[PREDICTIONS], observed[SIMILARITIES]
    texts = F.normalize(
        victim.clip.model.encode_text(victim.clip.tokenize([f"a photo of a {c}." for c in CLASSES])), dim=-1
    )

    def seen(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = encode(victim.clip, pixels[None], victim.prompts)
        return found.penultimate, found.embedding, victim.clip.scale * F.normalize(found.embedding, dim=-1) @ texts.T

    with torch.no_grad():
        for k in range(N):
            clean, noisy = images.pixels[k], stamp(Noise(), Trigger(3), images.load([k]), [k])[0]
            row = predictions.iloc[k]
            assert (row["id"], row["label"]) == (f"i{k}", k % 3)
            assert (row["clean"], row["triggered"]) == tuple(seen(x)[2].argmax().item() for x in (clean, noisy))
        for name, trigger in (("trigger", Trigger(3)), ("badnet", Trigger(7))):
            part = similarities[similarities["perturbation"] == name]
            assert len(part) == 9 and part["index"].is_monotonic_increasing
            for row in part.itertuples():
                noisy = stamp(Noise(), trigger, images.load([row.index]), [row.index])[0]
                pairs = zip(seen(images.pixels[row.index]), seen(noisy), strict=True)
                cosines = [F.cosine_similarity(a, b).item() for a, b in pairs]
                assert np.allclose([row.penultimate, row.embedding, row.logits], cosines, atol=1e-5)


def test_each_image_is_triggered_and_perturbed_once_for_all_victims(
    victims: dict[str, Victim], images: Labelled
) -> None:
    def calls(chosen: list[Victim]) -> list[int]:
        CALLS.clear()
        look(chosen, images)
        return list(CALLS)

    several = calls(list(victims.values()))
    assert several == calls([victims["none"]])
    assert sum(several) == N + 9, "all images with the trigger, 9 with the perturbation; the trigger's are not redone"


def test_a_block_is_run_once_for_all_whom_it_gives_the_same(victims: dict[str, Victim], images: Labelled) -> None:
    names = ["none", "head", "late prompts", "late prompts and head", "early prompts"]
    shared = unified(victims[name] for name in names)
    runs: Counter[int] = Counter()
    for number, block in enumerate(shared[0].clip.visual.transformer.resblocks):
        # Prompted or not, a block brings its class and patch tokens through one MLP.
        block.mlp.register_forward_hook(lambda *_, number=number: runs.update([number]))
    encode_each(shared, images.load(range(4)))
    # Block 0 is frozen for all; from block 1 on one of three is prompted, from block 2 on two of three.
    assert runs == {0: 1, 1: 2, 2: 3, 3: 3}


def test_encodings_are_those_of_each_victim_bit_for_bit(victims: dict[str, Victim], images: Labelled) -> None:
    pixels = images.load(range(5))
    with torch.no_grad():
        for victim, found in zip(victims.values(), encode_each(unified(victims.values()), pixels), strict=True):
            own = victim.encode(pixels)
            assert torch.equal(found.embedding, own.embedding) and torch.equal(found.penultimate, own.penultimate)


def test_equal_parts_become_one_object_and_others_stay(victims: dict[str, Victim]) -> None:
    shared = dict(zip(victims, unified(victims.values()), strict=True))
    assert shared["none"].clip is shared["head"].clip is shared["early prompts"].clip
    assert shared["tuned"].clip is shared["tuned and prompts"].clip is not shared["none"].clip
    assert shared["late prompts"].prompts is shared["late prompts and head"].prompts
    assert shared["early prompts"].prompts is not shared["late prompts"].prompts
    assert shared["none"].prompts is None and shared["none"].head is None


def test_a_tower_without_blocks_is_shared_too(tiny_config: dict, images: Labelled) -> None:
    tiny_config["model_cfg"]["vision_cfg"] = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = Clip.from_config(tiny_config)
    shared = unified([Victim(clip), Victim(clip.copy(), head=torch.nn.Linear(32, 3))])
    with torch.no_grad():
        first, second = encode_each(shared, images.load(range(4)))
        assert first is second and torch.equal(
            first.embedding, clip.model.encode_image(clip.normalise(images.load(range(4))))
        )


def test_a_diverged_victim_does_not_stop_the_others(victims: dict[str, Victim], images: Labelled) -> None:
    late = victims["late prompts"]
    broken = replace(late, prompts=torch.full_like(late.prompts, torch.nan))
    first, second, third = look([victims["none"], broken, late], images)
    assert isinstance(second, BenchError) and "training diverged" in str(second)
    (alone,) = look([late], images)
    assert_same(third, alone)
    assert len(first[PREDICTIONS]) == N


def test_no_perturbations_give_an_empty_table(victims: dict[str, Victim], images: Labelled) -> None:
    (observed,) = look([victims["none"]], images, task=ZeroShot(perturbations=()))
    similarities = observed[SIMILARITIES]
    assert similarities.empty and list(similarities.columns) == ["perturbation", "index"]
