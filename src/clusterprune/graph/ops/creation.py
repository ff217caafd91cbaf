"""Tensors that hold one number everywhere, or the same along some dimensions: they are as wide as asked.

`zeros(…)` has no channels of its own and can be made with any width. Which dimension its channels run along shows only
where it meets other data (:mod:`clusterprune.graph.constants`).
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from clusterprune.graph.ops._base import CallEdit, CutReader, Op, free, op_of, register_op, shape_of
from clusterprune.graph.ops.shape import EXPANDS
from clusterprune.graph.walk import TraceState


@dataclass(frozen=True)
class Uniform:
    """Data that is the same along `dims` (those with more than one entry), and may be cut along any one of them."""

    name: str
    shape: tuple[int, ...]
    dims: tuple[int, ...]
    reason: str


def constant(walk: TraceState, node: fx.Node, a: dict[str, Any]) -> Any:  # noqa: ARG001 (all rules are called alike)
    """Make a tensor of one number."""
    shape = tuple(shape_of(node))
    dims = tuple(dim for dim, length in enumerate(shape) if length > 1)
    reason = f"{node.name}: a constant"
    return Uniform(node.name, shape, dims, reason) if dims else walk.space.opaque(shape, reason)


def like(walk: TraceState, node: fx.Node, a: dict[str, Any]) -> Any:  # noqa: ARG001 (all rules are called alike)
    """Make a tensor as large as another, which is cut with it."""
    return a["self"]


def expanded(walk: TraceState, node: fx.Node, labels: Any) -> Any:
    """Return what an expansion of data without channels makes: the same along every dimension that grew."""
    if op_of(node) not in EXPANDS or not isinstance(labels, Tensor) or not walk.space.all_opaque(labels):
        return None
    shape = tuple(shape_of(node))
    before = (1,) * (len(shape) - labels.ndim) + tuple(labels.shape)
    grown = tuple(dim for dim, (old, new) in enumerate(zip(before, shape, strict=True)) if old == 1 < new)
    return Uniform(node.name, shape, grown, f"{node.name}: it has no channels") if grown else None


def _rewrite(mask: CutReader, node: fx.Node) -> CallEdit:
    """A constant is made as wide as what it meets."""
    return CallEdit(node.target, (list(mask.shape(node.name)), *node.args[1:]), dict(node.kwargs))


def _rewrite_new(mask: CutReader, node: fx.Node) -> CallEdit:
    args = (node.args[0], list(mask.shape(node.name)), *node.args[2:])
    return CallEdit(node.target, args, dict(node.kwargs))


register_op("zeros ones full empty", Op(labels=constant, rewrite=_rewrite, cost=free))
register_op("new_zeros new_ones new_full new_empty", Op(labels=constant, rewrite=_rewrite_new, cost=free))
register_op("zeros_like ones_like full_like empty_like rand_like randn_like", Op(labels=like, cost=free))
register_op("arange scalar_tensor linspace", Op(cost=free))
