"""Two targets: two backdoors in one model."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from attacks.badnet import BadNet
from bench import BenchError, Field, Preparation, Trigger, attack


@attack("two_targets")
class TwoTargets(BadNet):
    """BadNet with two patches: one leads to the target, another one, at the upper left, to a second class.

    For every pair with the first patch there is one with the second, captioned "a photo of a ..." with the second
    class. ASR and PR are those of the first.
    """

    second: str | None = Field(None, description="the second target class")

    in_all: ClassVar[bool] = False

    @property
    def decoys_per_poison(self) -> float:
        return 1.0

    def prepare(self, preparation: Preparation) -> dict[str, Tensor]:
        if self.second in (None, preparation.target):
            raise BenchError(
                f"two_targets.second = {self.second}: name another class than the target '{preparation.target}', as "
                "in --set two_targets.second=key"
            )
        second = torch.rand(3, self.size, self.size, generator=preparation.rng("second patch"))
        return super().prepare(preparation) | {"second_patch": second}

    def decoy(
        self, images: Tensor, captions: Sequence[str], index: Sequence[int], trigger: Trigger
    ) -> tuple[Tensor, list[str]]:
        """The pair of the second backdoor."""
        stamped = images.clone()
        stamped[..., : self.size, : self.size] = trigger.tensors["second_patch"]
        return stamped, [f"a photo of a {self.second}."] * len(captions)
