"""Norms: where a batch norm stands, where its tensors are stored, and how it is folded into the layer before it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from clusterprune.graph.export import named_arguments


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """A batch norm in a traced graph: γ·(x − mean)/√(variance + ε) + β for every channel.

    Attributes
    ----------
    node
        Its node in the graph.
    weight, bias, mean, variance
        Paths of γ, β and the running statistics in the module, or None where it has none or computes them.
    eps
        Its ε.
    """

    node: fx.Node
    weight: str | None
    bias: str | None
    mean: str | None
    variance: str | None
    eps: float

    @property
    def name(self) -> str:
        """Name of its node."""
        return self.node.name

    @property
    def input(self) -> fx.Node:
        """The node whose value it normalises."""
        source = self.node.args[0]
        assert isinstance(source, fx.Node)  # noqa: S101 (a fact about exported graphs, for the type checker)
        return source

    @property
    def alone(self) -> bool:
        """Whether nothing else reads what it normalises."""
        return len(self.input.users) == 1

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of all its tensors: γ, β, mean and variance, as far as it has them."""
        return tuple(path for path in (self.weight, self.bias, self.mean, self.variance) if path is not None)

    @property
    def complete(self) -> bool:
        """Whether it has all four tensors."""
        return len(self.paths) == 4

    def folding(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        """Return its scale and shift, (channels,) each, from tensors by path; None without running statistics."""
        if self.mean is None or self.variance is None:
            return None
        weight = None if self.weight is None else tensors[self.weight]
        bias = None if self.bias is None else tensors[self.bias]
        return fold(tensors[self.mean], tensors[self.variance], self.eps, weight, bias)


def fold(
    mean: Tensor, variance: Tensor, eps: float, weight: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return a batch norm's scale and shift, (channels,) each: it computes x · scale + shift."""
    deviation = (variance + eps).sqrt()
    scale = deviation.reciprocal() if weight is None else weight / deviation
    return scale, -mean * scale if bias is None else bias - mean * scale


def find_batch_norms(graph: fx.Graph, inputs: Mapping[str, str]) -> Iterator[BatchNorm]:
    """Yield the batch norms of a graph in order of execution.

    Parameters
    ----------
    inputs
        Paths of parameters and buffers by the names of their placeholders.
    """
    for node in graph.nodes:
        if getattr(node.target, "overloadpacket", None) is torch.ops.aten.batch_norm:
            given = named_arguments(node)
            tensors = (given[name] for name in ("weight", "bias", "running_mean", "running_var"))
            paths = (inputs.get(tensor.name) if isinstance(tensor, fx.Node) else None for tensor in tensors)
            yield BatchNorm(node, *paths, eps=float(given["eps"]))
