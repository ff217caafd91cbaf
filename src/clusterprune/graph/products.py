"""Products of activations: matrices, attention, einsum.

Every product is written with an index per dimension, as in einsum. Channels that run along an index of the result
stay channels, and all operands that have this index lose the same ones: the heads of an attention, which go through
`q @ k`, softmax and `attention @ v` as a batch dimension, or the columns of v. Channels along an index that is summed
over (the dimensions within a head, in q and k) must stay: without one of them every product would be another.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from clusterprune.graph.labels import spread, varying_dims
from clusterprune.graph.movement import IDENTITY, MOVEMENT
from clusterprune.graph.rules import data_rule, note_call, output_shape, rows_of, rule
from clusterprune.graph.stored import Stored
from clusterprune.graph.walk import Parameter, Walk

aten = torch.ops.aten
PRODUCTS = frozenset(
    packet
    for name in "matmul mm bmm baddbmm scaled_dot_product_attention einsum".split()
    if (packet := getattr(aten, name, None)) is not None
)
SHAPE_KEEPING = frozenset(
    packet
    for name in "softmax _softmax log_softmax layer_norm rms_norm".split()
    if (packet := getattr(aten, name, None)) is not None
)
SUMMED = "it adds up products over these channels"


@rule("matmul mm")
def matmul(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Any:
    """Multiply by a stored matrix (inputs × outputs): a linear layer with its weight transposed; or two activations."""
    x, weight = a["self"], a.get("other", a.get("mat2"))
    if not isinstance(x, Tensor) or not isinstance(weight, (Parameter, Stored)) or len(weight.shape) != 2:
        return _of_activations(walk, node, walk.as_data(x), walk.as_data(weight))
    walk.bind(weight, 0, walk.vector(x, -1), "column")
    out = walk.bind(weight, 1, rows_of(walk, weight, 1, weight.shape[1]))
    note_call(walk, node, "matmul", weight, None)
    shape = output_shape(node)
    return spread(out, len(shape) - 1, shape)


@data_rule("bmm")
def batched(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Any:
    """Multiply matrix by matrix."""
    return _of_activations(walk, node, a["self"], a["mat2"])


@data_rule("baddbmm")
def batched_sum(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Any:
    """Multiply matrix by matrix and add something."""
    return _of_activations(walk, node, a["batch1"], a["batch2"], added=a["self"])


def _of_activations(walk: Walk, node: fx.Node, x: Any, y: Any, added: Any = None) -> Any:
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        return walk.opaque(node, [t for t in (x, y) if isinstance(t, Tensor)], f"{node.name}: {SUMMED}")
    rank: int = len(output_shape(node)) + (x.ndim == 1) + (y.ndim == 1)
    batch = [f"batch{place}" for place in range(rank - 2)]
    operands = [
        (x, ["inner"] if x.ndim == 1 else [*batch[len(batch) - x.ndim + 2 :], "row", "inner"]),
        (y, ["inner"] if y.ndim == 1 else [*batch[len(batch) - y.ndim + 2 :], "inner", "column"]),
    ]
    made = batch + ["row"] * (x.ndim > 1) + ["column"] * (y.ndim > 1)
    if isinstance(added, Tensor):
        operands.append((added, made[len(made) - added.ndim :]))
    return contract(walk, node, operands, made)


@data_rule("scaled_dot_product_attention")
def attention(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Any:
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


@data_rule("einsum.default")
def einsum(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Any:
    """Multiply and add by the letters of an equation."""
    equation, operands = a["equation"].replace(" ", ""), list(a["tensors"])
    tensors = [t for t in operands if isinstance(t, Tensor)]
    inputs, arrow, made = equation.partition("->")
    letters = [list(part) for part in inputs.split(",")]
    if "." in equation or not arrow or len(tensors) < len(letters) or any(len(set(p)) < len(p) for p in letters):
        return walk.opaque(node, tensors, f"{node.name}: an einsum with ellipses, diagonals or no result")
    return contract(walk, node, list(zip(tensors, letters, strict=True)), list(made))


def contract(walk: Walk, node: fx.Node, operands: Sequence[tuple[Tensor, list[str]]], made: list[str]) -> Any:
    """Return the labels of a product, given the index that runs along every dimension of its operands and its result.

    An operand of length one along an index is broadcast there.
    """
    along: dict[str, list[int]] = {}
    for number, (labels, indices) in enumerate(operands):
        for dim in varying_dims(walk.space.root_tensor(labels)):
            along.setdefault(indices[dim], []).append(number)
    kept = [index for index in made if index in along]
    # Two sets of channels side by side would make every result belong to two: the one that more operands have stays.
    chosen = max(kept, key=lambda index: len(along[index]), default=None)
    reason = f"{node.name}: {SUMMED}" if not kept else f"{node.name}: its results belong to two channels each"
    for index, numbers in along.items():
        if index != chosen:
            why = f"{node.name}: {SUMMED}" if index not in made else reason
            for number in numbers:
                walk.space.freeze(operands[number][0], why)
    shape = output_shape(node)
    if chosen is None:
        return walk.opaque(node, [labels for labels, _ in operands], reason)
    vectors = [
        walk.vector(labels, indices.index(chosen))
        for labels, indices in operands
        if chosen in indices and labels.shape[indices.index(chosen)] > 1
    ]
    vectors.sort(key=walk.space.all_opaque)
    for other in vectors[1:]:
        walk.space.unite(vectors[0], other)
    return spread(vectors[0], made.index(chosen), shape)


def dims_of_heads(node: fx.Node) -> set[int]:
    """Return the dimensions of a node's value that products ahead of it take as a batch: heads.

    What moves data is executed on the numbers of positions, until a product of activations shows which dimensions it
    multiplies along and which not.
    """
    made = node.meta.get("val")
    if not isinstance(made, Tensor):
        return set()
    shape = [int(length) for length in made.shape]
    dims = [dim for dim, length in enumerate(shape) if length > 1]
    places = {dim: spread(torch.arange(shape[dim]), dim, shape) for dim in dims}
    waiting: list[tuple[fx.Node, dict[int, Any]]] = [(node, places)]
    seen = {node}
    while waiting:
        current, values = waiting.pop()
        for user in current.users:
            packet = getattr(user.target, "overloadpacket", None)
            if packet in PRODUCTS:
                batch = _batch_dims(user, current)
                return {d for d, place in values.items() if batch & set(varying_dims(place))}
            if user not in seen and user.op == "call_function":
                seen.add(user)
                moved = {dim: _follow(user, current, place) for dim, place in values.items()}
                if all(place is not None for place in moved.values()):
                    waiting.append((user, moved))
    return set()


def _batch_dims(product: fx.Node, source: fx.Node) -> set[int]:
    """Return the dimensions of an operand that a product takes as a batch."""
    if getattr(product.target, "overloadpacket", None) is not aten.einsum:
        return set(range(source.meta["val"].ndim - 2))
    equation, operands = product.args[:2]
    inputs, _, made = str(equation).replace(" ", "").partition("->")
    letters = inputs.split(",")
    own = letters[list(operands).index(source)]  # type: ignore[arg-type]
    return {dim for dim, letter in enumerate(own) if letter in made and sum(letter in part for part in letters) > 1}


def _follow(user: fx.Node, source: fx.Node, place: Any) -> Any:
    """Execute an operation on the numbers of positions, or return None if it does more than move them."""
    target: Any = user.target
    packet = getattr(target, "overloadpacket", None)
    if user.args[0] is not source:
        return None
    if packet is None:
        return place[user.args[1]] if getattr(target, "__name__", "") == "getitem" else None
    made = user.meta.get("val")
    if packet in MOVEMENT and user.all_input_nodes == [source]:
        if packet in (aten.view, aten._unsafe_view):
            return place.reshape(user.args[1])
        return target(place, *user.args[1:], **user.kwargs)
    same = isinstance(made, Tensor) and isinstance(place, Tensor) and made.shape == place.shape
    passes = packet in IDENTITY or packet in SHAPE_KEEPING or torch.Tag.pointwise in target.tags
    return place if same and passes else None
