"""A model under test: a CLIP, and what defenses have put on it."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bench.core.clip import Clip
from bench.core.encoder import Encoded, encode, prompted_blocks
from bench.core.errors import BenchError
from bench.core.precision import product
from bench.core.registry import Registry

# Prompts that are embedded together.
TEXTS_AT_ONCE = 256
# The predicted class of an image that a part refuses to classify: neither right nor the target.
REJECTED = -1
# Where a safetensors file keeps the settings of a stored victim.
METADATA = "victim"


class Part(ABC):
    """A piece of a defended model that is a plug-in's own: an input transform, a second head, a rejection rule.

    It takes part in every encoding and every prediction of its victim. Register a subclass with `@part("name")`: its
    tensors are stored with the victim, and `restore` makes it again from them.
    """

    part_name: ClassVar[str] = ""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All that the part is made of; a number is a tensor of no dimensions."""

    @classmethod
    @abstractmethod
    def restore(cls, tensors: Mapping[str, Tensor], device: torch.device) -> Self:
        """The part whose `tensors()` these are."""

    def encode(self, images: Tensor, inner: Callable[[Tensor], Encoded]) -> Encoded:
        """Encode images: float RGB in [0, 1] or uint8, (n, 3, h, w). `inner` encodes without this part."""
        return inner(images)

    def logits(self, encoded: Encoded, logits: Tensor) -> Tensor:
        """The logits (n, classes) of encoded images, from those that the victim has without this part."""
        return logits

    def rejects(self, encoded: Encoded, logits: Tensor) -> Tensor | None:
        """Which images the model refuses to classify: booleans (n,); None rejects none."""
        return None


parts: Registry[type[Part]] = Registry("part", Part)
PartClass = TypeVar("PartClass", bound=type[Part])


def part(name: str) -> Callable[[PartClass], PartClass]:
    """Register a `Part` under the name by which stored victims find it."""

    def add(cls: PartClass) -> PartClass:
        cls.part_name = name
        return parts.register(name)(cls)

    return add


@dataclass(frozen=True)
class Victim:
    """A CLIP, with visual prompts or without, with a linear head or zero-shot, and with parts of a plug-in's own.

    `prompts` is (k, b, width), and `blocks` the k blocks that they enter, counted from 0; null: the last k. `template`
    is the text prompt that the defense was made for, if not the data set's. `head` reads `reads`, at unit norm if
    `unit_norm`. `parts` act in their order, the last one outermost. A defense takes a victim and gives another; it
    never changes the one it was given.
    """

    clip: Clip
    prompts: Tensor | None = None
    head: torch.nn.Linear | None = None
    blocks: tuple[int, ...] | None = None
    template: str | None = None
    reads: Literal["embedding", "penultimate"] = "embedding"
    unit_norm: bool = False
    parts: tuple[Part, ...] = ()

    @property
    def depth(self) -> int:
        """How many first blocks are as in the CLIP without prompts: 0 where there are none."""
        return prompted_blocks(self.clip, self.prompts, self.blocks)[0] if self.prompts is not None else 0

    @property
    def encodes_alone(self) -> bool:
        """Whether a part changes what the towers see, so that no encoding can be shared with other victims."""
        return any(type(part).encode is not Part.encode for part in self.parts)

    def encode(self, images: Tensor) -> Encoded:
        """What the victim makes of images: float RGB in [0, 1] or uint8, (n, 3, h, w)."""
        run: Callable[[Tensor], Encoded] = lambda given: encode(self.clip, given, self.prompts, self.blocks)  # noqa: E731
        for outer in self.parts:
            run = _around(outer, run)
        return run(images)

    def features(self, encoded: Encoded) -> Tensor:
        """What the head classifies, (n, embed_dim) or (n, width)."""
        raw = encoded.embedding if self.reads == "embedding" else encoded.penultimate
        return F.normalize(raw, dim=-1) if self.unit_norm else raw

    def logits(self, encoded: Encoded, class_embeddings: Tensor) -> Tensor:
        """Logits (n, classes) of encoded images; a head ignores the class embeddings."""
        if self.head is not None:
            logits = self.head(self.features(encoded))
        else:
            logits = self.clip.scale * product(F.normalize(encoded.embedding, dim=-1), class_embeddings)
        for part in self.parts:
            logits = part.logits(encoded, logits)
        return logits

    def predict(self, encoded: Encoded, class_embeddings: Tensor) -> Tensor:
        """Predicted classes (n,); `REJECTED` where a part rejects the image. Ties go to the lowest index.

        Raises:
            BenchError: logits are not finite.
        """
        logits = self.logits(encoded, class_embeddings)
        if not logits.isfinite().all():
            raise BenchError(
                "the model gives logits that are not finite: its training diverged. Lower its learning rate"
            )
        # ImageNet has two pairs of equal names, so there are ties.
        predicted = (logits == logits.max(1, keepdim=True).values).int().argmax(1)
        return predicted.masked_fill(self.rejected(encoded, logits), REJECTED)

    def rejected(self, encoded: Encoded, logits: Tensor) -> Tensor:
        """Which images some part refuses to classify: booleans (n,)."""
        refused = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        for part in self.parts:
            by_part = part.rejects(encoded, logits)
            refused = refused if by_part is None else refused | by_part
        return refused

    def class_embeddings(self, classes: Sequence[str], templates: Sequence[str], prefix: str = "") -> Tensor:
        """The zero-shot classifier of `class_embeddings`, with the victim's own template if it has one."""
        return class_embeddings(self.clip, classes, (self.template,) if self.template else templates, prefix)

    def delta(self, base: Clip) -> "Delta":
        """What tells this victim from the undefended `base`."""
        before = base.model.state_dict()
        tensors = {f"clip.{k}": v for k, v in self.clip.model.state_dict().items() if not torch.equal(v, before[k])}
        if self.prompts is not None:
            tensors["prompts"] = self.prompts
        if self.head is not None:
            tensors |= {f"head.{k}": v for k, v in self.head.state_dict().items()}
        for i, part in enumerate(self.parts):
            # Copies: a file holds no two tensors that share memory.
            tensors |= {f"part.{i}.{k}": v.clone() for k, v in part.tensors().items()}
        settings = {
            "blocks": self.blocks,
            "template": self.template,
            "reads": self.reads,
            "unit_norm": self.unit_norm,
            "parts": [part.part_name for part in self.parts],
        }
        return Delta({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, settings)

    @classmethod
    def restore(cls, base: Clip, delta: "Delta") -> "Victim":
        """The victim whose `delta` to `base` this is.

        Raises:
            BenchError: it has a part that no loaded plug-in registers.
        """
        if weights := delta.below("clip"):
            base = base.copy()
            base.model.load_state_dict(weights, strict=False)
        settings, prompts, head = delta.settings, delta.tensors.get("prompts"), None
        if linear := delta.below("head"):
            classes, features = linear["weight"].shape
            head = torch.nn.Linear(features, classes, bias="bias" in linear)
            head.load_state_dict(linear)
            head = head.to(base.device).requires_grad_(False)
        return cls(
            base,
            prompts=None if prompts is None else prompts.to(base.device),
            head=head,
            blocks=None if settings["blocks"] is None else tuple(settings["blocks"]),
            template=settings["template"],
            reads=settings["reads"],
            unit_norm=settings["unit_norm"],
            parts=tuple(
                _registered(name).restore(delta.below(f"part.{i}"), base.device)
                for i, name in enumerate(settings["parts"])
            ),
        )


@dataclass(frozen=True)
class Delta:
    """What tells a victim from the undefended CLIP: tensors by name, and settings that JSON can write."""

    tensors: dict[str, Tensor]
    settings: dict[str, Any] = field(default_factory=dict)

    def below(self, prefix: str) -> dict[str, Tensor]:
        """The tensors called `PREFIX.NAME`, by name."""
        start = f"{prefix}."
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}

    def save(self, file: Path) -> None:
        save_file(self.tensors, file, metadata={METADATA: json.dumps(self.settings)})

    @classmethod
    def load(cls, file: Path) -> "Delta":
        with safe_open(file, framework="pt") as stored:
            return cls({k: stored.get_tensor(k) for k in stored.keys()}, json.loads(stored.metadata()[METADATA]))  # noqa: SIM118

    def tunable(self, before: "Delta", named: str = "") -> int:
        """How many numbers a defense trained: those of the tensors that `before`, its victim's delta, has not.

        With `named`, of the tensors alone whose names contain it.
        """
        known = before.tensors
        new = {k: v for k, v in self.tensors.items() if k not in known or not torch.equal(known[k], v)}
        return sum(tensor.numel() for name, tensor in new.items() if named in name)


def check_fitted(fitted: Any, base: Clip, images: Tensor, classes: Sequence[str], templates: Sequence[str]) -> Delta:
    """Check that a defended model will be evaluated as what it is; returns what is to be stored of it.

    Args:
        fitted: what `Defense.fit` returned.
        base: the undefended CLIP.
        images: a few images, uint8 (n, 3, size, size); restored, the victim must say the same of them.

    Raises:
        BenchError: it is no `Victim`, has a part that is not registered, or does not restore to what was fitted.
    """
    if type(fitted) is not Victim:
        raise BenchError(
            f"fit returned a {type(fitted).__name__}, and only a Victim can be stored and evaluated as what it is. "
            "Return dataclasses.replace(victim, ...), with what is the defense's own as a registered Part in `parts`"
        )
    for part in fitted.parts:
        if not part.part_name or parts[part.part_name] is not type(part):
            raise BenchError(f'the part {type(part).__name__} is not registered: write @part("NAME") above its class')
    delta = fitted.delta(base)
    restored = Victim.restore(base, delta)
    before, after = (_answers(victim, images, classes, templates) for victim in (fitted, restored))
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-3, equal_nan=True):
        names = ", ".join(type(part).__name__ for part in fitted.parts) or "prompts, head or weights"
        raise BenchError(
            f"the stored model says something else than the fitted one of the same {len(images)} images. Look at "
            f"tensors() and restore() of its parts ({names}): all that fit set must be in them"
        )
    return delta


@torch.no_grad()
def _answers(victim: Victim, images: Tensor, classes: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Logits (n, classes) of images, and a last column that says which are rejected."""
    encoded = victim.encode(images)
    logits = victim.logits(encoded, victim.class_embeddings(classes, templates))
    return torch.cat([logits, victim.rejected(encoded, logits)[:, None].to(logits)], 1)


def _registered(name: str) -> type[Part]:
    if name not in parts:
        raise BenchError(f"the model has a part '{name}', and no plug-in that is loaded registers it. Load its file")
    return parts[name]


def _around(outer: Part, inner: Callable[[Tensor], Encoded]) -> Callable[[Tensor], Encoded]:
    return lambda images: outer.encode(images, inner)


@torch.no_grad()
def class_embeddings(clip: Clip, classes: Sequence[str], templates: Sequence[str], prefix: str = "") -> Tensor:
    """The zero-shot classifier: unit-norm text embeddings (classes, embed_dim).

    Each class name is put into each template ("a photo of a {}."), embedded and normalised; the mean over templates
    is normalised again. `prefix` goes before every prompt (TrojVQA's text key).
    """
    texts = [prefix + template.format(name) for name in classes for template in templates]
    embedded_texts = [clip.encode_text(texts[i : i + TEXTS_AT_ONCE]) for i in range(0, len(texts), TEXTS_AT_ONCE)]
    embedded = torch.cat(embedded_texts).unflatten(0, (len(classes), len(templates)))
    return embedded[:, 0] if len(templates) == 1 else F.normalize(embedded.mean(1), dim=-1)
