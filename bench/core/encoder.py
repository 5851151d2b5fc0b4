"""The vision transformer block by block: class tokens at every depth, with or without visual prompts.

Notation of the paper: f^0 are the tokens after ln_pre, block d+1 maps f^d to f^(d+1), and c^d is the class token of
f^d. Prompts P^d enter block d+1, which is block number d counted from 0; by default, blocks D+1..L have prompts. The
outputs of a block at its prompts are discarded before the next block.
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
    """The image tower's outputs for n images.

    `embedding` (n, embed_dim): projected, not normalised. `penultimate` (n, width): the class token after ln_post,
    before the projection. `class_tokens` (L - D, n, width): raw outputs c^(D+1)..c^L of the blocks that were run.
    `tokens` (L - D, n, 1 + patches, width): f^(D+1)..f^L, if requested. `extra`: tensors (n, ...) by name that a
    plug-in's `Part` stores for its logits.
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
    """Run blocks depth+1..L on `hidden` = f^depth, (n, 1 + patches, width); prompts as in `encode`.

    `all_tokens` requests `Encoded.tokens`.

    Raises:
        BenchError: prompts for blocks that the tower does not have.
    """
    tower = _transformer_tower(clip)
    by_block: dict[int, Tensor] = {}
    # b = 0 runs the same operations as no prompts, so results equal the base model's bit for bit.
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
    """A block's output (n, t, width) for tokens (n, t, width) that also attend to prompts (b, width).

    Outputs at the prompts are discarded, so only their keys and values are computed, once for all images. Blocks whose
    attention is not torch's MultiheadAttention are run on all tokens.
    """
    attention = block.attn
    # `shape[0]`, not `len`, which torch.export would take as a constant.
    if not isinstance(attention, nn.MultiheadAttention):
        out = block(torch.cat([hidden, prompt.expand(hidden.shape[0], -1, -1)], 1))
        return out[:, : hidden.shape[1]]
    width = hidden.shape[-1]
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    query, *token_kv = F.linear(block.ln_1(hidden), weight, bias).split(width, -1)
    prompt_kv = F.linear(block.ln_1(prompt), weight[width:], bias[width:]).split(width, -1)
    key, value = (torch.cat([a, b.expand(a.shape[0], -1, -1)], 1) for a, b in zip(token_kv, prompt_kv, strict=True))
    heads = (x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    hidden = hidden + block.ls_1(attention.out_proj(attended))
    return hidden + block.ls_2(block.mlp(block.ln_2(hidden)))


def encode(clip: Clip, images: Tensor, prompts: Tensor | None = None, blocks: Sequence[int] | None = None) -> Encoded:
    """Encode images (n, 3, h, w), float RGB in [0, 1] or uint8; class tokens start at the first prompted block.

    `prompts` is (k, b, width); `blocks` are the numbers, ascending from 0, of the k blocks that they enter; None: the
    last k. A ResNet or timm tower has no class tokens per block: `class_tokens` is empty, `penultimate` the embedding.

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
            "Tune prompts on this model, or use the model they were tuned on."
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
            "Use --defenses cleanclip,linear_probe,unlearn, or a ViT checkpoint."
        )
    return clip.visual
