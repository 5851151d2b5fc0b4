"""What a calibration says: what clean models score, and which error rates the verdicts then have."""

import numpy as np

from bench.checkpoints.calibrate import took
from bench.detection.audit import BACKDOORED_AT
from bench.detection.calibration import Calibration, p_value
from metrics.detection import auroc_estimate
from metrics.intervals import wilson


def calibration_text(calibration: Calibration) -> str:
    """The scores of the clean models and, where there are backdoored ones, AUROC and error rates.

    Rates are of p values from every second clean model; the others, which no p value was read from, are judged.
    """
    families = list(calibration.negatives[0].scores)
    scores = calibration.scores(families)
    low, middle, high = np.quantile(scores, (0, 0.5, 1))
    n = len(scores)
    lines = [
        f"{n} clean models of {calibration.model}: scores from {low:.2f} to {high:.2f}, median {middle:.2f}. "
        f"The smallest p is {1 / (n + 1):.3f}.",
    ]
    if 1 / (n + 1) > BACKDOORED_AT:
        lines.append(f"No model can be called backdoored with p <= {BACKDOORED_AT}: 19 clean models are the fewest.")
    positives = took(calibration.positives)
    weak = len(calibration.positives) - len(positives)
    if positives:
        found = calibration.scores(families, positives)
        area = auroc_estimate(found, scores)
        lines.append(
            f"AUROC of {len(positives)} backdoored models: {area.value:.3f} [{area.low:.3f}, {area.high:.3f}]."
        )
        read, judged = scores[::2], scores[1::2]
        for what, values in (("backdoored models found", found), ("other clean models called backdoored", judged)):
            hits = sum(p_value(value, read) <= BACKDOORED_AT for value in values)
            ends = ", ".join(f"{100 * end:.0f}" for end in wilson(hits, len(values)))
            lines.append(f"With p from {len(read)} of the clean models, {what}: {hits} of {len(values)} [{ends} %].")
        named = sum(bool(one.named) for one in positives)
        lines.append(f"Target named: {named} of {len(positives)}.")
    if weak:
        lines.append(f"{weak} backdoored models are left out, as the attack did not take.")
    return "\n".join(lines)
