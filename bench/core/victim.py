"""A model under test: a CLIP, and what defenses have put on it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core.clip import Clip
from bench.core.encoder import Encoded, encode


@dataclass(frozen=True)
class Victim:
    """A CLIP, with visual `prompts` (L - D, b, width) or without, with a linear `head` or zero-shot.

    A defense takes one and gives another; it never changes the one it was given.
    """

    clip: Clip
    prompts: Tensor | None = None
    head: torch.nn.Linear | None = None

    def encode(self, images: Tensor) -> Encoded:
        return encode(self.clip, images, self.prompts)

    def logits(self, embedding: Tensor, class_embeddings: Tensor) -> Tensor:
        """Logits (n, classes) of raw image embeddings; a head ignores the class embeddings."""
        if self.head is not None:
            return self.head(embedding)
        return self.clip.scale * F.normalize(embedding, dim=-1) @ class_embeddings.T

    def delta(self, base: Clip) -> dict[str, Tensor]:
        """The tensors that tell this victim from the undefended `base`."""
        before = base.model.state_dict()
        changed = {f"clip.{k}": v for k, v in self.clip.model.state_dict().items() if not torch.equal(v, before[k])}
        if self.prompts is not None:
            changed["prompts"] = self.prompts
        if self.head is not None:
            changed |= {f"head.{k}": v for k, v in self.head.state_dict().items()}
        return {k: v.detach().cpu().contiguous() for k, v in changed.items()}

    @classmethod
    def restore(cls, base: Clip, delta: dict[str, Tensor]) -> "Victim":
        """The victim whose `delta` to `base` this is."""
        weights = {k.removeprefix("clip."): v for k, v in delta.items() if k.startswith("clip.")}
        victim = cls(base)
        if weights:
            clip = base.copy()
            clip.model.load_state_dict(weights, strict=False)
            victim = cls(clip)
        if "prompts" in delta:
            victim = replace(victim, prompts=delta["prompts"].to(base.device))
        if "head.weight" in delta:
            classes, features = delta["head.weight"].shape
            head = torch.nn.Linear(features, classes)
            head.load_state_dict({"weight": delta["head.weight"], "bias": delta["head.bias"]})
            victim = replace(victim, head=head.to(base.device))
        return victim


@torch.no_grad()
def class_embeddings(clip: Clip, classes: Sequence[str], templates: Sequence[str], prefix: str = "") -> Tensor:
    """The zero-shot classifier: unit-norm text embeddings (classes, embed_dim).

    Each class name is put into each template ("a photo of a {}."), embedded and normalised; the mean over templates
    is normalised again. `prefix` goes before every prompt (TrojVQA's text key).
    """
    rows = []
    for name in classes:
        embedded = clip.encode_text([prefix + template.format(name) for template in templates])
        rows.append(embedded[0] if len(templates) == 1 else F.normalize(embedded.mean(0), dim=-1))
    return torch.stack(rows)
