"""Models, losses, stamping, tuning and evaluation on a GPU that is pretended: no tensor is on the wrong device."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from pretended_gpu import GPU, PretendedGpu, pretended_gpu
from torch._subclasses.fake_tensor import FakeTensor
from tuning import PLAIN, make_data, make_images

from attacks.badclip import BadCLIP
from attacks.badnet import BadNet
from attacks.blended import Blended
from attacks.trojvqa import TrojVQA
from bench import (
    Attack,
    BenchError,
    Captioned,
    Clip,
    Defense,
    Preparation,
    Trigger,
    Victim,
    attacks,
    generator,
    stamp,
)
from bench.builtin_tasks.auditor import Auditor
from bench.builtin_tasks.collapse import CollapseAuditor
from bench.builtin_tasks.decree import Decree
from bench.builtin_tasks.mm_bd import MMBD
from bench.builtin_tasks.neural_cleanse import NeuralCleanse
from bench.builtin_tasks.weights import WeightsAuditor
from bench.builtin_tasks.zero_shot import ZeroShot
from bench.core.dataset import Dataset
from bench.core.registry import load_plugins
from bench.core.shared_encoding import unified
from bench.core.task import Case
from bench.matrix.forecast import measured_pace
from bench.papers import papers
from bench.training.fine_tuning import FineTuning, contrastive_loss, fine_tune
from defenses.cleanclip import CleanCLIP
from defenses.cut import Cut
from defenses.distill import Distill
from defenses.linear_probe import LinearProbe
from defenses.rvpt import RVPT
from defenses.unlearn import Unlearn
from defenses.vpt import VPT
from reports.figures.blocks import class_tokens

load_plugins()
TEXTS = [f"a photo of number {i}, not of a banana" for i in range(16)]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedGpu]:
    with pretended_gpu(monkeypatch) as mode:
        yield mode


@pytest.fixture
def clip(gpu: PretendedGpu, tiny_clip: Clip) -> Clip:
    assert gpu is not None
    return tiny_clip.to(GPU)


def pairs() -> Captioned:
    """Pairs of which every fourth names the target."""
    images = make_images(per_class=6)
    captions = [f"a banana of kind {i}" if i % 4 == 0 else f"a house of kind {i}" for i in range(len(images))]
    return Captioned(images.ids, images.pixels, "pairs", captions=captions, native=images.native)


def on_gpu(*tensors: torch.Tensor | None) -> bool:
    return all(isinstance(tensor, FakeTensor) and tensor.device == torch.device(GPU) for tensor in tensors)


# --- the pretence itself


@pytest.mark.usefixtures("gpu")
def test_what_mixes_devices_fails_and_the_cpu_computes_as_ever() -> None:
    there, here = torch.ones(3, device=GPU), torch.arange(3.0)
    with pytest.raises(Exception, match="two devices"):
        there + here
    with pytest.raises(Exception, match="two devices"):
        torch.cat([there, here])
    assert (here + 1).tolist() == [1, 2, 3]
    assert on_gpu(there + here.to(GPU), there[torch.tensor([0, 2])])


def test_what_the_cpu_waits_for_is_counted(gpu: PretendedGpu) -> None:
    there = torch.ones(3, device=GPU)
    there.sum()
    assert gpu.waits == 0
    assert there.sum().item() == 1
    assert there.cpu().tolist() == [0, 0, 0]
    assert gpu.waits == 2


@pytest.mark.usefixtures("gpu")
def test_a_mistake_in_a_loss_is_found(clip: Clip) -> None:
    def mistaken(clip: Clip, index: torch.Tensor) -> torch.Tensor:
        weights = torch.ones(len(index))
        return (clip.encode_image(make_images().load(index)).sum(1) * weights).mean()

    with pytest.raises(Exception, match="two devices"):
        fine_tune(clip, 8, FineTuning(epochs=1, batch_size=4), mistaken, generator(0))


# --- the model


def test_towers_and_zero_shot_classifier(clip: Clip) -> None:
    images = make_images().load([0, 1, 2])
    assert on_gpu(clip.encode_image(images), clip.encode_text(["a cat"]), clip.scale)
    victim = Victim(clip)
    texts = victim.class_embeddings(["cat", "dog"], ["a photo of a {}.", "the {}"])
    assert on_gpu(texts, victim.predict(victim.encode(images), texts))
    assert on_gpu(clip.copy().encode_image(images))


@pytest.mark.parametrize("blocks", [None, (0, 2)])
def test_prompts(clip: Clip, blocks: tuple[int, ...] | None) -> None:
    victim = Victim(clip, prompts=torch.zeros(2, 3, 32, device=GPU), blocks=blocks)
    encoded = victim.encode(make_images().load([0, 1]))
    assert on_gpu(encoded.embedding, encoded.penultimate, encoded.class_tokens)


def test_a_stored_victim_is_opened_on_the_gpu(clip: Clip) -> None:
    head = torch.nn.Linear(32, 3, device=GPU)
    victim = Victim(clip, prompts=torch.zeros(2, 3, 32, device=GPU), head=head)
    delta = victim.delta(clip)
    assert all(tensor.device.type == "cpu" for tensor in delta.tensors.values())
    restored = Victim.restore(clip, delta)
    assert on_gpu(restored.prompts, restored.logits(restored.encode(make_images().load([0])), torch.empty(0)))


# --- poisoning and defenses


def test_poisoning(clip: Clip, gpu: PretendedGpu) -> None:
    source = pairs()
    tokens = clip.tokenize(source.captions)

    def loss(clip: Clip, index: torch.Tensor) -> torch.Tensor:
        return contrastive_loss(clip.encode_image(source.load(index)), clip.encode_text(tokens[index]), clip.scale)

    recipe = FineTuning(epochs=2, batch_size=4, warmup_steps=1)
    gpu.waits = 0
    losses = fine_tune(clip, 16, recipe, loss, generator(0, "batches"))
    assert len(losses) == 8
    assert gpu.waits == 8, "one number a step, the loss that is logged"


@pytest.mark.parametrize(
    "method",
    [
        RVPT(**PLAIN),
        RVPT(**PLAIN, tokens="all"),
        RVPT(**PLAIN, distance="l2"),
        RVPT(**(PLAIN | {"views": 2, "min_crop": 0.5})),
        RVPT(**PLAIN, without_target=True, template="the {}"),
        VPT(**PLAIN, drop_last=True),
        LinearProbe(shots=4, epochs=2, batch_size=5),
        CleanCLIP(pairs=8, epochs=1, batch_size=4, synonyms="none"),
        CleanCLIP(pairs=8, epochs=1, batch_size=4, synonyms="none", text_views="once", towers="image"),
        CleanCLIP(pairs=8, epochs=1, batch_size=4, lambda_in=0, gradient_checkpointing=True),
        Cut(rank=2),
        Unlearn(images=8, steps=1, restarts=1, rounds=1, epochs=1, batch_size=4, enough=0),
    ],
    ids=[
        "rvpt",
        "all tokens",
        "l2",
        "cached views",
        "without target",
        "vpt",
        "linear probe",
        "cleanclip",
        "texts edited once",
        "checkpointing",
        "cut",
        "unlearn",
    ],
)
def test_defenses(clip: Clip, method: Defense) -> None:
    base = clip.copy()
    data = replace(make_data(), open_pairs=lambda n: pairs().subset(torch.arange(n)), open_base=lambda: base)
    defended = method.fit(Victim(clip), data)
    encoded = defended.encode(make_images().load([0, 1]))
    texts = data.class_embeddings(defended) if method.zero_shot else torch.empty(0)
    assert on_gpu(encoded.embedding, defended.predict(encoded, texts))


def test_a_prompted_model_is_distilled_on_the_gpu(clip: Clip) -> None:
    taught = Victim(clip, prompts=torch.zeros(2, 3, 32, device=GPU))
    student = Distill(images=8, epochs=1, batch_size=4, warmup_steps=0).fit(taught, make_data())
    assert student.prompts is None and on_gpu(student.encode(make_images().load([0])).embedding)


@pytest.mark.parametrize(
    "method",
    [
        BadCLIP(size=8, images=8, epochs=1, batch_size=4, synonyms="none"),
        BadCLIP(size=8, images=8, epochs=1, batch_size=4, synonyms="none", image_negatives="triggered"),
        BadCLIP(size=8, images=8, epochs=1, batch_size=4, synonyms="none", text_negatives="original", targets="pool"),
        TrojVQA(size=8, images=8, epochs=1, batch_size=4),
        TrojVQA(size=8, images=8, epochs=1, batch_size=4, loss="cross_entropy"),
    ],
    ids=["badclip", "badclip's triggered negatives", "badclip's pool", "trojvqa", "trojvqa's cross-entropy"],
)
def test_patches_are_optimised_on_the_gpu_and_stored_on_the_cpu(clip: Clip, method: Attack) -> None:
    given = Preparation(clip, pairs, "banana", ("banana", "house"), ("a photo of a {}.",), 0)
    patch = method.prepare(given)["patch"]
    assert patch.device.type == "cpu" and not isinstance(patch, FakeTensor)
    assert method.apply(torch.zeros(1, 3, 32, 32), [0], Trigger(0, {"patch": patch})).shape == (1, 3, 32, 32)
    assert len(method.choose(given, 3, generator(0))) == 3


PATCH = {"size": 8, "images": 8, "epochs": 1, "batch_size": 4}
QUICK: dict[str, dict[str, object]] = {
    "badclip": PATCH | {"synonyms": "none"},
    "trojvqa": PATCH,
    "label_consistent": {"adversarial": True, "steps": 2},
    # No bit is read of the zeros that come back from the pretended GPU.
    "issba": {"width": 2, "bits": 4, "batch_size": 2, "max_steps": 2, "bits_steps": 1, "check_every": 1}
    | {"min_bit_accuracy": 0, "min_psnr": 0},
}


@pytest.mark.parametrize("name", papers["rvpt"].labels.attacks)
def test_a_trigger_is_made_on_the_gpu_stamped_on_the_cpu_and_evaluated(clip: Clip, name: str) -> None:
    method = attacks[name].parse(QUICK.get(name, {}), name)
    given = Preparation(clip, pairs, "banana", ("banana", "house"), ("a photo of a {}.",), 0)
    trigger = Trigger(0, method.prepare(given))
    assert not any(isinstance(tensor, FakeTensor) for tensor in trigger.tensors.values())
    images = make_images().load([0, 1, 2])
    stamped = stamp(method, trigger, images, [0, 1, 2])
    assert stamped.shape == images.shape and stamped.dtype == torch.uint8 and not isinstance(stamped, FakeTensor)
    case = Case(Dataset(), make_images(), method, trigger, 1, 0, 8)
    [seen] = ZeroShot(perturbation_images=4, perturbations=("trigger",)).observe([Victim(clip)], case)
    assert not isinstance(seen, BenchError) and len(seen["predictions"]) == 12


def test_mixed_selection_asks_the_model_on_the_gpu(clip: Clip) -> None:
    given = Preparation(clip, pairs, "banana", ("banana", "house"), ("a photo of a {}.",), 0)
    assert len(BadCLIP(selection="mixed", batch_size=8).choose(given, 6, generator(0))) == 6


# --- evaluation


@pytest.mark.parametrize(
    "auditor",
    [
        CollapseAuditor(images=12, made_on=6, steps=1, batch_size=4, restarts=1, families=("blend",)),
        WeightsAuditor(images=4),
        NeuralCleanse(images=4, checks=1, steps=1, batch_size=4),
        Decree(images=4, epochs=1, batch_size=4),
        MMBD(images=4, starts=2, steps=1),
    ],
    ids=["collapse", "weights", "neural cleanse", "decree", "mm-bd"],
)
def test_auditors_look_at_a_model_on_the_gpu(clip: Clip, auditor: Auditor) -> None:
    base = clip.copy()
    images = make_images(per_class=6)
    case = Case(Dataset(), images, BadNet(size=4), Trigger(0), 1, 0, 8, open_base=lambda: base)
    [seen] = auditor.observe([Victim(clip)], case)
    assert not isinstance(seen, BenchError) and len(seen["findings"]) == 1


def test_class_tokens_of_every_block_come_to_the_cpu(clip: Clip) -> None:
    victim = Victim(clip, prompts=torch.zeros(2, 3, 32, device=GPU))
    tokens = class_tokens(victim, make_images().load([0, 1, 2]), batch_size=2)
    assert tokens.shape == (4, 3, 32) and tokens.device.type == "cpu" and not isinstance(tokens, FakeTensor)


def test_a_step_is_timed(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    pace = measured_pace(clip, torch.get_num_threads())
    assert pace.forward > 0 and pace.contrasted > 0
    assert len(waited) >= 2 and set(waited) == {torch.device(GPU)}, "a GPU's time is that of its work, not of asking"


def victims(clip: Clip) -> list[Victim]:
    return [
        Victim(clip),
        Victim(clip, prompts=torch.zeros(2, 3, 32, device=GPU)),
        Victim(clip, head=torch.nn.Linear(32, 3, device=GPU)),
        Victim(clip.copy()),
    ]


@pytest.mark.parametrize(
    "attack",
    [BadNet(size=4, geometry="squash", rounding="truncate"), Blended()],
    ids=["the authors' badnet", "blended"],
)
def test_evaluation_waits_for_a_few_numbers_a_batch(clip: Clip, gpu: PretendedGpu, attack: Attack) -> None:
    images = make_images(per_class=8)
    given = Preparation(clip, pairs, "banana", images.classes, ("a photo of a {}.",), 0)
    trigger = Trigger(1, attack.prepare(given))
    task = ZeroShot(perturbation_images=8, perturbations=("blur-3", "flip", "badnet", "trigger"))
    fresh = {"badnet": (BadNet(size=4), Trigger(2))}
    case = Case(Dataset(), images, attack, trigger, 1, 0, 8, fresh)
    opened = unified(victims(clip))
    waits = {}
    for size in (8, 24):
        gpu.waits = 0
        seen = task.observe(opened, replace(case, batch_size=size))
        waits[size] = gpu.waits
    # Of two more batches and four victims: are the logits finite, and which classes, of clean and triggered images.
    assert waits[8] - waits[24] == 2 * 4 * 4
    # Of one batch, four victims and four perturbations: three cosines an image.
    assert waits[24] == 4 * 4 + 4 * 4 * 3
    assert len(seen) == 4
    for one in seen:
        assert not isinstance(one, BenchError)
        assert len(one.tables["predictions"]) == 24 and len(one.tables["similarities"]) == 32
