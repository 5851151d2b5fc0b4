"""What a type checker makes of the decorators: mypy reads this file beside the packages, and nothing runs it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

    def red(seen: Observations, shade: float = 1.0) -> dict[str, Estimate]:
        return {"": Estimate(shade, 0, len(seen["predictions"]), 0.0, 0.0)}

    assert_type(Stripe().height, int)
    assert_type(attack("stripe")(Stripe), type[Stripe])
    assert_type(defense("pruning")(Pruning), type[Pruning])
    assert_type(dataset("flowers")(Flowers), type[Flowers])
    assert_type(attacks["stripe"], type[Attack])
    # A measure keeps its own parameters too.
    metric("red", better="higher")(red)(..., shade=0.5)  # type: ignore[arg-type]
    # What is no attack cannot be registered as one; were this no error, mypy would call the comment unused.
    attack("pruning")(Pruning)  # type: ignore[type-var]
