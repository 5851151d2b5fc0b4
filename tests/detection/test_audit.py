"""The audit: a planted backdoor is found and named, a clean model is not called backdoored; the rule of verdicts."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from planted import CLASSES, CORNER, TARGET, TEMPLATES, dark_images, planted

from bench import BenchError, Clip, Victim
from bench.detection.audit import Audit, WeightEvidence, audit_victim, judge
from bench.detection.calibration import Audited, Calibration, Effort, p_value, score
from bench.detection.collapse import agreement
from bench.detection.confirmation import Confirmation
from bench.detection.search import Search
from bench.detection.triggers import Recovered
from bench.detection.weights import outlier_index, weight_change

EFFORT = Effort(search=Search(steps=40, batch_size=8, restarts=1), images=16, scored=24)
NO_TRIGGER = Recovered("blend", {})


def calibration(scores: list[float], baseline: float = 0.5) -> Calibration:
    """Clean models that reach these scores in every family."""
    families = ("square", "blend", "warp")
    negatives = [
        Audited(name=str(i), agreements=dict.fromkeys(families, baseline + (1 - baseline) * value), top=0.4, first=0.1)
        for i, value in enumerate(scores)
    ]
    return Calibration(
        model="tiny", architecture="a", reference="r", effort=EFFORT, seed=0, negatives=tuple(negatives),
        baselines=dict.fromkeys(families, baseline), command="none", commit="none", seconds=1.0,
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
    top, left = found.trigger.tensors["corner"].tolist()
    assert top < CORNER
    assert left < CORNER
    assert found.sentence.startswith("Backdoored towards 'banana' (p = 0.016 of 60 clean models): a square of 3 px")


def test_a_clean_model_reaches_the_baseline_and_is_never_called_clean(tiny_clip: Clip) -> None:
    found = audited(planted(tiny_clip, strength=0), reference=None, calibration=calibration([0.0] * 60))
    assert found.verdict == "nothing found"
    assert found.target is None
    assert found.exit_code == 0
    assert "Nothing of these kinds was found" in found.sentence
    assert "does not prove" in found.sentence


def test_the_score_does_not_depend_on_the_classes_but_the_name_does(tiny_clip: Clip) -> None:
    victim, clean = planted(tiny_clip), calibration([0.0] * 60)
    known = audited(victim, calibration=clean)
    others = audit_victim(victim, dark_images(), ("cat", "house"), TEMPLATES, None, clean, ("square",), EFFORT)
    assert (others.score, others.verdict) == (known.score, known.verdict)
    assert known.target == "banana"
    assert others.target in ("cat", "house")


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
        ({"reference": None}, "Give the model that this one was fine-tuned from with --reference"),
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


def confirmed(success: float, on_reference: float | None) -> Confirmation:
    return Confirmation(NO_TRIGGER, 0, success, on_reference, 1, 0.0)


def weights(p_top: float | None, p_first: float | None) -> WeightEvidence:
    return WeightEvidence("banana", 0.2, 5.0, 0.2, p_top, p_first)


@pytest.mark.parametrize(
    ("p", "evidence", "trigger", "verdict"),
    [
        (0.05, None, confirmed(0.0, None), "backdoored"),
        (0.15, None, confirmed(0.0, None), "suspicious"),
        (0.16, None, confirmed(0.0, None), "nothing found"),
        (0.9, None, confirmed(0.6, 0.1), "suspicious"),
        (0.9, None, confirmed(0.6, 0.2), "nothing found"),
        (0.9, None, confirmed(0.6, None), "nothing found"),
        (0.9, weights(0.02, 0.9), confirmed(0.0, 0.0), "suspicious"),
        (0.9, weights(0.04, 0.9), confirmed(0.0, 0.0), "nothing found"),
        (0.9, weights(None, None), confirmed(0.0, 0.0), "nothing found"),
        (None, None, confirmed(0.0, 0.0), "no verdict"),
        (None, None, confirmed(0.9, 0.0), "suspicious"),
    ],
)
def test_the_verdict_follows_the_levels(
    p: float | None, evidence: WeightEvidence | None, trigger: Confirmation, verdict: str
) -> None:
    said, reasons = judge(p, evidence, trigger)
    assert said == verdict
    assert bool(reasons) == (verdict != "nothing found")


def test_few_clean_models_cannot_call_a_model_backdoored() -> None:
    assert judge(p_value(1.0, [0.0] * 18), None, confirmed(1.0, 0.0))[0] == "suspicious"
    assert judge(p_value(1.0, [0.0] * 19), None, confirmed(1.0, 0.0))[0] == "backdoored"


def test_agreement_is_the_mean_of_all_pairwise_cosines() -> None:
    rows = torch.nn.functional.normalize(torch.randn(5, 7, generator=torch.Generator().manual_seed(0)), dim=1)
    torch.testing.assert_close(agreement(rows), (rows @ rows.T).mean())


def test_a_score_is_of_the_family_that_exceeds_its_baseline_most() -> None:
    assert score({"a": 0.7, "b": 0.9}, {"a": 0.4, "b": 0.8}) == pytest.approx(0.5)


# --- weights


def test_a_change_along_one_class_is_read_from_the_weights(tiny_clip: Clip) -> None:
    changed = tiny_clip.copy()
    texts = torch.nn.functional.normalize(torch.randn(8, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    # What the projection sees as the direction of the target; the gain of ln_post is 1.
    along = torch.linalg.pinv(tiny_clip.visual.proj.T) @ (texts[TARGET] - texts.mean(0))
    with torch.no_grad():
        for block in changed.visual.transformer.resblocks:
            block.mlp.c_proj.weight += torch.outer(along, torch.ones(block.mlp.c_proj.weight.shape[1]))
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
