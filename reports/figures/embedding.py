"""Where triggered images lie among clean ones and the class texts, by t-SNE."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from torch import Tensor

from bench.core.names import UNDEFENDED
from bench.papers import PaperFigure
from reports.figures.source import Source, embed
from reports.figures.style import COLOURS, COLUMN, PAGE, legend_below, panels

STYLES: dict[str, dict[str, Any]] = {
    "clean": {"marker": "o", "color": COLOURS[0], "ms": 3, "mew": 0, "alpha": 0.7},
    "triggered": {"marker": "^", "color": COLOURS[1], "ms": 3.5, "mew": 0, "alpha": 0.7},
    "class text": {"marker": "D", "color": COLOURS[2], "ms": 4, "mfc": "none"},
    "target's text": {"marker": "*", "color": "black", "ms": 9},
}


def draw(source: Source, figure: PaperFigure) -> tuple[Figure, pd.DataFrame]:
    """A panel for the undefended model and each defense, for the attack with the highest undefended ASR."""
    undefended = source.main[(source.main["label"] == UNDEFENDED) & (source.main["metric"] == "ASR")]
    if undefended.empty:
        raise source.missing("the undefended model", f"--defenses {','.join((UNDEFENDED, *figure.defenses))}")
    attack = str(undefended.groupby("attack", sort=False)["value"].mean().idxmax())
    defenses = [UNDEFENDED, *(name for name in figure.defenses if (attack, name) in source.cells)]
    resources = source.resources
    index = source.others
    views = {"clean": resources.test.load(index), "triggered": source.stamped(attack, index)}
    drawn, axes = panels(max(COLUMN, PAGE * len(defenses) / 3), 0.7 + PAGE / 3, 1, len(defenses))
    frames = []
    for axis, defense in zip(axes[0], defenses, strict=True):
        victim = source.victim(attack, defense)
        texts = victim.class_embeddings(resources.test.classes, resources.dataset.templates).float().cpu()
        places = project(embed(victim, views["clean"]), embed(victim, views["triggered"]), texts)
        text_kinds = ["target's text" if c == source.target else "class text" for c in range(len(texts))]
        kinds = [*(view for view in views for _ in index), *text_kinds]
        names = [*(resources.test.ids[i] for _ in views for i in index.tolist()), *resources.test.classes]
        frame = pd.DataFrame({"defense": defense, "kind": kinds, "name": names, "x": places[:, 0], "y": places[:, 1]})
        frames.append(frame.assign(attack=attack))
        _panel(axis, frame)
        axis.set_title(f"{attack}, {'no defense' if defense == UNDEFENDED else defense}")
    legend_below(drawn, axes[0][0])
    return drawn, pd.concat(frames, ignore_index=True)


def project(clean: Tensor, triggered: Tensor, texts: Tensor) -> np.ndarray:
    """t-SNE (n, 2), by cosine, of unit-norm embeddings of images, clean and triggered, and of texts.

    CLIP's images and texts lie in two cones far apart. Clean images and texts are centred on the origin, each by its
    own mean, so that a text stands beside its images; triggered images are moved by the mean of the clean ones.
    """
    joint = torch.cat([clean - clean.mean(0), triggered - clean.mean(0), texts - texts.mean(0)]).numpy()
    perplexity = min(30, (len(joint) - 1) / 3)
    return TSNE(metric="cosine", init="random", perplexity=perplexity, random_state=0).fit_transform(joint)


def _panel(axis: Axes, frame: pd.DataFrame) -> None:
    for kind, style in STYLES.items():
        rows = frame[frame["kind"] == kind]
        (line,) = axis.plot(rows["x"], rows["y"], ls="", label=kind)
        line.set(**style)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_aspect("equal", adjustable="datalim")
