"""Which patches the class token attends to in the last block, before and after the defense."""

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from bench.core.encoder import has_transformer_tower
from bench.core.errors import BenchError
from bench.core.names import UNDEFENDED
from bench.core.victim import Victim
from bench.papers import PaperFigure
from reports.figures.source import Source
from reports.figures.style import PAGE, panels, picture

IMAGES = 3


def draw(source: Source, figure: PaperFigure) -> tuple[Figure, pd.DataFrame]:
    """A row per image: clean and triggered, each with the attention of the backdoored and of the defended model."""
    attack = next((a for a in figure.attacks if a in source.attacks), source.attacks[0])
    (defense,) = figure.defenses
    victims = {"backdoored": source.victim(attack, UNDEFENDED), defense: source.victim(attack, defense)}
    index = source.others[:: max(1, len(source.others) // IMAGES)][:IMAGES]
    views = {"clean": source.resources.test.load(index), attack: source.stamped(attack, index)}
    maps = {
        (view, model): class_attention(victim, images).numpy()
        for model, victim in victims.items()
        for view, images in views.items()
    }
    return _grid(views, maps), _numbers(maps, [source.resources.test.ids[i] for i in index.tolist()])


@torch.no_grad()
def class_attention(victim: Victim, images: Tensor) -> Tensor:
    """Attention of the class token to each patch in the last block, mean over heads: (n, rows, columns).

    The remaining attention, up to a sum of 1, goes to the class token itself and to the prompts.

    Raises:
        BenchError: the image tower has no class token, or an attention that does not return its weights.
    """
    tower = victim.clip.visual
    if not has_transformer_tower(victim.clip):
        raise BenchError("needs a vision transformer of open_clip: this model's image tower has no class token")
    block = tower.transformer.resblocks[-1]
    if not isinstance(block.attn, nn.MultiheadAttention):
        raise BenchError(f"needs torch's attention: {type(block.attn).__name__} does not return its weights")
    inputs: list[Tensor] = []
    hook = block.ln_1.register_forward_hook(lambda _, __, normed: inputs.append(normed))
    try:
        victim.encode(images)
    finally:
        hook.remove()
    # The layer norm is called for the images' tokens first, then once for the prompts (b, width) of all images.
    images_tokens, *prompts = inputs
    tokens = torch.cat([images_tokens, *(prompt.expand(len(images_tokens), -1, -1) for prompt in prompts)], 1)
    _, weights = block.attn(tokens, tokens, tokens, need_weights=True)
    rows, columns = tower.grid_size
    return weights[:, 0, 1 : 1 + rows * columns].reshape(-1, rows, columns).float().cpu()


def _grid(views: dict[str, Tensor], maps: dict[tuple[str, str], np.ndarray]) -> Figure:
    models = list(dict.fromkeys(model for _, model in maps))
    images = next(iter(views.values()))
    columns = len(views) * (1 + len(models))
    figure, axes = panels(PAGE, 0.4 + len(images) * (PAGE - 0.8) / columns, len(images), columns)
    # One colour scale for all pictures.
    top = max(values.max() for values in maps.values())
    for i, row in enumerate(axes):
        k = 0
        for view, pixels in views.items():
            shown = pixels[i].permute(1, 2, 0).numpy()
            picture(row[k], shown)
            if i == 0:
                row[k].set_title("clean" if view == "clean" else f"triggered\n({view})")
            for j, model in enumerate(models, start=1):
                drawn = row[k + j]
                picture(drawn, shown.mean(-1), cmap="gray", vmin=0, vmax=255, alpha=0.8)
                extent = (-0.5, shown.shape[1] - 0.5, shown.shape[0] - 0.5, -0.5)
                heat = drawn.imshow(maps[view, model][i], cmap="viridis", vmin=0, vmax=top, alpha=0.65, extent=extent)
                if i == 0:
                    drawn.set_title(model)
            k += 1 + len(models)
    figure.colorbar(heat, ax=axes, location="right", shrink=0.6, label="attention", aspect=30)
    return figure


def _numbers(maps: dict[tuple[str, str], np.ndarray], ids: list[str]) -> pd.DataFrame:
    frames = []
    for (view, model), values in maps.items():
        i, row, column = (axis.ravel() for axis in np.indices(values.shape))
        place = {"image": np.array(ids)[i], "view": view, "model": model, "row": row, "column": column}
        frames.append(pd.DataFrame({**place, "attention": values.ravel()}))
    return pd.concat(frames, ignore_index=True)
