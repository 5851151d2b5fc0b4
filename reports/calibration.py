"""What a calibration says: what clean models score, and which error rates the verdicts then have."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from bench.checkpoints.calibrate import took
from bench.detection.audit import BACKDOORED_AT, SUSPICIOUS_AT, WeightEvidence
from bench.detection.calibration import Audited, Calibration, p_value, standing
from metrics.detection import auroc_estimate
from metrics.intervals import wilson

# Of a backdoored or clean model, whether a rule finds something.
Rule = Callable[[Audited], bool]
WEIGHTS = "weights"
RULES = (
    f"search, p <= {BACKDOORED_AT}",
    f"search, p <= {SUSPICIOUS_AT}",
    WEIGHTS,
    "suspicious or backdoored",
)
# With fewer clean models, two looks at the weights cannot be as rare as the level.
FEWEST_FOR_WEIGHTS = round(2 / BACKDOORED_AT) - 1


def calibration_text(calibration: Calibration) -> str:
    """The scores of the clean models and, where there are backdoored ones, AUROC, error rates and what was found of
    each attack.

    Backdoored models are judged by p values of all clean ones, as an audit does; each half of the clean models by those
    of the other half.
    """
    scores = calibration.scores(_families(calibration))
    low, middle, high = np.quantile(scores, (0, 0.5, 1))
    n = len(scores)
    parts = [
        f"{n} clean models of {calibration.model}: scores from {low:.2f} to {high:.2f}, median {middle:.2f}. "
        f"The smallest p is {1 / (n + 1):.3f}."
    ]
    if 1 / (n + 1) > BACKDOORED_AT:
        parts.append(f"No model can be called backdoored with p <= {BACKDOORED_AT}: 19 clean models are the fewest.")
    positives = took(calibration.positives)
    if positives:
        parts += [_areas(calibration, positives), _markdown(rates(calibration)), _markdown(by_attack(calibration))]
    if weak := len(calibration.positives) - len(positives):
        parts.append(f"{weak} backdoored models are left out, as the attack did not take.")
    return "\n\n".join(parts)


def rates(calibration: Calibration) -> pd.DataFrame:
    """A row per rule: backdoored models found and clean ones flagged, each with Wilson's interval in percent."""
    positives, (first, second) = took(calibration.positives), halves(calibration.negatives)
    by_all, by_first, by_second = map(rules, (calibration.negatives, first, second))
    flagged = f"clean models flagged, with p values of {len(first)} others"
    rows = []
    for name in RULES:
        hits = sum(map(by_second[name], first)) + sum(map(by_first[name], second))
        judged = _share(hits, len(first) + len(second))
        if name == WEIGHTS and len(first) < FEWEST_FOR_WEIGHTS:
            judged = f"not known: {FEWEST_FOR_WEIGHTS} others are the fewest"
        rows.append(
            {"rule": name, "backdoored models found": _share(sum(map(by_all[name], positives)), len(positives))}
            | {flagged: judged}
        )
    return pd.DataFrame(rows)


def by_attack(calibration: Calibration) -> pd.DataFrame:
    """A row per attack: the scores of its models, how many each rule finds, and how often the target is named."""
    found = rules(calibration.negatives)
    rows = []
    for attack in dict.fromkeys(one.attack for one in took(calibration.positives)):
        models = [one for one in took(calibration.positives) if one.attack == attack]
        scores = calibration.scores(_families(calibration), models)
        rows.append(
            {"attack": attack, "models": len(models), "scores": f"{min(scores):.2f} to {max(scores):.2f}"}
            | {name: sum(map(rule, models)) for name, rule in found.items()}
            | {"named by the search": sum(bool(one.named) for one in models)}
            | {"named by the weights": sum(bool(one.named_by_weights) for one in models)}
        )
    return pd.DataFrame(rows)


def rules(known: Sequence[Audited]) -> dict[str, Rule]:
    """The rules of the verdicts by their names, with p values of these clean models."""
    scores = [one.scores for one in known]
    tops, firsts = ([value for one in known if (value := getattr(one, name)) is not None] for name in ("top", "first"))

    def p(one: Audited) -> float:
        return standing(one.scores, scores).p

    def weights(one: Audited) -> bool:
        if one.top is None or one.first is None or not tops:
            return False
        evidence = WeightEvidence("", one.top, 0.0, one.first, p_value(one.top, tops), p_value(one.first, firsts), 0.0)
        return evidence.reason is not None

    found: tuple[Rule, ...] = (
        lambda one: p(one) <= BACKDOORED_AT,
        lambda one: p(one) <= SUSPICIOUS_AT,
        weights,
        lambda one: p(one) <= SUSPICIOUS_AT or weights(one),
    )
    return dict(zip(RULES, found, strict=True))


def halves(negatives: Sequence[Audited]) -> tuple[list[Audited], list[Audited]]:
    """Two by two: every second clean model has fewer pairs, and each half needs models of both kinds.

    >>> halves(range(7))
    ([0, 1, 4, 5], [2, 3, 6])
    """
    parts: tuple[list[Audited], list[Audited]] = ([], [])
    for i, one in enumerate(negatives):
        parts[i // 2 % 2].append(one)
    return parts


def _areas(calibration: Calibration, positives: Sequence[Audited]) -> str:
    """AUROC of the score and of the weights, where all models have them."""
    kinds: dict[str, Callable[[Audited], float | None]] = {
        "score": lambda one: max(one.scores.values()),
        "weights, part of the top class": lambda one: one.top,
        "weights, top class in standard deviations": lambda one: one.outlier,
        "weights, first direction": lambda one: one.first,
    }
    said = []
    for name, value in kinds.items():
        found, clean = ([value(one) for one in models] for models in (positives, calibration.negatives))
        if None not in (*found, *clean):
            area = auroc_estimate(np.array(found), np.array(clean))
            said.append(f"{name}: {area.value:.3f} [{area.low:.3f}, {area.high:.3f}]")
    return f"AUROC of {len(positives)} backdoored models: {'; '.join(said)}."


def _families(calibration: Calibration) -> list[str]:
    return list(calibration.negatives[0].scores)


def _share(hits: int, n: int) -> str:
    ends = ", ".join(f"{100 * end:.0f}" for end in wilson(hits, n))
    return f"{hits} of {n} [{ends} %]"


def _markdown(table: pd.DataFrame) -> str:
    return table.to_markdown(index=False, disable_numparse=True)
