"""Parts: what a plug-in may put on a model takes part in every number, is stored, and is refused where it is not."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from rich.console import Console
from tiny import TINY
from torch import Tensor
from tuning import CLASSES, make_images

from bench.builtin_tasks.zero_shot import ZeroShot
from bench.core.attack import Attack, Trigger
from bench.core.clip import Clip
from bench.core.dataset import Dataset
from bench.core.encoder import Encoded
from bench.core.errors import BenchError
from bench.core.images import Labelled
from bench.core.metric import Observations, metrics
from bench.core.randomness import generator
from bench.core.registry import load_plugins
from bench.core.shared_encoding import encode_each, joined, rows, unified
from bench.core.task import Case
from bench.core.victim import REJECTED, Delta, Part, Victim, check_fitted, part
from bench.experiment.settings import BASE, resolve
from bench.matrix.runner import run_matrix
from bench.results.folder import ResultsFolder

TEMPLATES = ("a photo of a {}.",)
TARGET = 1
PLUGIN = """
from dataclasses import dataclass, replace

import torch
from bench import Defense, Part, Victim, defense, part


@part("first_class")
class FirstClass(Part):
    def __init__(self, lead):
        self.lead = lead

    def tensors(self):
        return {"lead": self.lead}

    @classmethod
    def restore(cls, tensors, device):
        return cls(tensors["lead"].to(device))

    def logits(self, encoded, logits):
        first = torch.arange(logits.shape[1], device=logits.device) == 0
        return torch.where(first, logits.max() + self.lead, logits)


@part("forgetful")
class Forgetful(FirstClass):
    def tensors(self):
        return {}

    @classmethod
    def restore(cls, tensors, device):
        return cls(torch.zeros((), device=device))


class Unregistered(FirstClass):
    pass


@dataclass(frozen=True)
class Special(Victim):
    pass


def with_part(victim, made):
    return replace(victim, parts=(*victim.parts, made))


@part("brightened")
class Brightened(FirstClass):
    def encode(self, images, inner):
        return inner(images / 255 if images.dtype == torch.uint8 else images)

    def logits(self, encoded, logits):
        return logits


@defense("brightens")
class Brightens(Defense):
    def fit(self, victim, data):
        return with_part(victim, Brightened(torch.tensor(1.0)))


@defense("calls_all_first")
class CallsAllFirst(Defense):
    def fit(self, victim, data):
        return with_part(victim, FirstClass(torch.tensor(1.0)))


@defense("forgets")
class Forgets(Defense):
    def fit(self, victim, data):
        return with_part(victim, Forgetful(torch.tensor(1.0)))


@defense("does_not_register")
class DoesNotRegister(Defense):
    def fit(self, victim, data):
        return with_part(victim, Unregistered(torch.tensor(1.0)))


@defense("returns_its_own_class")
class ReturnsItsOwnClass(Defense):
    def fit(self, victim, data):
        return Special(victim.clip)
"""


# --- through the matrix


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A results folder of the plug-in's defenses, and the failures of its run."""
    root = tmp_path_factory.mktemp("parts")
    (root / "parts.py").write_text(PLUGIN)
    load_plugins((root / "parts.py",))
    defenses = ("none", "calls_all_first", "forgets", "does_not_register", "returns_its_own_class")
    chains = ("calls_all_first+linear_probe", "calls_all_first+cleanclip", "brightens+vpt")
    flags = {"attacks": ("badnet",), "defenses": (*defenses, *chains)}
    report = run_matrix(
        {BASE: resolve("smoke", None, flags, TINY)}, root / "out", (root / "parts.py",), Console(quiet=True)
    )
    return root / "out", report.failures


def test_a_part_that_calls_all_images_the_first_class_has_its_share_as_accuracy(ran: tuple[Path, dict]) -> None:
    folder = ResultsFolder(ran[0])
    [cell] = [cell for cell in folder.cells if cell.defense == "calls_all_first"]
    seen = folder.observations(cell)
    assert (seen["predictions"][["clean", "triggered"]] == 0).all(axis=None)
    classes = len(seen.facts["classes"])
    numbers = folder.results[folder.results["defense"] == "calls_all_first"].set_index("metric")["value"]
    assert numbers["CA"] == numbers["PA_all"] == pytest.approx(100 / classes)
    assert seen.target == 0 and numbers["ASR"] == 100
    [undefended] = [cell for cell in folder.cells if cell.defense == "none"]
    assert folder.observations(undefended)["predictions"]["clean"].nunique() > 1


def test_a_part_is_there_again_when_a_cell_is_opened(ran: tuple[Path, dict]) -> None:
    folder = ResultsFolder(ran[0])
    [cell] = [cell for cell in folder.cells if cell.defense == "calls_all_first"]
    [restored] = folder.victim(cell).parts
    assert type(restored).__name__ == "FirstClass" and torch.equal(restored.tensors()["lead"], torch.tensor(1.0))
    [card] = folder.lineage(cell).defenses
    assert (card.changed, card.tunable) == (("part.0.lead",), 1)


@pytest.mark.parametrize("later", ["linear_probe", "cleanclip"])
def test_a_later_defense_of_a_chain_keeps_the_part(ran: tuple[Path, dict], later: str) -> None:
    folder = ResultsFolder(ran[0])
    [cell] = [cell for cell in folder.cells if cell.defense == f"calls_all_first+{later}"]
    assert [type(part).__name__ for part in folder.victim(cell).parts] == ["FirstClass"]
    assert (folder.observations(cell)["predictions"]["clean"] == 0).all()


@pytest.mark.parametrize(
    ("defense", "told"),
    [
        ("returns_its_own_class", "fit returned a Special, and only a Victim can be stored and evaluated as what it"),
        ("does_not_register", 'the part Unregistered is not registered: write @part("NAME") above its class'),
        ("brightens+vpt", "prompts are tuned in the image tower's blocks, and Brightened changes their input. "),
        ("forgets", "the stored model gives other logits than the fitted one on the same 4 images. Look at tensors()"),
    ],
)
def test_what_cannot_be_stored_as_what_it_is_is_refused(ran: tuple[Path, dict], defense: str, told: str) -> None:
    out, failures = ran
    assert failures[f"defense badnet / {defense}, seed 0"].startswith(told)
    assert failures[f"evaluation badnet / {defense}, seed 0"].startswith("not tried")
    assert len(failures) == 2 * 4
    assert defense not in set(ResultsFolder(out).results["defense"])


# --- alone


class Stored(Part):
    """A part of one tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def tensors(self) -> dict[str, Tensor]:
        return {"tensor": self.tensor}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], device: torch.device) -> "Stored":
        return cls(tensors["tensor"].to(device))


@part("test_bias")
class Bias(Stored):
    def logits(self, encoded: Encoded, logits: Tensor) -> Tensor:
        return 2 * logits + self.tensor


@part("test_rejects_class")
class RejectsClass(Stored):
    """Refuses all images of a class."""

    def rejects(self, encoded: Encoded, logits: Tensor) -> Tensor:
        return logits.argmax(1) == self.tensor


# How many images each call of `Darkened.encode` got.
CALLS: list[int] = []


@part("test_darkened")
class Darkened(Stored):
    """Sees images darkened, and remembers how bright they were for its logits."""

    def encode(self, images: Tensor, inner: Callable[[Tensor], Encoded]) -> Encoded:
        CALLS.append(len(images))
        floats = images.float() / 255 if images.dtype == torch.uint8 else images
        encoded = inner(floats * self.tensor)
        return replace(encoded, extra={**encoded.extra, "brightness": floats.mean((1, 2, 3))})

    def logits(self, encoded: Encoded, logits: Tensor) -> Tensor:
        return logits + encoded.extra["brightness"][:, None] * torch.arange(logits.shape[1])


class Noise(Attack):
    def apply(self, images: Tensor, index, trigger: Trigger) -> Tensor:
        return images + 0.3 * torch.stack([torch.randn(images.shape[1:], generator=trigger.rng(i)) for i in index])


@pytest.fixture
def images() -> Labelled:
    return make_images()


@pytest.fixture
def headed(tiny_clip: Clip, images: Labelled) -> Victim:
    """A victim whose predictions are of all classes: its head reads how random images differ from their mean."""
    head = torch.nn.Linear(32, len(CLASSES)).requires_grad_(False)
    torch.nn.init.normal_(head.weight, generator=generator(0, "head"))
    victim = Victim(tiny_clip, head=head, unit_norm=True)
    with torch.no_grad():
        head.bias.copy_(-head.weight @ victim.features(victim.encode(images.load(range(len(images))))).mean(0))
    return victim


def observe(victims: list[Victim], images: Labelled) -> list[Observations]:
    task = ZeroShot(perturbation_images=7, perturbations=("blur-3", "trigger"))
    case = Case(Dataset(), images, Noise(), Trigger(3), TARGET, seed=0, batch_size=5)
    seen = task.observe(unified(victims), case)
    assert all(isinstance(one, Observations) for one in seen)
    return [one for one in seen if isinstance(one, Observations)]


def value(metric: str, seen: Observations) -> tuple[float, int]:
    found = metrics[metric].measure(seen)[""]
    return found.count, found.n


def test_parts_are_restored_in_their_order_with_their_own_tensors(
    headed: Victim, images: Labelled, tmp_path: Path
) -> None:
    parts = (Bias(torch.tensor([1.0, 0.0, 0.0])), Darkened(torch.tensor(0.5)), Bias(torch.tensor([0.0, 0.0, 5.0])))
    victim = replace(headed, parts=parts)
    pixels = images.load(range(5))
    delta = check_fitted(victim, headed.clip, pixels, CLASSES, TEMPLATES)
    assert {"part.0.tensor", "part.1.tensor", "part.2.tensor", "head.weight", "head.bias"} == set(delta.tensors)
    delta.save(tmp_path / "delta.safetensors")
    again = Victim.restore(headed.clip, Delta.load(tmp_path / "delta.safetensors"))
    assert [type(part) for part in again.parts] == [Bias, Darkened, Bias]
    with torch.no_grad():
        ours, theirs = (v.logits(v.encode(pixels), torch.empty(0)) for v in (victim, again))
        plain = headed.logits(headed.encode(pixels.float() / 255 * 0.5), torch.empty(0))
    assert torch.equal(ours, theirs)
    bright = (pixels.float() / 255).mean((1, 2, 3))[:, None] * torch.arange(3)
    expected = 2 * (2 * plain + parts[0].tensor + bright) + parts[2].tensor
    assert torch.allclose(ours, expected, atol=1e-4)


def test_a_part_of_no_tensors_is_stored(headed: Victim, images: Labelled, tmp_path: Path) -> None:
    @part("test_nothing")
    class Nothing(Part):
        def tensors(self) -> dict[str, Tensor]:
            return {}

        @classmethod
        def restore(cls, tensors: Mapping[str, Tensor], device: torch.device) -> "Nothing":
            return cls()

    victim = Victim(headed.clip, parts=(Nothing(),))
    check_fitted(victim, headed.clip, images.load(range(2)), CLASSES, TEMPLATES).save(tmp_path / "delta")
    [again] = Victim.restore(headed.clip, Delta.load(tmp_path / "delta")).parts
    assert type(again) is Nothing


def test_tensors_of_a_part_are_stored_however_they_lie_in_memory(headed: Victim, tmp_path: Path) -> None:
    @part("test_awkward")
    class Awkward(Stored):
        def tensors(self) -> dict[str, Tensor]:
            whole = self.tensor
            return {"tensor": whole, "same": whole, "row": whole[0], "turned": whole.T, "half": whole.bfloat16()}

    whole = torch.arange(6.0).view(2, 3).requires_grad_()
    Victim(headed.clip, parts=(Awkward(whole),)).delta(headed.clip).save(tmp_path / "delta")
    stored = Delta.load(tmp_path / "delta").below("part.0")
    assert torch.equal(stored["same"], whole) and torch.equal(stored["row"], whole[0])
    assert torch.equal(stored["turned"], whole.T) and stored["half"].dtype == torch.bfloat16


def test_a_part_whose_plugin_is_not_loaded_is_named(headed: Victim) -> None:
    delta = replace(headed, parts=(Bias(torch.zeros(3)),)).delta(headed.clip)
    elsewhere = Delta(delta.tensors, delta.settings | {"parts": ["of_another_plugin"]})
    with pytest.raises(BenchError, match="the model has a part 'of_another_plugin', which no loaded plug-in"):
        Victim.restore(headed.clip, elsewhere)


def test_a_subclass_of_a_registered_part_must_be_registered_too(headed: Victim, images: Labelled) -> None:
    class Other(Bias):
        pass

    with pytest.raises(BenchError, match=re.escape('the part Other is not registered: write @part("NAME")')):
        check_fitted(
            replace(headed, parts=(Other(torch.zeros(3)),)), headed.clip, images.load(range(2)), CLASSES, TEMPLATES
        )


def test_a_diverged_defense_is_stored_and_its_evaluation_says_so(headed: Victim, images: Labelled) -> None:
    nan = replace(headed, parts=(Bias(torch.full((3,), math.nan)),))
    check_fitted(nan, headed.clip, images.load(range(2)), CLASSES, TEMPLATES)
    with pytest.raises(BenchError, match="logits that are not finite"):
        nan.predict(nan.encode(images.load(range(2))), torch.empty(0))


def test_a_rejected_image_is_neither_right_nor_of_the_target(headed: Victim, images: Labelled) -> None:
    refusing = replace(headed, parts=(RejectsClass(torch.tensor(TARGET)),))
    plain, seen = observe([headed, refusing], images)
    assert value("ASR", plain)[0] > 0 and value("CA", plain)[0] > 0
    for column in ("clean", "triggered"):
        before, now = plain["predictions"][column], seen["predictions"][column]
        assert 0 < (before == TARGET).sum() < len(before)
        assert (now[before == TARGET] == REJECTED).all()
        assert (now[before != TARGET] == before[before != TARGET]).all()
    n, others = len(images), int((images.labels != TARGET).sum())
    assert value("ASR", seen) == (0, others) and value("ASR_all", seen) == (0, n)
    right = (plain["predictions"]["clean"] == images.labels.numpy()) & (plain["predictions"]["clean"] != TARGET)
    assert value("CA", seen) == (right.sum(), n) and value("CA", plain)[0] > right.sum()
    all_refused = replace(headed, parts=tuple(RejectsClass(torch.tensor(label)) for label in range(3)))
    [nothing] = observe([all_refused], images)
    assert [value(name, nothing)[0] for name in ("CA", "ASR", "ASR_all", "PA", "PA_all")] == [0] * 5
    assert value("CA", nothing)[1] == n


def test_a_part_that_changes_images_is_encoded_alone_and_the_others_as_without_it(
    headed: Victim, images: Labelled
) -> None:
    dark, darker = Darkened(torch.tensor(0.6)), Darkened(torch.tensor(0.3))
    victims = [
        Victim(headed.clip),
        headed,
        replace(headed, parts=(dark,)),
        # The parts that cost an encoding are one object, so one encoding serves both.
        Victim(headed.clip, parts=(dark,)),
        replace(headed, parts=(Bias(torch.ones(3)),)),
        replace(headed, parts=(Bias(torch.ones(3)), darker)),
    ]
    assert [victim.encodes_alone for victim in victims] == [False, False, True, True, False, True]
    together = observe(victims, images)
    for victim, seen in zip(victims, together, strict=True):
        [alone] = observe([victim], images)
        for table in ("predictions", "similarities"):
            pd.testing.assert_frame_equal(seen[table], alone[table], check_exact=True)
    similarities = [seen["similarities"] for seen in together]
    assert not similarities[1].equals(similarities[2]) and not similarities[2].equals(similarities[5])

    CALLS.clear()
    with torch.no_grad():
        encoded = encode_each(unified(victims), images.load(range(5)))
        assert CALLS == [5, 5], "once for each part that changes images"
        assert encoded[0] is encoded[1] is encoded[4] and encoded[2] is encoded[3] is not encoded[0]
        for victim, found in zip(victims, encoded, strict=True):
            own = victim.encode(images.load(range(5)))
            assert torch.equal(found.embedding, own.embedding) and torch.equal(found.penultimate, own.penultimate)
            assert found.extra.keys() == own.extra.keys()
            assert all(torch.equal(found.extra[name], own.extra[name]) for name in own.extra)


def test_what_a_part_keeps_of_images_survives_rows_and_joined(headed: Victim, images: Labelled) -> None:
    victim = replace(headed, parts=(Darkened(torch.tensor(0.5)),))
    with torch.no_grad():
        whole = victim.encode(images.load(range(8)))
        batches = [victim.encode(images.load(index)) for index in (range(3), range(3, 8))]
    bright = (images.load(range(8)).float() / 255).mean((1, 2, 3))
    assert torch.allclose(whole.extra["brightness"], bright)
    index = torch.tensor([6, 0, 3])
    assert torch.equal(rows(whole, index).extra["brightness"], bright[index])
    assert torch.equal(joined(batches).extra["brightness"], bright)
    assert rows(whole, torch.tensor([], dtype=torch.long)).extra["brightness"].shape == (0,)
    # Logits, and so cosines of logits, are then of the right images.
    picked = joined([rows(whole, index), rows(batches[1], torch.tensor([4]))])
    assert torch.allclose(
        victim.logits(picked, torch.empty(0)), victim.logits(whole, torch.empty(0))[[6, 0, 3, 7]], atol=1e-4
    )
