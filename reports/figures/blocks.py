"""Perturbation Resistivity of each block, as version 3 of RVPT's paper reports it: mean cosine of class tokens."""

from collections.abc import Sequence

import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from bench.core.encoder import encode_tokens, has_transformer_tower, tokens
from bench.core.names import OWN_TRIGGER
from bench.core.randomness import derive
from bench.core.victim import Victim
from metrics.intervals import mean_interval
from metrics.perturbations import PERTURBATIONS, perturbation
from reports.figures.source import Source
from reports.figures.style import PAGE, legend_below, look, panels, widen

# Panels beside each other, of the own trigger and of the run's first perturbations.
PANELS = 3
# One of so many sampled images is shown: each is encoded by every model under every perturbation.
STEP = 4


def draw(source: Source) -> tuple[Figure, pd.DataFrame]:
    """A panel per perturbation, a line per model, first seed, some sampled images.

    Lines are means over the attacks that the most models face; every attack is in the table.
    """
    index = source.sample[::STEP]
    images, numbers = source.resources.test.load(index), index.tolist()
    named = [name for name in source.perturbations if name in PERTURBATIONS][: PANELS - 1]
    perturbed = {
        name: perturbation(name)(images.float() / 255, numbers, derive(0, "perturbation", name)) for name in named
    }
    rows = []
    # The clean model's tokens are those of all attacks, but for their triggers.
    known: dict[tuple[str, ...], Tensor] = {}
    for attack, model in dict.fromkeys(zip(source.main["attack"], source.main["label"], strict=True)):
        victim = source.victim(attack, model)
        parts = source.parts(attack, model)
        if parts not in known:
            known[parts] = class_tokens(victim, images)
        for name, after in {OWN_TRIGGER: source.stamped(attack, index), **perturbed}.items():
            resistivity = resistivity_of_blocks(known[parts], class_tokens(victim, after))
            last = len(victim.clip.visual.transformer.resblocks) if has_transformer_tower(victim.clip) else 0
            for block, cosines in enumerate(resistivity, 1 + last - len(resistivity)):
                low, high = mean_interval(cosines.numpy())
                place = {"perturbation": name, "model": model, "attack": attack, "block": block}
                rows.append(place | {"value": float(cosines.mean()), "low": low, "high": high, "n": len(cosines)})
    if not rows:
        raise source.missing("an image tower with class tokens", "--model ViT-B-32 --pretrained openai")
    table = pd.DataFrame(rows)
    return _lines(source.models, table), table


@torch.no_grad()
def class_tokens(victim: Victim, images: Tensor, batch_size: int = 64) -> Tensor:
    """c^1..c^L of images (n, 3, h, w), float RGB in [0, 1] or uint8: (blocks, n, width), on the CPU, in fp32.

    Of a victim with a part that encodes images itself, those that the part gives; none of a tower without class tokens.
    """

    def encoded(batch: Tensor) -> Tensor:
        if victim.encodes_alone or not has_transformer_tower(victim.clip):
            return victim.encode(batch).class_tokens
        return encode_tokens(victim.clip, tokens(victim.clip, batch), 0, victim.prompts, victim.blocks).class_tokens

    return torch.cat([encoded(batch).float().cpu() for batch in images.split(batch_size)], 1)


def resistivity_of_blocks(before: Tensor, after: Tensor) -> Tensor:
    """cos(c^d(x), c^d(x + delta)) of each block and image (blocks, n), from class tokens (blocks, n, width).

    Their mean over images is version 3's PR of block d.

    >>> resistivity_of_blocks(torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[3.0, 3.0]]]))
    tensor([[0.7071]])
    """
    return F.cosine_similarity(before, after, dim=-1)


def _lines(models: Sequence[str], table: pd.DataFrame) -> Figure:
    # Attacks that one of the models cannot face would move the means of the others alone.
    faced = table.groupby("attack")["model"].nunique()
    common = table[table["attack"].isin(list(faced[faced == faced.max()].index))]
    shown = list(table["perturbation"].unique())
    figure, axes = panels(PAGE, 2.6, 1, len(shown))
    for axis, name in zip(axes[0], shown, strict=True):
        means = common[common["perturbation"] == name].groupby(["model", "block"])["value"].mean()
        for i, model in enumerate(models):
            if model in means.index:
                line = means[model]
                axis.plot(line.index, line, label=model, **look(i))
        axis.set_title("own trigger" if name == OWN_TRIGGER else name, loc="left")
        axis.set_xlabel("block")
        axis.locator_params(axis="x", integer=True)
        widen(axis, "y")
    axes[0][0].set_ylabel("PR_cos of class tokens")
    legend_below(figure, axes[0][0], columns=7)
    return figure
