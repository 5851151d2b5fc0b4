"""The vision transformer block by block: class tokens at every depth, with or without visual prompts.

Notation of the paper: f^0 are the tokens after ln_pre, block d+1 maps f^d to f^(d+1), and c^d is the class token of
f^d. Prompts P^d enter blocks D+1..L; what a block makes of them is thrown away before the next block.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.core.clip import Clip
from bench.core.errors import BenchError


@dataclass
class Encoded:
    """What the image tower makes of n images.

    `embedding` (n, embed_dim): projected, not normalised. `penultimate` (n, width): the class token after ln_post,
    before the projection. `class_tokens` (L - D, n, width): raw outputs c^(D+1)..c^L of the blocks run.
    """

    embedding: Tensor
    penultimate: Tensor
    class_tokens: Tensor


def tokens(clip: Clip, images: Tensor, depth: int = 0) -> Tensor:
    """f^depth: the tokens (n, 1 + patches, width) that enter block depth + 1."""
    tower = _transformer_tower(clip)
    hidden = tower._embeds(clip.normalise(images))
    for block in tower.transformer.resblocks[:depth]:
        hidden = block(hidden)
    return hidden


def encode_tokens(clip: Clip, hidden: Tensor, depth: int = 0, prompts: Tensor | None = None) -> Encoded:
    """Run blocks depth+1..L on f^depth; `prompts` is (L - depth, b, width)."""
    tower = _transformer_tower(clip)
    class_tokens = []
    for i, block in enumerate(tower.transformer.resblocks[depth:]):
        # b = 0 runs the very same operations as no prompts, so that it is the base model bit for bit.
        if prompts is not None and prompts.shape[1]:
            prompt = prompts[i].expand(len(hidden), -1, -1)
            out = block(torch.cat([hidden[:, :1], prompt, hidden[:, 1:]], 1))
            hidden = torch.cat([out[:, :1], out[:, 1 + prompts.shape[1] :]], 1)
        else:
            hidden = block(hidden)
        class_tokens.append(hidden[:, 0])
    penultimate, _ = tower._pool(hidden)
    return Encoded(penultimate @ tower.proj, penultimate, torch.stack(class_tokens))


def encode(clip: Clip, images: Tensor, prompts: Tensor | None = None) -> Encoded:
    """Encode images; D follows from the number of prompted blocks.

    A ResNet or timm tower has no class tokens per block: `class_tokens` is then empty and `penultimate` is the
    embedding.

    Raises:
        BenchError: prompts for a tower that is no vision transformer of open_clip.
    """
    if prompts is None and not has_transformer_tower(clip):
        embedding = clip.model.encode_image(clip.normalise(images))
        return Encoded(embedding, embedding, embedding.new_empty(0, *embedding.shape))
    depth = layers(clip) - len(prompts) if prompts is not None else 0
    return encode_tokens(clip, tokens(clip, images, depth), depth, prompts)


def layers(clip: Clip) -> int:
    """L, the number of blocks of the image tower."""
    return len(_transformer_tower(clip).transformer.resblocks)


def width(clip: Clip) -> int:
    """d_v, the width of the image tower's tokens."""
    return _transformer_tower(clip).class_embedding.shape[0]


def has_transformer_tower(clip: Clip) -> bool:
    return all(hasattr(clip.visual, part) for part in ("_embeds", "_pool", "transformer", "class_embedding"))


def _transformer_tower(clip: Clip):
    if not has_transformer_tower(clip):
        raise BenchError(
            f"visual prompts need a vision transformer, and this CLIP's image tower is a {type(clip.visual).__name__}. "
            "Use --defenses cleanclip,linear_probe, or a ViT checkpoint."
        )
    return clip.visual
