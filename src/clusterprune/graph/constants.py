"""Constants that wait: along which dimension they have channels shows where they meet other data.

Joined to maps or added to them, a tensor of one number (:class:`~clusterprune.graph.ops.creation.Uniform`) gets labels
where the others have theirs.
"""

from collections.abc import MutableMapping
from typing import Any

from torch import Tensor, fx

from clusterprune.graph.labels import spread, varying_dims
from clusterprune.graph.nest import leaves, map_leaves
from clusterprune.graph.ops import op_of, shape_of
from clusterprune.graph.ops.creation import Uniform
from clusterprune.graph.ops.parts import JOIN
from clusterprune.graph.walk import TraceState


def settle(walk: TraceState, node: fx.Node, nest: Any, values: MutableMapping[str, Any]) -> Any:
    """Give every waiting tensor among a call's arguments labels along the dimension where the others have theirs."""
    waiting = [value for value in leaves(nest) if isinstance(value, Uniform)]
    if not waiting:
        return nest
    known = [value for value in leaves(nest) if isinstance(value, Tensor)]
    dim = _channel_dim(walk, node, known)
    for uniform in waiting:
        here = len(uniform.shape) - len(shape_of(node)) + dim if dim is not None else None
        if len(uniform.shape) == 1 and (op := op_of(node)) is not None and op.layer:
            here = 0  # a bias of zeros
        if here is not None and here in uniform.dims:
            values[uniform.name] = spread(walk.space.new(uniform.shape[here]), here, uniform.shape)
        else:
            values[uniform.name] = walk.space.opaque(uniform.shape, uniform.reason)
    return map_leaves(lambda leaf: values[leaf.name] if isinstance(leaf, Uniform) else leaf, nest)


def settle_all(walk: TraceState, values: MutableMapping[str, Any]) -> None:
    """Give opaque labels to what never met anything."""
    for name, value in values.items():
        if isinstance(value, Uniform):
            values[name] = walk.space.opaque(value.shape, value.reason)


def _channel_dim(walk: TraceState, node: fx.Node, known: list[Any]) -> int | None:
    """Return the dimension of a call's result along which its other operands have channels."""
    made = node.meta.get("val")
    if not isinstance(made, Tensor):
        return None
    rank = made.ndim
    found: set[int] = set()
    for value in known:
        if not walk.space.all_opaque(value) and value.ndim <= rank:
            found |= {dim + rank - value.ndim for dim in varying_dims(walk.space.root_tensor(value))}
    if len(found) == 1:
        return found.pop()
    if op_of(node) is JOIN:
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        return dim % rank if isinstance(dim, int) else None
    # Nothing to go by: channels come second.
    return 1 if not found and rank > 1 else None
