"""What a type checker makes of the decorators: mypy reads this file beside the packages, and nothing runs it."""

from typing import assert_type

from torch import Tensor

from bench import Attack, Dataset, Defense, Estimate, Field, Observations, attack, attacks, dataset, defense, metric


@attack("stripe")
class Stripe(Attack):
    height: int = Field(4, description="height of the stripe", unit="px")

    def lines(self, images: Tensor) -> Tensor:
        return images[:, :, : self.height]


class Pruning(Defense):
    pass


class Flowers(Dataset):
    pass


def red(seen: Observations) -> dict[str, Estimate]:
    return {"": Estimate(0.0, 0, len(seen["predictions"]), 0.0, 0.0)}


assert_type(Stripe().height, int)
assert_type(attack("stripe")(Stripe), type[Stripe])
assert_type(defense("pruning")(Pruning), type[Pruning])
assert_type(dataset("flowers")(Flowers), type[Flowers])
assert_type(metric("red", better="higher")(red)({}), dict[str, Estimate])  # type: ignore[arg-type]
assert_type(attacks["stripe"], type[Attack])
# What is no attack cannot be registered as one; were this no error, mypy would call the comment unused.
attack("pruning")(Pruning)  # type: ignore[type-var]
