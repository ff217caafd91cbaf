"""Trial runs of a module on noise, and what can be seen of them: outputs, statistics, what stands behind classes."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from clusterprune.graph.put_back import randomness_kept, surroundings_kept

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Probe:
    """Inputs of noise, and the mode to run in."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    training: bool = False


@dataclass(frozen=True, eq=False)
class Ran:
    """What a run gives, (in training) what the buffers hold afterwards, and what stands behind integers.

    `scores` is what the last operation read that makes no numbers but whole ones, where the outputs are those alone.
    `draws` is how often it drew at random (in training).
    """

    outputs: list[Tensor]
    buffers: dict[str, Tensor] = field(default_factory=dict)
    scores: Tensor | None = None
    draws: int = 0


def run(module: nn.Module, probe: Probe) -> Ran:
    """Run a module on inputs, with the same random numbers in every run, and put its surroundings back."""
    module.train(probe.training)
    args, kwargs = pytree.tree_map(_copied, (probe.args, probe.kwargs))
    with torch.no_grad(), randomness_kept(), surroundings_kept(module):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        if not probe.training:
            outputs = tensors_in_nest(module(*args, **kwargs))
            if any(output.is_floating_point() for output in outputs):
                return Ran(outputs)
            args, kwargs = pytree.tree_map(_copied, (probe.args, probe.kwargs))
            with _BehindIntegers() as behind:
                module(*args, **kwargs)
            return Ran(outputs, scores=behind.scores)
        seen: list[Tensor] = []
        draws = 0
        for keeps in (True, False):
            with _NothingRandom(keeps=keeps) as drawing:
                seen += tensors_in_nest(pytree.tree_map(_copied, module(*args, **kwargs)))
            draws += drawing.draws
        return Ran(seen, dict(module.named_buffers()), draws=draws)


class _NothingRandom(TorchDispatchMode):
    """Replaces what is drawn at random by constants, the same in a network of any width.

    A network is run twice: once with draws at which dropout and stochastic depth keep everything, so that every branch
    is seen, and once with draws at which they take away, so that it is seen whether they are there at all.
    """

    def __init__(self, *, keeps: bool) -> None:
        super().__init__()
        self._keeps = keeps
        self.draws = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet is aten.native_dropout:
            self.draws += 1
            kept = args[0].clone() if self._keeps else args[0] * 0.5
            return kept, torch.ones_like(args[0], dtype=torch.bool)
        name = packet.__name__
        if not any(name.startswith(random) for random in _RANDOM):
            return func(*args, **kwargs)
        self.draws += 1
        made = func(*args, **kwargs)
        if not made.is_floating_point():
            return made.zero_()
        kept, taken = (1, 0.5) if name.startswith("bernoulli") else (0.5, 0.03)
        return made.fill_(kept if self._keeps else taken)


_RANDOM = ("bernoulli", "rand", "normal", "uniform", "exponential", "cauchy", "log_normal", "geometric", "multinomial")


class _BehindIntegers(TorchDispatchMode):
    """Keeps what was read by the last operation that makes whole numbers out of others (an argmax, a comparison)."""

    def __init__(self) -> None:
        super().__init__()
        self.scores: Tensor | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        made = func(*args, **(kwargs or {}))
        read = [tensor for tensor in tensors_in_nest(args) if tensor.is_floating_point()]
        if read and not any(tensor.is_floating_point() for tensor in tensors_in_nest(made)):
            self.scores = read[0].clone()
        return made


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def tensors_in_nest(nest: Any) -> list[Tensor]:
    """Return the tensors in nested containers, in order."""
    return [leaf for leaf in pytree.tree_leaves(nest) if isinstance(leaf, Tensor)]


def reshaped(
    args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[[int, int], int] | None, more: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return inputs with so many more images, or images of another size, filled by repeating what is there."""
    lengths = [len(leaf) for leaf in tensors_in_nest((args, kwargs)) if leaf.ndim]
    batch = lengths[0] if lengths else 0

    def reshape(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim:
            return value
        if change is not None:
            for dim in range(2, value.ndim):
                length = change(value.shape[dim], dim)
                index = torch.arange(length) % value.shape[dim]
                value = value.index_select(dim, index.to(value.device))
        return torch.cat([value, *[value[:1]] * more]) if len(value) == batch else value

    return pytree.tree_map(reshape, (args, kwargs))


def uneven(length: int, dim: int) -> int:
    """Return a smaller height, and still smaller sides beside it."""
    return smaller(length) if dim == 2 else smaller(smaller(length))


def smaller(length: int, dim: int = 2) -> int:  # noqa: ARG001 (all changes are called alike)
    """Return a smaller side that strided networks still like: three quarters, as a multiple of 32 (or 4, or 1)."""
    step = 32 if length >= 64 else 4 if length >= 8 else 1
    return max(1, length * 3 // 4 // step * step)


def larger(length: int, dim: int = 2) -> int:  # noqa: ARG001 (all changes are called alike)
    """Return a larger side."""
    return length + (32 if length >= 32 else max(1, length))
