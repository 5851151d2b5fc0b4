"""A GPU pretended on a machine without one: what runs on `cuda:0` runs without numbers, what mixes devices fails.

PyTorch's fake tensors know shapes, types and devices, and hold nothing. Here only the tensors on the GPU are fake:
those of the CPU are computed as ever, what comes back from the GPU is zeros, and each time the CPU waits for a number
of the GPU is counted. Autograd's engine wants a real GPU, so `backward` gives each trained tensor a gradient of zeros;
autocast does nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

GPU = "cuda:0"


class PretendedGpu(TorchDispatchMode):
    """While it is active, tensors on `GPU` are fake; `waits` counts the transfers that the CPU waited for.

    `generators` are those on the GPU: PyTorch refuses to draw with them on the CPU, and with others on the GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0
        self.generators: list[torch.Generator] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        fakes = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, FakeTensor)]
        device = kwargs.get("device")
        if (rng := kwargs.get("generator")) is not None:
            # By their seeds: PyTorch hands over another object for the same generator.
            there = rng.initial_seed() in [known.initial_seed() for known in self.generators]
            asked = torch.device(device) if device is not None else fakes[0].device if fakes else torch.device("cpu")
            if there != (asked.type == "cuda"):
                raise RuntimeError(f"a generator on {GPU if there else 'the CPU'} draws for {asked}")
            # Fake tensors know no generators.
            kwargs = kwargs | {"generator": None} if there else kwargs
        # The meta device holds no numbers either; networks that start there are moved like those of the CPU.
        if not fakes and (device is None or torch.device(device).type in ("cpu", "meta")):
            with _disable_current_modes():
                return func(*args, **kwargs)
        if func is torch.ops.aten._local_scalar_dense.default:
            self.waits += 1
            return True if fakes[0].dtype is torch.bool else 1
        if func is torch.ops.aten.equal.default:
            self.waits += 1
            return False
        if func is torch.ops.aten.copy_.default and not isinstance(args[0], FakeTensor):
            self.waits += 1
            with _disable_current_modes():
                return args[0].zero_()
        result = func(*args, **kwargs)
        return pytree.tree_map_only(FakeTensor, self._brought_here, result)

    def _brought_here(self, result: FakeTensor) -> Tensor:
        """What an operation gives: zeros where it has come to the CPU."""
        if result.device.type != "cpu":
            return result
        self.waits += 1
        with _disable_current_modes():
            return torch.zeros(result.shape, dtype=result.dtype)


@contextmanager
def pretended_gpu(patch: pytest.MonkeyPatch) -> Iterator[PretendedGpu]:
    """A GPU for what is inside; gradients are zeros, and no generator of the GPU is seeded."""
    mode = PretendedGpu()

    def backward(loss: Tensor, *_: object, **__: object) -> None:
        assert loss.device == torch.device(GPU)
        leaves = _leaves(loss.grad_fn)
        assert leaves, "the loss depends on nothing that is trained"
        for leaf in leaves:
            leaf.grad = torch.zeros_like(leaf)

    def grad(loss: Tensor, inputs: Tensor | list[Tensor], *_: object, **__: object) -> tuple[Tensor, ...]:
        asked = [inputs] if isinstance(inputs, Tensor) else inputs
        leaves = set(map(id, _leaves(loss.grad_fn)))
        assert leaves & set(map(id, asked))
        return tuple(map(torch.zeros_like, asked))

    patch.setattr(Tensor, "backward", backward)
    patch.setattr(torch.autograd, "grad", grad)
    move = torch.nn.Module.to

    def to(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        """PyTorch cannot move a module of fake tensors, also not to where it is."""
        there = all(isinstance(parameter, FakeTensor) for parameter in module.parameters())
        return module if there else move(module, *args, **kwargs)

    patch.setattr(torch.nn.Module, "to", to)
    make = torch.Generator

    def generator(device: torch.device | str = "cpu") -> torch.Generator:
        made = make()
        if torch.device(device).type == "cuda":
            mode.generators.append(made)
        return made

    patch.setattr(torch, "Generator", generator)
    patch.setattr(torch.cuda, "manual_seed", lambda _: None)
    patch.setattr(torch.cuda, "device", lambda _: nullcontext())
    patch.setattr(torch.cuda, "current_stream", Mock())
    fork = torch.random.fork_rng
    patch.setattr(torch.random, "fork_rng", lambda *_, **__: fork([]))
    with FakeTensorMode(allow_non_fake_inputs=True), mode:
        yield mode


def _leaves(node: Any) -> list[Tensor]:
    """The tensors that a graph ends in."""
    waiting, seen, leaves = [node], set(), []
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        waiting += [next_node for next_node, _ in node.next_functions]
    return leaves
