"""A model under test: a CLIP, and what defenses have put on it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core.clip import Clip
from bench.core.encoder import Encoded, encode, prompted_blocks
from bench.core.precision import product

# Prompts that are embedded together.
TEXTS_AT_ONCE = 256


@dataclass(frozen=True)
class Victim:
    """A CLIP, with visual prompts or without, with a linear head or zero-shot.

    `prompts` is (k, b, width), and `blocks` the k blocks that they enter, counted from 0; null: the last k. `template`
    is the text prompt that the defense was made for, if not the data set's. `head` reads `reads`, at unit norm if
    `unit_norm`. A defense takes a victim and gives another; it never changes the one it was given.
    """

    clip: Clip
    prompts: Tensor | None = None
    head: torch.nn.Linear | None = None
    blocks: tuple[int, ...] | None = None
    template: str | None = None
    reads: Literal["embedding", "penultimate"] = "embedding"
    unit_norm: bool = False

    @property
    def depth(self) -> int:
        """How many first blocks are as in the CLIP without prompts: 0 where there are none."""
        return prompted_blocks(self.clip, self.prompts, self.blocks)[0] if self.prompts is not None else 0

    def encode(self, images: Tensor) -> Encoded:
        return encode(self.clip, images, self.prompts, self.blocks)

    def features(self, encoded: Encoded) -> Tensor:
        """What the head classifies, (n, embed_dim) or (n, width)."""
        raw = encoded.embedding if self.reads == "embedding" else encoded.penultimate
        return F.normalize(raw, dim=-1) if self.unit_norm else raw

    def logits(self, encoded: Encoded, class_embeddings: Tensor) -> Tensor:
        """Logits (n, classes) of encoded images; a head ignores the class embeddings."""
        if self.head is not None:
            return self.head(self.features(encoded))
        return self.clip.scale * product(F.normalize(encoded.embedding, dim=-1), class_embeddings)

    def class_embeddings(self, classes: Sequence[str], templates: Sequence[str], prefix: str = "") -> Tensor:
        """The zero-shot classifier of `class_embeddings`, with the victim's own template if it has one."""
        return class_embeddings(self.clip, classes, (self.template,) if self.template else templates, prefix)

    def delta(self, base: Clip) -> dict[str, Tensor]:
        """The tensors that tell this victim from the undefended `base`."""
        before = base.model.state_dict()
        changed = {f"clip.{k}": v for k, v in self.clip.model.state_dict().items() if not torch.equal(v, before[k])}
        if self.prompts is not None:
            changed["prompts"] = self.prompts
        if self.blocks is not None:
            changed["blocks"] = torch.tensor(self.blocks)
        if self.template is not None:
            changed["template"] = torch.tensor(list(self.template.encode()), dtype=torch.uint8)
        if self.head is not None:
            changed |= {f"head.{k}": v for k, v in self.head.state_dict().items()}
        if self.reads != "embedding" or self.unit_norm:
            changed["head_input"] = torch.tensor([self.reads == "penultimate", self.unit_norm])
        return {k: v.detach().cpu().contiguous() for k, v in changed.items()}

    @classmethod
    def restore(cls, base: Clip, delta: dict[str, Tensor]) -> "Victim":
        """The victim whose `delta` to `base` this is."""
        weights = {k.removeprefix("clip."): v for k, v in delta.items() if k.startswith("clip.")}
        if weights:
            base = base.copy()
            base.model.load_state_dict(weights, strict=False)
        worn: dict[str, Any] = {}
        if "prompts" in delta:
            worn["prompts"] = delta["prompts"].to(base.device)
        if "blocks" in delta:
            worn["blocks"] = tuple(delta["blocks"].tolist())
        if "template" in delta:
            worn["template"] = bytes(delta["template"].tolist()).decode()
        if "head.weight" in delta:
            classes, features = delta["head.weight"].shape
            head = torch.nn.Linear(features, classes)
            head.load_state_dict({"weight": delta["head.weight"], "bias": delta["head.bias"]})
            worn["head"] = head.to(base.device)
        if "head_input" in delta:
            penultimate, worn["unit_norm"] = delta["head_input"].tolist()
            worn["reads"] = "penultimate" if penultimate else "embedding"
        return replace(cls(base), **worn)


@torch.no_grad()
def class_embeddings(clip: Clip, classes: Sequence[str], templates: Sequence[str], prefix: str = "") -> Tensor:
    """The zero-shot classifier: unit-norm text embeddings (classes, embed_dim).

    Each class name is put into each template ("a photo of a {}."), embedded and normalised; the mean over templates
    is normalised again. `prefix` goes before every prompt (TrojVQA's text key).
    """
    texts = [prefix + template.format(name) for name in classes for template in templates]
    parts = [clip.encode_text(texts[i : i + TEXTS_AT_ONCE]) for i in range(0, len(texts), TEXTS_AT_ONCE)]
    embedded = torch.cat(parts).unflatten(0, (len(classes), len(templates)))
    return embedded[:, 0] if len(templates) == 1 else F.normalize(embedded.mean(1), dim=-1)
