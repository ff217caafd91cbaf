"""Attention: queries compared with keys, values mixed; and which dimensions of what goes there are heads."""

from typing import Any

import torch
from torch import Tensor, fx

from clusterprune.graph.labels import spread, varying_dims
from clusterprune.graph.ops._base import CostReader, Op, Term, aten, op_of, register_op, shape_of
from clusterprune.graph.ops.linear import contract, matrix_batch
from clusterprune.graph.walk import TraceState


def attention(walk: TraceState, node: fx.Node, a: dict[str, Any]) -> Any:
    """Compare queries with keys and mix values: heads go as a whole, and values may lose dimensions of their own."""
    q, k, v, mask = a["query"], a["key"], a["value"], a.get("attn_mask")
    if a.get("enable_gqa"):
        tensors = [t for t in (q, k, v, mask) if isinstance(t, Tensor)]
        return walk.opaque(node, tensors, f"{node.name}: several queries share a key")
    batch = [f"batch{place}" for place in range(q.ndim - 2)]
    operands = [(q, [*batch, "query", "inner"]), (k, [*batch, "key", "inner"]), (v, [*batch, "key", "value"])]
    if isinstance(mask, Tensor):
        operands.append((mask, [*batch, "query", "key"][q.ndim - mask.ndim :]))
    return contract(walk, node, operands, [*batch, "query", "value"])


def _cost(reader: CostReader, node: fx.Node) -> list[Term]:
    query, key, value = (node.args[i] for i in range(3))
    batch = reader.all_of(node, skip=(-2, -1))
    pairs = (reader.along(query, -2), reader.along(key, -2))
    inner = reader.shared(query, -1, key, -1)
    return [Term(1.0, (*batch, *pairs, inner)), Term(1.0, (*batch, *pairs, reader.along(value, -1)))]


ATTENTION = Op(labels=attention, batch_dims=matrix_batch, cost=_cost)
register_op("scaled_dot_product_attention", ATTENTION)


def dims_of_heads(node: fx.Node) -> set[int]:
    """Return the dimensions of a node's value that products ahead of it take as a batch: heads.

    What moves data is executed on the numbers of positions, until a product of activations shows which dimensions it
    multiplies along and which not.
    """
    made = node.meta.get("val")
    if not isinstance(made, Tensor):
        return set()
    shape = shape_of(node)
    dims = [dim for dim, length in enumerate(shape) if length > 1]
    places = {dim: spread(torch.arange(shape[dim]), dim, shape) for dim in dims}
    waiting: list[tuple[fx.Node, dict[int, Any]]] = [(node, places)]
    seen = {node}
    while waiting:
        current, values = waiting.pop()
        for user in current.users:
            op = op_of(user)
            if op is not None and op.batch_dims is not None:
                batch = op.batch_dims(user, current)
                return {d for d, place in values.items() if batch & set(varying_dims(place))}
            if user not in seen and user.op == "call_function":
                seen.add(user)
                moved = {dim: _follow(user, current, place) for dim, place in values.items()}
                if all(place is not None for place in moved.values()):
                    waiting.append((user, moved))
    return set()


def _follow(user: fx.Node, source: fx.Node, place: Any) -> Any:
    """Execute an operation on the numbers of positions, or return None if it does more than move them."""
    target: Any = user.target
    packet = getattr(target, "overloadpacket", None)
    if user.args[0] is not source:
        return None
    if packet is None:
        return place[user.args[1]] if getattr(target, "__name__", "") == "getitem" else None
    op, made = op_of(user), user.meta.get("val")
    if op is None:
        return None
    if op.moves and user.all_input_nodes == [source]:
        if packet in (aten.view, aten._unsafe_view):
            return place.reshape(user.args[1])
        return target(place, *user.args[1:], **user.kwargs)
    same = isinstance(made, Tensor) and isinstance(place, Tensor) and made.shape == place.shape
    return place if same and (op.passes or op.keeps_places or op.elementwise) else None
