"""The vision transformer block by block: class tokens at every depth, with or without visual prompts.

Notation of the paper: f^0 are the tokens after ln_pre, block d+1 maps f^d to f^(d+1), and c^d is the class token of
f^d. Prompts P^d enter block d+1, which is block number d counted from 0: blocks D+1..L unless other numbers are
given. What a block makes of them is thrown away before the next block.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.core.clip import Clip
from bench.core.errors import BenchError


@dataclass
class Encoded:
    """What the image tower makes of n images.

    `embedding` (n, embed_dim): projected, not normalised. `penultimate` (n, width): the class token after ln_post,
    before the projection. `class_tokens` (L - D, n, width): raw outputs c^(D+1)..c^L of the blocks run. `tokens`
    (L - D, n, 1 + patches, width): f^(D+1)..f^L, where they were asked for. `extra` is what a plug-in's `Part` keeps of
    the images for its logits: tensors (n, ...) by name.
    """

    embedding: Tensor
    penultimate: Tensor
    class_tokens: Tensor
    tokens: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)


def tokens(clip: Clip, images: Tensor, depth: int = 0) -> Tensor:
    """f^depth: the tokens (n, 1 + patches, width) that enter block depth + 1."""
    return advance(clip, _transformer_tower(clip)._embeds(clip.normalise(images)), 0, depth)


def advance(clip: Clip, hidden: Tensor, start: int, stop: int) -> Tensor:
    """f^stop from f^start, through blocks without prompts."""
    for block in _transformer_tower(clip).transformer.resblocks[start:stop]:
        hidden = block(hidden)
    return hidden


def encode_tokens(
    clip: Clip,
    hidden: Tensor,
    depth: int = 0,
    prompts: Tensor | None = None,
    blocks: Sequence[int] | None = None,
    all_tokens: bool = False,
) -> Encoded:
    """Run blocks depth+1..L on f^depth, with prompts as `encode` takes them; `all_tokens` asks for `Encoded.tokens`.

    Raises:
        BenchError: prompts for blocks that the tower does not have.
    """
    tower = _transformer_tower(clip)
    by_block: dict[int, Tensor] = {}
    # b = 0 runs the very same operations as no prompts, so that it is the base model bit for bit.
    if prompts is not None and prompts.shape[1]:
        by_block = dict(zip(prompted_blocks(clip, prompts, blocks), prompts, strict=True))
    outputs = []
    for number, block in enumerate(tower.transformer.resblocks[depth:], depth):
        hidden = _prompted(block, hidden, by_block[number]) if number in by_block else block(hidden)
        outputs.append(hidden if all_tokens else hidden[:, 0])
    penultimate, _ = tower._pool(hidden)
    raw = torch.stack(outputs)
    return Encoded(
        penultimate @ tower.proj, penultimate, raw[:, :, 0] if all_tokens else raw, raw if all_tokens else None
    )


def _prompted(block: Any, hidden: Tensor, prompt: Tensor) -> Tensor:
    """A block's output at its tokens (n, t, width), which attend to prompts (b, width) too.

    The block's outputs at the prompts are thrown away, so all it needs of them is keys and values, which are the same
    for all images. Attention that is not torch's own is run on all tokens.
    """
    attention = block.attn
    # `shape[0]`, not `len`, which torch.export would take as a constant.
    if not isinstance(attention, nn.MultiheadAttention):
        out = block(torch.cat([hidden, prompt.expand(hidden.shape[0], -1, -1)], 1))
        return out[:, : hidden.shape[1]]
    width = hidden.shape[-1]
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    query, *own = F.linear(block.ln_1(hidden), weight, bias).split(width, -1)
    shared = F.linear(block.ln_1(prompt), weight[width:], bias[width:]).split(width, -1)
    key, value = (torch.cat([a, b.expand(a.shape[0], -1, -1)], 1) for a, b in zip(own, shared, strict=True))
    heads = (x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    seen = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    hidden = hidden + block.ls_1(attention.out_proj(seen))
    return hidden + block.ls_2(block.mlp(block.ln_2(hidden)))


def encode(clip: Clip, images: Tensor, prompts: Tensor | None = None, blocks: Sequence[int] | None = None) -> Encoded:
    """Encode images; class tokens are those from the first prompted block on.

    `prompts` is (k, b, width), `blocks` the k numbers of the blocks that they enter, ascending from 0; null: the last
    k. A ResNet or timm tower has no class tokens per block: `class_tokens` is then empty and `penultimate` is the
    embedding.

    Raises:
        BenchError: prompts for a tower that is no vision transformer of open_clip, or for blocks that it lacks.
    """
    if prompts is None and not has_transformer_tower(clip):
        embedding = clip.model.encode_image(clip.normalise(images))
        return Encoded(embedding, embedding, embedding.new_empty(0, *embedding.shape))
    depth = prompted_blocks(clip, prompts, blocks)[0] if prompts is not None else 0
    return encode_tokens(clip, tokens(clip, images, depth), depth, prompts, blocks)


def prompted_blocks(clip: Clip, prompts: Tensor, blocks: Sequence[int] | None = None) -> Sequence[int]:
    """The numbers, from 0, of the blocks that prompts (k, b, width) enter: the last k unless `blocks` names others.

    Raises:
        BenchError: the tower does not have them.
    """
    total = layers(clip)
    if len(prompts) > total or (blocks and max(blocks) >= total):
        last = max(blocks) + 1 if blocks else len(prompts)
        raise BenchError(
            f"these prompts need {last} blocks, and this image tower has {total}: they were tuned on a larger model. "
            "Tune them on this one, or take that one."
        )
    return blocks or range(total - len(prompts), total)


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
