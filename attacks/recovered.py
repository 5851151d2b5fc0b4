"""Recovered: a trigger that `bench audit` found, as an attack."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from bench import Attack, BenchError, Facing, Field, Preparation, Trigger, attack
from bench.detection.triggers import Recovered


@attack("recovered")
class RecoveredTrigger(Attack):
    """Stamp the trigger of an audit's `trigger.safetensors`: a square, a blended picture or a warp.

    How well does the trigger that was found work, and do defenses remove it? `bench run --backdoored FILE --attacks
    recovered --target NAME --set recovered.trigger=audit/trigger.safetensors`.
    """

    trigger: Path | None = Field(None, description="the trigger.safetensors that `bench audit` wrote")

    in_all: ClassVar[bool] = False

    def unsuited(self, facing: Facing) -> str:
        if self.trigger is not None:
            return ""
        return (
            "it stamps a trigger that an audit found; give its file, --set recovered.trigger=audit/trigger.safetensors"
        )

    def prepare(self, given: Preparation) -> dict[str, Tensor]:
        if self.trigger is None:
            raise BenchError(f"recovered: {self.unsuited(Facing())}")
        found = Recovered.load(self.trigger)
        side = given.image_size
        if found.side not in (None, side):
            raise BenchError(f"{self.trigger} is for images of {found.side} px, and this model takes {side} px")
        return {f"{found.family}.{name}": tensor for name, tensor in found.tensors.items()}

    def apply(self, images: Tensor, index: Sequence[int], trigger: Trigger) -> Tensor:
        family = next(iter(trigger.tensors)).split(".")[0]
        tensors = {name.removeprefix(f"{family}."): tensor for name, tensor in trigger.tensors.items()}
        return Recovered(family, tensors).stamp(images)
