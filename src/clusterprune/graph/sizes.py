# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
"""Which numbers in an exported graph follow the sizes of its inputs, and how.

A graph exported at fixed sizes holds them in views, resizings and new tensors. A second export with symbolic sizes
says where each of those numbers comes from. The two graphs run the same operations in the same order, so that the
arguments of one can be put in place of those of the other.
"""

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from clusterprune.errors import TraceError
from clusterprune.graph.channels import ChannelGraph
from clusterprune.graph.export import export
from clusterprune.graph.nest import is_sequence, like
from clusterprune.graph.ops import op_of
from clusterprune.graph.ops.shape import SIZED

aten = torch.ops.aten

_MOST_VIEWS = 16
"""Views of a graph beyond which its sizes are not followed: each is an equation to the exporter, whose time for a
transformer of nine blocks is two minutes."""


def follow_sizes(graph: ChannelGraph) -> "Sizes":
    """Export a traced model once more, with the batch and every spatial size left open.

    Raises
    ------
    TraceError
        If it cannot be exported so, runs other operations then, or has so many views that it would take minutes.
    """
    views = sum(op_of(node) in SIZED for node in graph.fx.nodes)
    if views > _MOST_VIEWS:
        raise TraceError(f"its {views} views are too many to follow")

    def free(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return None
        return {dim: torch.export.Dim.AUTO for dim in range(value.ndim) if dim != 1}

    # A size of one is never left open: one image becomes two.
    args, kwargs = pytree.tree_map(_two, (graph.args, graph.kwargs))
    shapes = pytree.tree_map(free, (args, kwargs))
    exported = export(graph.model, args, kwargs, sizes=(*shapes[0], *shapes[1].values()))
    ours, theirs = (_operations(g) for g in (graph.fx, exported.graph))
    if [(n.op, n.target if n.op != "placeholder" else "") for n in ours] != [
        (n.op, n.target if n.op != "placeholder" else "") for n in theirs
    ]:
        raise TraceError("its operations differ once its sizes are left open")
    return Sizes({a.name: b for a, b in zip(ours, theirs, strict=True)})


def _two(value: Any) -> Any:
    return torch.cat([value, value]) if isinstance(value, Tensor) and value.ndim and len(value) == 1 else value


def _operations(graph: fx.Graph) -> list[fx.Node]:
    """Return the nodes that make tensors (numbers and checks aside)."""
    return [
        node
        for node in graph.nodes
        if node.op == "placeholder"
        or (node.op == "call_function" and any(isinstance(v, Tensor) for v in pytree.tree_leaves(node.meta.get("val"))))
    ]


class Sizes:
    """The arguments of every operation with open sizes, by the node names of the graph with fixed ones."""

    def __init__(self, twins: dict[str, fx.Node]) -> None:
        """Take for every node its twin in the graph whose sizes are open."""
        self._twins = twins
        self._names = {twin: name for name, twin in twins.items()}

    def into(self, rebuilt: fx.Graph, values: dict[str, Any], node: fx.Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return a call's (possibly rewritten) arguments, with nodes of `rebuilt` where a number follows the inputs.

        Parameters
        ----------
        rebuilt
            The graph that is being written.
        values
            Its nodes by the names of the fixed graph.
        """
        twin = self._twins[node.name]
        return tuple(
            self._overlay(rebuilt, values, old, new, open_)
            for old, new, open_ in zip(node.args, args, twin.args, strict=False)
        ) + tuple(args[len(twin.args) :])

    def _overlay(self, rebuilt: fx.Graph, values: dict[str, Any], old: Any, new: Any, open_: Any) -> Any:
        if is_sequence(open_) and is_sequence(new) and is_sequence(old):
            if not len(open_) == len(new) == len(old):
                return new
            return like(new, (self._overlay(rebuilt, values, *parts) for parts in zip(old, new, open_, strict=True)))
        if not isinstance(new, int) or isinstance(new, bool) or not isinstance(old, int):
            return new
        if not isinstance(open_, fx.Node):
            return new
        number = self._number(rebuilt, values, open_)
        if new == old:
            return number
        # A cut scaled it: as many channels less, at any size.
        return rebuilt.call_function(operator.floordiv, (rebuilt.call_function(operator.mul, (number, new)), old))

    def _number(self, rebuilt: fx.Graph, values: dict[str, Any], node: Any) -> Any:
        """Write the computation of a number, from the sizes of what is there already."""
        if not isinstance(node, fx.Node):
            return node
        if node.target is aten.sym_size.int:
            source, dim = node.args
            return rebuilt.call_method("size", (values[self._names[source]], dim))  # type: ignore[index]
        args = tuple(self._number(rebuilt, values, argument) for argument in node.args)
        return rebuilt.call_function(node.target, args)  # type: ignore[arg-type]
