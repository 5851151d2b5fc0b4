"""Perturbation Resistivity of each model, and its similarity of images of one class."""

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from bench.core.names import OWN_TRIGGER
from bench.results.tidy import pooled
from metrics.intervals import mean_interval
from reports.figures.source import Source, embed
from reports.figures.style import PAGE, dodge, legend_below, look, panels, points, widen

# The paper's is noise on 16 x 16 px, which is BadNet's patch.
PREFERRED = ("badnet", "gaussian-0.01", "gaussian-0.03", OWN_TRIGGER)
INTRA_CLASS = "intra-class similarity"


def draw(source: Source) -> tuple[Figure, pd.DataFrame]:
    """A row per model, a marker per attack; 95 % intervals."""
    rows = source.main[source.main["metric"].isin(["PR_ratio", "PR_cos"])]
    there = list(rows["perturbation"].unique())
    if not there:
        raise source.missing("cells with perturbations", "--set zero_shot.perturbations=[badnet]")
    chosen = next((p for p in PREFERRED if p in there), there[0])
    measured = []
    for key, cell in rows[rows["perturbation"] == chosen].groupby(["metric", "label", "attack"], sort=False):
        place = dict(zip(("metric", "model", "attack"), key, strict=True))
        estimate = pooled(cell)
        ends = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
        measured.append(place | {"perturbation": chosen} | ends)
    numbers = pd.DataFrame([*measured, *_similarities(source)])
    return _dots(source, numbers, chosen), numbers


def intra_class_similarity(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Mean cosine of different images of a class, for each class that has two: unit-norm (n, d), labels (n,).

    >>> intra_class_similarity(torch.tensor([[1., 0.], [1., 0.], [0., 1.], [0., -1.]]), torch.tensor([0, 0, 1, 1]))
    tensor([ 1., -1.])
    """
    means = []
    for label in labels.unique():
        rows = embeddings[labels == label]
        n = len(rows)
        if n > 1:
            means.append(((rows @ rows.T).sum() - n) / (n * (n - 1)))
    return torch.stack(means) if means else embeddings.new_empty(0)


def _similarities(source: Source) -> list[dict]:
    """Mean over classes on the sampled images, first seed; the interval is over classes."""
    images, labels = source.resources.test.load(source.sample), source.resources.test.labels[source.sample]
    rows = []
    # The clean model is that of all attacks.
    known: dict[tuple[str, ...], Tensor] = {}
    for attack, model in dict.fromkeys(zip(source.main["attack"], source.main["label"], strict=True)):
        parts = source.parts(attack, model)
        if parts not in known:
            known[parts] = intra_class_similarity(embed(source.victim(attack, model), images), labels)
        classes = known[parts]
        low, high = mean_interval(classes)
        place = {"metric": INTRA_CLASS, "model": model, "attack": attack, "perturbation": ""}
        rows.append(place | {"value": float(classes.mean()), "low": low, "high": high})
    return rows


def _dots(source: Source, numbers: pd.DataFrame, perturbation: str) -> Figure:
    models, attacks = source.models, source.attacks
    figure, axes = panels(PAGE, 1.2 + max(0.3, 0.085 * len(attacks)) * len(models), 1, 3, sharey=True)
    titles = {
        "PR_ratio": f"PR_ratio, {perturbation}",
        "PR_cos": f"PR_cos, {perturbation}",
        INTRA_CLASS: INTRA_CLASS,
    }
    for axis, (metric, title) in zip(axes[0], titles.items(), strict=True):
        for i, (attack, offset) in enumerate(zip(attacks, dodge(len(attacks)), strict=True)):
            rows = numbers[(numbers["metric"] == metric) & (numbers["attack"] == attack)]
            heights = [models.index(name) + offset for name in rows["model"]]
            ends = rows[["low", "high"]].to_numpy().T
            points(axis, list(rows["value"]), heights, ends, upright=False, ls="", label=attack, **look(i))
        axis.set_xlabel(title)
        widen(axis)
        axis.locator_params(axis="x", nbins=5)
    axes[0][0].set_yticks(range(len(models)), models)
    axes[0][0].set_ylim(len(models) - 0.5, -0.5)
    legend_below(figure, axes[0][0], columns=7)
    return figure
