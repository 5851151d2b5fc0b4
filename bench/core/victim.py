"""A victim: a CLIP under test, with what defenses added to it."""

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

# How many class prompts are embedded at a time.
TEXTS_AT_ONCE = 256
# The predicted class of an image that a part rejects; it counts neither as correct nor as the target class.
REJECTED = -1
# The key of a stored victim's settings in the metadata of its safetensors file.
METADATA = "victim"


class Part(ABC):
    """A component that a plug-in adds to a defended model: an input transform, a second head, a rejection rule.

    It takes part in every encoding and prediction of its victim. Register a subclass with `@part("name")`: its tensors
    are stored with the victim, and `restore` rebuilds it from them.
    """

    part_name: ClassVar[str] = ""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The complete state of the part; numbers are tensors without dimensions."""

    @classmethod
    @abstractmethod
    def restore(cls, tensors: Mapping[str, Tensor], device: torch.device) -> Self:
        """The part from the result of its `tensors()`."""

    def encode(self, images: Tensor, inner: Callable[[Tensor], Encoded]) -> Encoded:
        """Encode images (n, 3, h, w), float RGB in [0, 1] or uint8. `inner` encodes without this part."""
        return inner(images)

    def logits(self, encoded: Encoded, logits: Tensor) -> Tensor:
        """The logits (n, classes) of n encoded images; `logits` (n, classes) are those without this part."""
        return logits

    def rejects(self, encoded: Encoded, logits: Tensor) -> Tensor | None:
        """Which images the model refuses to classify: booleans (n,), or None for no image."""
        return None


parts: Registry[type[Part]] = Registry("part", Part)
PartClass = TypeVar("PartClass", bound=type[Part])


def part(name: str) -> Callable[[PartClass], PartClass]:
    """Register a subclass of `Part` under the name that stored victims refer to."""

    def add(cls: PartClass) -> PartClass:
        cls.part_name = name
        return parts.register(name)(cls)

    return add


@dataclass(frozen=True)
class Victim:
    """A CLIP with optional visual prompts, an optional linear head instead of class texts, and parts of plug-ins.

    `prompts` is (k, b, width); `blocks` are the k blocks that they enter, counted from 0; None: the last k. `template`
    is the text prompt of the defense, None for the data set's. `head` classifies the features `reads`, at unit norm if
    `unit_norm`. `parts` are applied in order, the last one outermost. A victim is never changed: a defense returns
    another one.
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
        """The number of blocks before the first prompted one; 0 without prompts."""
        return prompted_blocks(self.clip, self.prompts, self.blocks)[0] if self.prompts is not None else 0

    @property
    def encodes_alone(self) -> bool:
        """Whether a part changes the encoding, so that it cannot be shared with other victims."""
        return any(type(part).encode is not Part.encode for part in self.parts)

    def encode(self, images: Tensor) -> Encoded:
        """Encode images (n, 3, h, w), float RGB in [0, 1] or uint8."""
        run: Callable[[Tensor], Encoded] = lambda x: encode(self.clip, x, self.prompts, self.blocks)  # noqa: E731
        for outer in self.parts:
            run = _around(outer, run)
        return run(images)

    def features(self, encoded: Encoded) -> Tensor:
        """The features that the head classifies, (n, embed_dim) or (n, width)."""
        raw = encoded.embedding if self.reads == "embedding" else encoded.penultimate
        return F.normalize(raw, dim=-1) if self.unit_norm else raw

    def logits(self, encoded: Encoded, class_embeddings: Tensor) -> Tensor:
        """Logits (n, classes) of n encoded images; a head ignores `class_embeddings` (classes, embed_dim)."""
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
        # Ties are real: in ImageNet, two pairs of classes share a name.
        predicted = (logits == logits.max(1, keepdim=True).values).int().argmax(1)
        return predicted.masked_fill(self.rejected(encoded, logits), REJECTED)

    def rejected(self, encoded: Encoded, logits: Tensor) -> Tensor:
        """Which images are rejected by any part: booleans (n,)."""
        refused = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        for part in self.parts:
            by_part = part.rejects(encoded, logits)
            refused = refused if by_part is None else refused | by_part
        return refused

    def class_embeddings(self, classes: Sequence[str], templates: Sequence[str], prefix: str = "") -> Tensor:
        """The zero-shot classifier (classes, embed_dim), with the victim's own template if it has one."""
        return class_embeddings(self.clip, classes, (self.template,) if self.template else templates, prefix)

    def delta(self, base: Clip) -> "Delta":
        """The difference between this victim and the undefended `base`."""
        before = base.model.state_dict()
        tensors = {f"clip.{k}": v for k, v in self.clip.model.state_dict().items() if not torch.equal(v, before[k])}
        if self.prompts is not None:
            tensors["prompts"] = self.prompts
        if self.head is not None:
            tensors |= {f"head.{k}": v for k, v in self.head.state_dict().items()}
        for i, part in enumerate(self.parts):
            # Copies: safetensors refuses tensors that share memory.
            tensors |= {f"part.{i}.{k}": v.clone() for k, v in part.tensors().items()}
        settings = {
            "blocks": self.blocks,
            "template": self.template,
            "reads": self.reads,
            "unit_norm": self.unit_norm,
            "parts": [part.part_name for part in self.parts],
        }
        # Waits for the GPU: once, to store them.
        return Delta({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, settings)

    @classmethod
    def restore(cls, base: Clip, delta: "Delta") -> "Victim":
        """The victim from `base` and its `delta`.

        Raises:
            BenchError: no loaded plug-in registers one of its parts.
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
    """The difference between a victim and the undefended CLIP: tensors by name, and settings as JSON values."""

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
        """How many numbers a defense trained: those in tensors that `before`, its victim's delta, does not have.

        `named` counts only tensors whose names contain it.
        """
        known = before.tensors
        new = {k: v for k, v in self.tensors.items() if k not in known or not torch.equal(known[k], v)}
        return sum(tensor.numel() for name, tensor in new.items() if named in name)


def check_fitted(fitted: Any, base: Clip, images: Tensor, classes: Sequence[str], templates: Sequence[str]) -> Delta:
    """Check that the stored model will behave like the fitted one.

    Args:
        fitted: what `Defense.fit` returned.
        base: the undefended CLIP.
        images: a few images, uint8 (n, 3, size, size), on which the restored victim must give the same logits.
        classes, templates: class names and text prompts.

    Returns:
        The delta to store.

    Raises:
        BenchError: `fitted` is no `Victim`, has a part that is not registered, or changes when it is restored.
    """
    if type(fitted) is not Victim:
        raise BenchError(
            f"fit returned a {type(fitted).__name__}, and only a Victim can be stored and evaluated as what it is. "
            "Return dataclasses.replace(victim, ...), with whatever the defense adds as a registered Part in `parts`"
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
            f"the stored model gives other logits than the fitted one on the same {len(images)} images. Look at "
            f"tensors() and restore() of its parts ({names}): they must hold everything that fit set"
        )
    return delta


@torch.no_grad()
def _answers(victim: Victim, images: Tensor, classes: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Logits of images, and a last column that is 1 for rejected ones: (n, classes + 1)."""
    encoded = victim.encode(images)
    logits = victim.logits(encoded, victim.class_embeddings(classes, templates))
    return torch.cat([logits, victim.rejected(encoded, logits)[:, None].to(logits)], 1)


def _registered(name: str) -> type[Part]:
    if name not in parts:
        raise BenchError(f"the model has a part '{name}', which no loaded plug-in registers: --plugin FILE loads one")
    return parts[name]


def _around(outer: Part, inner: Callable[[Tensor], Encoded]) -> Callable[[Tensor], Encoded]:
    return lambda images: outer.encode(images, inner)


@torch.no_grad()
def class_embeddings(clip: Clip, classes: Sequence[str], templates: Sequence[str], prefix: str = "") -> Tensor:
    """The zero-shot classifier: unit-norm text embeddings (classes, embed_dim).

    Each class name is filled into each template ("a photo of a {}."), embedded and normalised; the mean over templates
    is normalised again. `prefix` is put before every prompt (TrojVQA's text trigger).
    """
    texts = [prefix + template.format(name) for name in classes for template in templates]
    embedded_texts = [clip.encode_text(texts[i : i + TEXTS_AT_ONCE]) for i in range(0, len(texts), TEXTS_AT_ONCE)]
    embedded = torch.cat(embedded_texts).unflatten(0, (len(classes), len(templates)))
    return embedded[:, 0] if len(templates) == 1 else F.normalize(embedded.mean(1), dim=-1)
