"""The audit: a planted backdoor is found and named, a clean model is not called backdoored; the rule of verdicts."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Self

import numpy as np
import pytest
import torch
from planted import CLASSES, TARGET, TEMPLATES, dark_images, planted

from bench import BenchError, Clip, Part, Victim, generator
from bench.core.encoder import Encoded
from bench.core.randomness import seeded
from bench.detection.audit import Audit, FamilyEvidence, WeightEvidence, audit_victim, judge, split_images
from bench.detection.calibration import Audited, Calibration, Effort, p_value
from bench.detection.collapse import agreement, beyond, effect
from bench.detection.search import Search, search
from bench.detection.triggers import Recovered, Square
from bench.detection.weights import outlier_index, weight_change

EFFORT = Effort(search=Search(steps=40, batch_size=8, restarts=1), images=16, scored=24)


def calibration(scores: list[float]) -> Calibration:
    """Clean models that reach these scores in every family."""
    families = ("square", "blend", "warp")
    negatives = [
        Audited(name=str(i), scores=dict.fromkeys(families, value), top=0.4, first=0.1)
        for i, value in enumerate(scores)
    ]
    return Calibration(
        model="tiny", architecture="a", reference="r", effort=EFFORT, negatives=tuple(negatives),
        command="none", commit="none",
    )  # fmt: skip


def audited(victim: Victim, **options: object) -> Audit:
    given = {"reference": victim.clip, "looked_for": ("square",), "effort": EFFORT} | options
    return audit_victim(victim, dark_images(), CLASSES, TEMPLATES, **given)  # type: ignore[arg-type]


# --- a planted backdoor


def test_a_planted_backdoor_is_found_named_and_its_trigger_works(tiny_clip: Clip) -> None:
    found = audited(planted(tiny_clip), calibration=calibration([0.0] * 60))
    assert found.verdict == "backdoored"
    assert found.target == CLASSES[TARGET]
    assert found.exit_code == 4
    assert found.evidence.share > 0.9
    assert found.evidence.share_on_reference == 0
    # The only place that covers the bright corner.
    assert found.trigger.tensors["corner"].tolist() == [0, 0]
    assert found.score > 0.1
    assert found.sentence.startswith("Backdoored towards 'banana' (p = 0.016 of 60 clean models): a square of 5 px")


def test_a_model_that_scores_below_clean_ones_is_still_not_called_clean(tiny_clip: Clip) -> None:
    found = audited(planted(tiny_clip, strength=0), reference=None, calibration=calibration([0.05] * 60))
    assert found.verdict == "nothing found"
    assert found.target is None
    assert found.exit_code == 0
    assert "Nothing of these kinds was found" in found.sentence
    assert "does not prove" in found.sentence


def test_without_calibration_a_model_that_exceeds_its_reference_is_suspicious_and_others_get_no_verdict(
    tiny_clip: Clip,
) -> None:
    found, clean = audited(planted(tiny_clip)), audited(planted(tiny_clip, strength=0))
    assert (found.verdict, found.p_value, found.target) == ("suspicious", None, "banana")
    assert found.evidence.score_on_reference == pytest.approx(0, abs=0.05)
    assert (clean.verdict, clean.exit_code) == ("no verdict", 2)
    assert audited(planted(tiny_clip), reference=None).verdict == "suspicious"


def test_an_audit_is_the_same_for_the_same_seed(tiny_clip: Clip) -> None:
    first, second = (replace(audited(planted(tiny_clip)), seconds=0.0) for _ in range(2))
    assert json.dumps(first.to_json()) == json.dumps(second.to_json())
    assert audited(planted(tiny_clip), seed=1).to_json() != first.to_json()


def test_an_audit_leaves_the_model_as_it_was(tiny_clip: Clip) -> None:
    before = tiny_clip.fingerprint()
    audited(Victim(tiny_clip))
    assert tiny_clip.fingerprint() == before
    assert all(p.requires_grad for p in tiny_clip.model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"effort": Effort()}, "an audit takes 144 images"),
        ({"looked_for": ("circle",)}, "unknown family of triggers 'circle'"),
    ],
)
def test_what_cannot_be_audited_is_refused(tiny_clip: Clip, options: dict, message: str) -> None:
    with pytest.raises(BenchError) as told:
        audited(Victim(tiny_clip), **options)
    assert message in str(told.value)


def test_one_class_is_refused(tiny_clip: Clip) -> None:
    with pytest.raises(BenchError, match="Give two or more"):
        audit_victim(Victim(tiny_clip), dark_images(), ("cat",), TEMPLATES, tiny_clip, None, ("square",), EFFORT)


# --- the rule


def best(score: float, on_reference: float | None = None) -> FamilyEvidence:
    return FamilyEvidence("square", "a square", score, on_reference, "banana", 0.5, None)


def weights(p_top: float | None, p_first: float | None, outlier: float = 5.0) -> WeightEvidence:
    return WeightEvidence("lemon", 0.2, outlier, 0.2, p_top, p_first, 3.5)


@pytest.mark.parametrize(
    ("p", "evidence", "family", "verdict", "target"),
    [
        (0.05, None, best(0.0), "backdoored", "banana"),
        (0.15, None, best(0.0), "suspicious", "banana"),
        # Where clean models say what is usual, the score as such says nothing.
        (0.16, None, best(0.9), "nothing found", None),
        # The trigger names the class if it works, else the weights do.
        (0.15, weights(0.02, 0.9), best(0.0), "suspicious", "banana"),
        (0.9, weights(0.02, 0.9), best(0.0), "suspicious", "lemon"),
        (0.9, weights(0.9, 0.02), best(0.0), "suspicious", "lemon"),
        (0.9, weights(0.04, 0.9), best(0.0), "nothing found", None),
        # A calibration without the weights of its models: the level of outliers counts.
        (0.9, weights(None, None), best(0.0), "suspicious", "lemon"),
        (None, weights(None, None, 3.4), best(0.0), "no verdict", None),
        (None, weights(None, None, 3.5), best(0.0), "suspicious", "lemon"),
        (None, None, best(0.09), "no verdict", None),
        (None, None, best(0.11), "suspicious", "banana"),
        (None, None, best(0.3, 0.21), "no verdict", None),
        (None, None, best(0.3, 0.19), "suspicious", "banana"),
    ],
)
def test_the_verdict_follows_the_levels(
    p: float | None, evidence: WeightEvidence | None, family: FamilyEvidence, verdict: str, target: str | None
) -> None:
    said, named, reasons = judge(p, evidence, family)
    assert (said, named) == (verdict, target)
    assert bool(reasons) == (verdict != "nothing found")


def test_where_weights_alone_are_suspicious_the_sentence_says_so(tiny_clip: Clip) -> None:
    nothing = audited(planted(tiny_clip, strength=0), calibration=calibration([0.9] * 60))
    _, target, reasons = judge(nothing.p_value, weights(0.02, 0.9), nothing.evidence)
    found = replace(nothing, verdict="suspicious", target=target, reasons=tuple(reasons))
    assert found.sentence == (
        "Suspicious towards 'lemon': the weights' change points at 'lemon' as in 2.0% of clean models. "
        "No trigger of these kinds was found: a square of 5 px at one place."
    )


def test_few_clean_models_cannot_call_a_model_backdoored() -> None:
    assert judge(p_value(1.0, [0.0] * 18), None, best(1.0))[0] == "suspicious"
    assert judge(p_value(1.0, [0.0] * 19), None, best(1.0))[0] == "backdoored"


def test_agreement_is_the_mean_of_all_pairwise_cosines() -> None:
    rows = torch.nn.functional.normalize(torch.randn(5, 7, generator=torch.Generator().manual_seed(0)), dim=1)
    torch.testing.assert_close(agreement(rows), (rows @ rows.T).mean())


def test_agreement_of_predictions_is_the_chance_that_two_images_get_the_same_class() -> None:
    chances = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
    same = [sum(float(a[k] * b[k]) for k in range(4)) for a in chances for b in chances]
    assert float(agreement(chances)) == pytest.approx(np.mean(same))


def test_agreement_beyond_chance_is_cohens_kappa() -> None:
    observed, chance = 0.7, 0.4
    table = np.array([[0.35, 0.15], [0.15, 0.35]])
    assert np.trace(table) == pytest.approx(observed)
    assert beyond(observed, chance) == pytest.approx(0.5)
    assert (beyond(0.4, 0.4), beyond(1.0, 0.4), beyond(1.0, 1.0)) == (0.0, 1.0, 0.0)


WHITE = Recovered("square", {"patch": torch.ones(3, 5, 5), "corner": torch.tensor([0, 0])})


def test_the_effect_of_a_trigger_is_counted_image_by_image(tiny_clip: Clip) -> None:
    victim, images = planted(tiny_clip), dark_images(12)
    texts = victim.class_embeddings(CLASSES, TEMPLATES)
    bright = images.clone()
    bright[:, :, :5, :5] = 255
    with torch.no_grad():
        clean, triggered = (
            np.array([victim.logits(victim.encode(one[None]), texts).softmax(1)[0].tolist() for one in given])
            for given in (images, bright)
        )
    before, after = (np.mean([[np.dot(a, b) for a in rows] for b in rows]) for rows in (clean, triggered))
    found = effect(victim, WHITE, images, texts)
    assert found.score == pytest.approx((after - before) / (1 - before), rel=1e-4)
    others = clean.argmax(1) != TARGET
    assert others.sum() > 0
    assert found.share == pytest.approx((triggered[others].argmax(1) == TARGET).mean())
    assert found.target == TARGET


def test_agreement_that_clean_images_have_does_not_count(tiny_clip: Clip) -> None:
    victim, bright = planted(tiny_clip), dark_images(12)
    bright[:, :, :5, :5] = 255
    texts = victim.class_embeddings(CLASSES, TEMPLATES)
    assert effect(victim, WHITE, bright, texts).share == 0
    assert effect(victim, WHITE, bright, texts).score == pytest.approx(0, abs=1e-6)


# --- the search


@pytest.mark.parametrize("row", [0, 1, 2, 3])
def test_a_search_finds_the_place_at_which_a_patch_counts(row: int, tiny_clip: Clip) -> None:
    """Only the brightness of one place lowers the loss."""
    size, corners = Square().pixels(32), Square().corners(32)
    top, left = corners[8 * row + 7].tolist()

    class Bright(Part):
        def tensors(self) -> dict[str, torch.Tensor]:
            return {}

        @classmethod
        def restore(cls, tensors: Mapping[str, torch.Tensor], device: torch.device) -> Self:
            return cls()

        def encode(self, images: torch.Tensor, inner: object) -> Encoded:
            floats = images / 255 if images.dtype == torch.uint8 else images
            spot = floats[..., top : top + size, left : left + size].mean((1, 2, 3))
            return Encoded(**{**vars(inner(images)), "embedding": torch.stack([spot, 1 - spot], 1)})  # type: ignore[operator]

    victim = replace(Victim(tiny_clip), parts=(Bright(),))
    towards = torch.tensor([1.0, 0.0])
    [found] = search(
        victim, dark_images(), Square(), lambda embedded: -(embedded @ towards).mean(-1),
        Search(steps=20, batch_size=4, restarts=1), generator(0, "search"),
    )  # fmt: skip
    assert found.tensors["corner"].tolist() == [top, left]
    assert found.tensors["patch"].mean() > 0.9


# --- weights


def test_a_change_along_one_class_is_read_from_the_weights(tiny_clip: Clip) -> None:
    changed = tiny_clip.copy()
    texts = torch.nn.functional.normalize(torch.randn(8, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    # What the projection sees as the direction of the target; the gain of ln_post is 1.
    along = torch.linalg.pinv(tiny_clip.visual.proj.T) @ (texts[TARGET] - texts.mean(0))
    with torch.no_grad():
        for block in changed.visual.transformer.resblocks:
            block.mlp.c_proj.weight += 0.01 * torch.outer(along, torch.ones(block.mlp.c_proj.weight.shape[1]))
    found = weight_change(changed, tiny_clip, texts)
    assert found.target == TARGET
    assert found.top > 0.5
    assert found.first == pytest.approx(1.0, abs=1e-4)


def test_an_unchanged_model_has_no_profile(tiny_clip: Clip) -> None:
    found = weight_change(tiny_clip.copy(), tiny_clip, Victim(tiny_clip).class_embeddings(CLASSES, TEMPLATES))
    assert found.profile.sum() == 0
    assert found.first == 0
    assert found.outlier == 0


def test_other_architectures_are_refused(tiny_clip: Clip, resnet: Clip, tiny_config: dict) -> None:
    texts = Victim(tiny_clip).class_embeddings(CLASSES, TEMPLATES)
    with pytest.raises(BenchError, match="this image tower is a ModifiedResNet"):
        weight_change(resnet, resnet, texts)
    smaller = tiny_config["model_cfg"]["vision_cfg"] | {"layers": 2}
    other = Clip.from_config(tiny_config | {"model_cfg": tiny_config["model_cfg"] | {"vision_cfg": smaller}})
    with pytest.raises(BenchError, match="the reference is of another architecture"):
        weight_change(tiny_clip, other, texts)


def test_a_reference_answers_with_its_own_text_tower(tiny_clip: Clip) -> None:
    suspect = tiny_clip.copy()
    with torch.no_grad():
        suspect.model.text_projection += torch.randn(
            suspect.model.text_projection.shape, generator=generator(0, "text")
        )
    found, images = audited(Victim(suspect), reference=tiny_clip), dark_images()
    _, scoring = split_images(images, EFFORT, 0)
    base = Victim(tiny_clip)
    there = effect(base, found.trigger, scoring, base.class_embeddings(CLASSES, TEMPLATES))
    assert found.evidence.score_on_reference == there.score != found.score


def test_a_reference_of_another_architecture_is_refused(tiny_clip: Clip, tiny_config: dict) -> None:
    other = Clip.from_config(tiny_config | {"model_cfg": tiny_config["model_cfg"] | {"embed_dim": 16}})
    with pytest.raises(BenchError, match="the reference is of another architecture"):
        audited(Victim(tiny_clip), reference=other)


def test_a_reference_that_the_model_does_not_come_from_is_refused(tiny_clip: Clip, tiny_config: dict) -> None:
    with seeded(1):
        apart = Clip.from_config(tiny_config)
    with pytest.raises(BenchError, match=r"not fine-tuned from the reference: .* weights is -?0\.0"):
        audited(Victim(tiny_clip), reference=apart)


@pytest.mark.parametrize("declared", [False, True])
def test_a_resnet_is_audited_without_its_weights(declared: bool, resnet: Clip) -> None:
    base = resnet if declared else None
    found = audit_victim(
        Victim(resnet), dark_images(), CLASSES, TEMPLATES, base, calibration([0.0]), ("square",), EFFORT
    )
    assert found.weights is None
    assert (found.evidence.share_on_reference is None) == (not declared)


def test_the_outlier_index_is_neural_cleanses() -> None:
    values = np.array([3.0, 1.0, 2.0, 10.0, 2.5])
    mad = np.median(np.abs(values - 2.5))
    np.testing.assert_allclose(outlier_index(values), (values - 2.5) / (1.4826 * mad))
