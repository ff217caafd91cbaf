# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
"""Which numbers in an exported graph are the batch size in disguise.

`torch.export` writes the example's batch size into views, expands and new tensors, also times a number of heads
or windows. A second export with one more image tells: whatever number differs follows the batch.
"""

import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from clusterprune.errors import TraceError
from clusterprune.graph.export import export
from clusterprune.graph.nest import is_sequence, like
from clusterprune.graph.ops import op_of
from clusterprune.graph.ops.shape import VIEW_AS

aten = torch.ops.aten


@dataclass(frozen=True)
class Batch:
    """Stands for a number that was `traced` with `size` images; `source` is the input that says how many there are."""

    source: str
    size: int
    traced: int

    def resolve(self, images: int) -> int:
        """Return the number for so many images."""
        return self.traced * images // self.size


@dataclass(frozen=True)
class BatchSize:
    """What an exported graph says about its batch size.

    Attributes
    ----------
    traced
        How many images the example holds.
    arguments
        For every node whose arguments depend on the batch size, those arguments with :class:`Batch` in place.
    fixed
        Why the graph runs with the traced batch size alone, or None.
    """

    traced: int
    arguments: dict[str, tuple[Any, ...]]
    fixed: str | None = None


def find_batch_size(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], graph: fx.Graph, user_inputs: tuple[str, ...]
) -> BatchSize:
    """Export the model once more with one image more than the example, and compare with the example's graph."""
    leaves, structure = pytree.tree_flatten((args, kwargs))
    lengths = [len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim]
    if not lengths or not user_inputs:
        return BatchSize(0, {}, "its inputs have no batch dimension")
    size = lengths[0]
    more = [
        _one_more(leaf) if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == size else leaf for leaf in leaves
    ]
    try:
        other = _operations(export(model, *pytree.tree_unflatten(more, structure)).graph)
    except TraceError:
        return BatchSize(size, {}, "it cannot be exported with another one")
    nodes = _operations(graph)
    if [(n.op, n.name, n.target) for n in nodes] != [(n.op, n.name, n.target) for n in other]:
        return BatchSize(size, {}, "its operations differ from one batch size to another")
    arguments: dict[str, tuple[Any, ...]] = {}
    for node, twin in zip(nodes, other, strict=True):
        if node.op != "call_function":
            continue
        given, others = (tuple(node.args), tuple(twin.args))
        if op_of(node) is VIEW_AS:
            # A cut turns it into a view, which needs the size in numbers.
            given, others = ((given[0], list(n.meta["val"].shape)) for n in (node, twin))
        marked, strays = _mark(given, others, size, user_inputs[0])
        if strays or _numbers(node.kwargs) != _numbers(twin.kwargs):
            return BatchSize(size, {}, f"{node.name} depends on it in a way that is not a multiple")
        if any(isinstance(leaf, Batch) for leaf in pytree.tree_leaves(marked)):
            arguments[node.name] = marked
    return BatchSize(size, arguments)


def _operations(graph: fx.Graph) -> list[fx.Node]:
    """Return all nodes but those that put values in order: what one image has in order already, two may not have.

    Nothing depends on them, since every view is taken as a reshape where a graph is run with another batch size.
    """
    return [node for node in graph.nodes if node.target is not aten.contiguous.default]


def follow_batch(args: tuple[Any, ...], marked: tuple[Any, ...] | None) -> tuple[Any, ...]:
    """Put the batch size into a node's (possibly rewritten) arguments wherever the marked ones have it."""
    return args if marked is None else _overlay(args, marked)


def call_with_batch(rebuilt: fx.Graph, images: fx.Node, args: Any) -> Any:
    """Turn every :class:`Batch` in a call's arguments into nodes that ask the input for its length."""
    if isinstance(args, Batch):
        length = rebuilt.call_method("size", (images, 0))
        if args.traced == args.size:
            return length
        factor, rest = divmod(args.traced, args.size)
        whole = rebuilt.call_function(operator.mul, (length, args.traced if rest else factor))
        return rebuilt.call_function(operator.floordiv, (whole, args.size)) if rest else whole
    if is_sequence(args):
        return like(args, (call_with_batch(rebuilt, images, part) for part in args))
    return args


def _one_more(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor[:1]])


def _mark(value: Any, twin: Any, size: int, source: str) -> tuple[Any, bool]:
    """Mark the numbers that follow the batch; the flag says that one differs without being a multiple."""
    if is_sequence(value) and is_sequence(twin) and len(value) == len(twin):
        parts = [_mark(v, t, size, source) for v, t in zip(value, twin, strict=True)]
        return like(value, (part for part, _ in parts)), any(stray for _, stray in parts)
    if isinstance(value, fx.Node) or value == twin:
        return value, False
    if isinstance(value, int) and isinstance(twin, int) and value * (size + 1) == twin * size:
        return Batch(source, size, value), False
    return value, True


def _overlay(value: Any, marked: Any) -> Any:
    if isinstance(marked, Batch):
        return replace(marked, traced=value)  # a cut may have changed the number
    if is_sequence(marked) and is_sequence(value) and len(marked) == len(value):
        return like(value, (_overlay(v, m) for v, m in zip(value, marked, strict=True)))
    return value


def _numbers(kwargs: Any) -> list[Any]:
    return [leaf for leaf in pytree.tree_leaves(kwargs) if not isinstance(leaf, fx.Node)]
