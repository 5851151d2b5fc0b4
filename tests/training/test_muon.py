"""Muon: torch's own update, in float32."""

import pytest
import torch

from bench.training.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 32)])
def test_singular_values_end_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalised(matrix))
    assert values.min() > 0.5 and values.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert (
        torch.nn.functional.cosine_similarity(orthogonalised(matrix).flatten(), (left @ right).flatten(), dim=0) > 0.97
    )


def test_no_gradient_no_direction() -> None:
    assert torch.equal(orthogonalised(torch.zeros(3, 4)), torch.zeros(3, 4))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch older than 2.9 has no Muon to compare with")
@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 64)])
def test_moves_as_torch_does(shape: tuple[int, int]) -> None:
    rng = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(shape, generator=rng), torch.randn((3, *shape), generator=rng)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    for parameter, kind in ((ours, Muon), (theirs, torch.optim.Muon)):
        optimiser = kind([parameter], lr=0.02, weight_decay=0.05, momentum=0.9)
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimiser.step()
    moved = (theirs - start).norm()
    # bfloat16 has 8 bits.
    assert (ours - theirs).norm() < 0.02 * moved
