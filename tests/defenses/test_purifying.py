"""Cut, unlearn, distill: what they take out, what they leave alone, what they refuse."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tuning import make_data

from bench import BenchError, CleanData, Clip, Defense, Need, Victim, generator
from bench.core.registry import load_plugins
from bench.experiment.settings import resolve
from bench.matrix.plan import unsuited
from defenses.cut import Cut
from defenses.distill import Distill
from defenses.unlearn import Unlearn


def data_for(method: Defense, base: Clip | None = None) -> CleanData:
    return replace(make_data(), needs=method.needs, open_base=None if base is None else lambda: base)


def changed(clip: Clip, change: Callable[[torch.nn.Parameter], torch.Tensor]) -> Clip:
    """A copy whose image tower's matrices have a change on top."""
    copy = clip.copy()
    with torch.no_grad():
        for name, parameter in copy.visual.named_parameters():
            if parameter.ndim == 2 and "positional" not in name:
                parameter += change(parameter)
    return copy


def noise(parameter: torch.Tensor) -> torch.Tensor:
    return 0.05 * torch.randn(parameter.shape, generator=generator(0, *parameter.shape))


def rank_one(parameter: torch.Tensor) -> torch.Tensor:
    return 0.01 * torch.outer(torch.ones(len(parameter)), torch.ones(parameter.shape[1]))


def test_cut_takes_a_change_of_low_rank_out_whole(tiny_clip: Clip) -> None:
    victim, data = Victim(changed(tiny_clip, rank_one)), data_for(Cut(rank=1), tiny_clip)
    cleaned = Cut(rank=1).fit(victim, data).clip.visual.state_dict()
    for name, before in tiny_clip.visual.state_dict().items():
        torch.testing.assert_close(cleaned[name], before, rtol=0, atol=1e-4)
    assert data.log["energy_taken"] == pytest.approx([1.0] * len(data.log["energy_taken"]))


def test_cut_leaves_what_is_of_higher_rank(tiny_clip: Clip) -> None:
    clip = changed(tiny_clip, noise)
    name = "transformer.resblocks.0.mlp.c_fc.weight"
    for rank in (1, 3):
        cleaned = Cut(rank=rank).fit(Victim(clip), data_for(Cut(), tiny_clip)).clip
        left = cleaned.visual.state_dict()[name] - tiny_clip.visual.state_dict()[name]
        values = torch.linalg.svdvals(clip.visual.state_dict()[name] - tiny_clip.visual.state_dict()[name])
        torch.testing.assert_close(torch.linalg.svdvals(left)[:5], values[rank : rank + 5], rtol=1e-3, atol=1e-4)


def test_cut_asks_for_a_reference_of_the_same_architecture(tiny_clip: Clip, resnet: Clip) -> None:
    with pytest.raises(BenchError, match="none is declared"):
        Cut().fit(Victim(tiny_clip), data_for(Cut()))
    with pytest.raises(BenchError, match="this image tower is a ModifiedResNet"):
        Cut().fit(Victim(resnet), data_for(Cut(), resnet))


def test_distill_teaches_a_plain_tower_the_prompted_one_s_embeddings(tiny_clip: Clip) -> None:
    prompts = torch.randn((4, 3, 32), generator=generator(0, "prompts"))
    teacher = replace(Victim(tiny_clip), prompts=prompts)
    method = Distill(learning_rate=1e-3, epochs=30, batch_size=6)
    data = data_for(method)
    student = method.fit(teacher, data)
    assert student.prompts is None
    assert student.clip is not tiny_clip
    assert data.log["distance"][-1] < 0.2 * data.log["distance"][0]


def test_distill_refuses_a_model_without_prompts_and_goes_behind_another(tiny_clip: Clip) -> None:
    with pytest.raises(BenchError, match=r"Put it behind rvpt: rvpt\+distill"):
        Distill().fit(Victim(tiny_clip), data_for(Distill()))
    load_plugins()
    run = resolve("smoke", None, {"defenses": ("all",)})
    assert "distill" not in run.defenses
    assert {"cut", "unlearn"} <= set(run.defenses)
    assert "it needs a defended model" in unsuited(run, "zero_shot", "badnet", ("distill",))
    assert unsuited(run, "zero_shot", "badnet", ("rvpt", "distill")) == ""


SMALL = Unlearn(images=12, steps=2, restarts=1, rounds=1, epochs=1, batch_size=4, learning_rate=1e-3, enough=0)


@pytest.mark.parametrize("tower", ["tiny_clip", "resnet"])
def test_unlearn_changes_the_image_tower_alone_and_the_same_way_each_time(
    tower: str, request: pytest.FixtureRequest
) -> None:
    clip: Clip = request.getfixturevalue(tower)
    first, second = (SMALL.fit(Victim(clip), data_for(SMALL)).clip.model.state_dict() for _ in range(2))
    before = clip.model.state_dict()
    moved = [name for name in before if not torch.equal(first[name], before[name])]
    assert moved
    assert all(name.startswith("visual.") for name in moved)
    assert all(torch.equal(first[name], second[name]) for name in before)


def test_unlearn_leaves_a_model_alone_on_which_no_trigger_works(tiny_clip: Clip) -> None:
    # No image is called a house, and two steps of a warp do not change that.
    content = SMALL.model_copy(update={"enough": 0.5, "target": "house", "families": ("warp",)})
    data = data_for(content)
    assert content.fit(Victim(tiny_clip), data).clip.fingerprint() == tiny_clip.fingerprint()
    assert data.log["works_warp"] == [0.0]
    assert "apart" not in data.log


def test_an_unknown_target_is_refused(tiny_clip: Clip) -> None:
    method = SMALL.model_copy(update={"target": "unicorn"})
    with pytest.raises(BenchError, match=r"unlearn.target = unicorn is no class of the data: cat, banana, house"):
        method.fit(Victim(tiny_clip), data_for(method))


@pytest.mark.parametrize("method", [Cut(), SMALL, Distill(epochs=1)])
def test_the_model_that_is_given_stays_as_it_was(method: Defense, tiny_clip: Clip) -> None:
    victim = Victim(tiny_clip)
    if isinstance(method, Distill):
        victim = replace(victim, prompts=torch.zeros(1, 2, 32))
    before = tiny_clip.fingerprint()
    method.fit(victim, data_for(method, changed(tiny_clip, noise)))
    assert tiny_clip.fingerprint() == before


@pytest.mark.parametrize(
    ("method", "needs"),
    [(Cut(), {"base"}), (Unlearn(), {"unlabelled", "class_names"}), (Distill(), {"unlabelled"})],
)
def test_each_declares_what_it_holds(method: Defense, needs: set[Need]) -> None:
    assert method.needs == needs


@pytest.mark.parametrize("method", [Cut(), Unlearn()])
def test_prompts_are_refused(method: Defense, tiny_clip: Clip) -> None:
    with pytest.raises(BenchError, match="Put it first in a chain"):
        method.fit(replace(Victim(tiny_clip), prompts=torch.zeros(1, 2, 32)), data_for(method, tiny_clip))
