"""Shared encoding of victims: equal CLIPs and prompts become one object, and images pass shared blocks only once."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bench.core.clip import Clip
from bench.core.encoder import Encoded, advance, encode_tokens, has_transformer_tower, tokens
from bench.core.victim import Victim


def unified(victims: Iterable[Victim]) -> list[Victim]:
    """Victims of one architecture, in which bitwise equal CLIPs and bitwise equal prompts are one object.

    `victims` may be a generator; then two equal CLIPs are in memory only while they are compared.
    """
    known: list[Victim] = []
    for victim in victims:
        clip = next((v.clip for v in known if _equal_clips(v.clip, victim.clip)), victim.clip)
        prompts = next((v.prompts for v in known if _equal(v.prompts, victim.prompts)), victim.prompts)
        known.append(replace(victim, clip=clip, prompts=prompts))
    return known


def encode_each(victims: Sequence[Victim], images: Tensor) -> list[Encoded]:
    """Encode images (n, 3, h, w) by several `unified` victims; blocks that victims share are run once.

    Embeddings and penultimate features equal those of `Victim.encode` bit for bit; class tokens are left out. Victims
    that differ only in their heads get the same object.
    """
    encoded: dict[tuple, Encoded] = {}
    for clip in dict.fromkeys(victim.clip for victim in victims):
        variants = {_encoder(victim): victim for victim in victims if victim.clip is clip}
        alone = {key: victim for key, victim in variants.items() if victim.encodes_alone}
        encoded |= {key: _brief(victim.encode(images)) for key, victim in alone.items()}
        variants = {key: victim for key, victim in variants.items() if key not in alone}
        if not has_transformer_tower(clip):
            encoded |= {key: _brief(victim.encode(images)) for key, victim in variants.items()}
            continue
        hidden, depth = tokens(clip, images), 0
        # By depth, so that each victim continues from the unprompted blocks of the one before; no prompts comes last.
        for key, victim in sorted(variants.items(), key=lambda item: (item[1].prompts is None, item[1].depth)):
            if victim.prompts is not None:
                hidden, depth = advance(clip, hidden, depth, victim.depth), victim.depth
            encoded[key] = _brief(encode_tokens(clip, hidden, depth, victim.prompts, victim.blocks))
    return [encoded[_encoder(victim)] for victim in victims]


def rows(encoded: Encoded, index: Tensor) -> Encoded:
    """The encodings of the images of an index (k,); class tokens are not selected."""
    index = index.to(encoded.embedding.device)
    extra = {name: values[index] for name, values in encoded.extra.items()}
    return Encoded(encoded.embedding[index], encoded.penultimate[index], encoded.class_tokens, extra=extra)


def joined(parts: Sequence[Encoded]) -> Encoded:
    """The encodings of several batches as one, without class tokens."""
    extra = {name: torch.cat([part.extra[name] for part in parts]) for name in parts[0].extra}
    embedding, penultimate = (torch.cat([getattr(p, name) for p in parts]) for name in ("embedding", "penultimate"))
    return Encoded(embedding, penultimate, parts[0].class_tokens, extra=extra)


def _brief(encoded: Encoded) -> Encoded:
    return Encoded(encoded.embedding, encoded.penultimate, encoded.embedding.new_zeros(0), extra=encoded.extra)


def _encoder(victim: Victim) -> tuple:
    outer = tuple(map(id, victim.parts)) if victim.encodes_alone else ()
    return id(victim.clip), id(victim.prompts), victim.blocks, outer


def _equal_clips(first: Clip, second: Clip) -> bool:
    others = second.model.state_dict()
    return first is second or all(_equal(v, others[k]) for k, v in first.model.state_dict().items())


def _equal(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return torch.equal(first, second)
