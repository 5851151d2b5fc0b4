"""Does resistivity go with attack success in these results? The correlation over cells, said with its caution."""

import numpy as np
import pandas as pd

from bench.core.metric import Estimate
from bench.core.names import CLEAN_MODEL, OWN_TRIGGER
from metrics.correlation import Correlation, pr_asr_correlation
from reports.results import PLACE

RESISTIVITIES = ("PR_cos", "PR_ratio")
BACKDOOR = ["model", "attack", "target", "seed"]
FEWEST = 3


def correlation_points(results: pd.DataFrame, resistivity: str) -> pd.DataFrame:
    """A row per backdoored cell: PR on the cell's own trigger (`pr`), and its ASR in percent (`asr`).

    The clean model has no backdoor and is left out. Cells without PR on the trigger, or where one of the two is not
    finite, are left out too; `attrs["left_out"]` counts them.
    """
    backdoored = results[results["defense"] != CLEAN_MODEL]
    asr = backdoored[backdoored["metric"] == "ASR"].set_index(PLACE)["value"]
    own = (backdoored["metric"] == resistivity) & (backdoored["perturbation"] == OWN_TRIGGER)
    pr = backdoored[own].set_index(PLACE)["value"]
    joined = pd.DataFrame({"pr": pr, "asr": asr})
    kept = joined[np.isfinite(joined).all(axis=1)].reset_index()
    kept.attrs["left_out"] = len(joined) - len(kept)
    return kept


def correlation_text(results: pd.DataFrame) -> str:
    """Pearson's and Spearman's correlation of PR and ASR over cells, 95 % bootstrap intervals, and how to read them."""
    lines = [
        "PR on the cell's own trigger against ASR, a point per backdoored cell and seed, 95 % bootstrap intervals:"
    ]
    for resistivity in RESISTIVITIES:
        points = correlation_points(results, resistivity)
        left_out = f"; {points.attrs['left_out']} left out for want of a finite value" * bool(points.attrs["left_out"])
        if len(points) < FEWEST:
            lines.append(f"- {resistivity}: {len(points)} cells have both, and a correlation needs {FEWEST}{left_out}.")
            continue
        found = pr_asr_correlation(points["pr"], points["asr"])
        said = f"{correlation_words(found)}, {found.n} cells{left_out}"
        lines.append(f"- {resistivity}: {said}. {_caution(points)}".rstrip())
    return "\n".join(lines)


def correlation_words(found: Correlation, between: str = ", ") -> str:
    """Both coefficients with their intervals."""
    return f"Pearson {_said(found.pearson)}{between}Spearman {_said(found.spearman)}"


def _caution(points: pd.DataFrame) -> str:
    """Said when points are not independent, since their cells share a backdoored model."""
    models = len(points[BACKDOOR].drop_duplicates())
    if models == len(points):
        return ""
    some = "1 backdoored model" if models == 1 else f"{models} backdoored models"
    return f"Caution: these are cells of {some}; those of one model are not independent, and the intervals too narrow."


def _said(estimate: Estimate) -> str:
    if np.isnan(estimate.value):
        return "undefined (one side is constant)"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
