"""Products: linear layers, matrices, attention's two halves, einsum.

Every product is written with an index per dimension, as in einsum. Channels that run along an index of the result
stay channels, and all operands that have this index lose the same ones: the heads of an attention, which go through
`q @ k`, softmax and `attention @ v` as a batch dimension, or the columns of v. Channels along an index that is summed
over (the dimensions within a head, in q and k) must stay: without one of them every product would be another.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from clusterprune.graph.labels import spread, varying_dims
from clusterprune.graph.ops._base import (
    STORED_ARGUMENTS,
    CostReader,
    Extent,
    LayerShapes,
    Op,
    Term,
    register_op,
    shape_of,
)
from clusterprune.graph.ops._layers import note_call, rows_of, run_with_bias
from clusterprune.graph.stored import Stored
from clusterprune.graph.walk import Parameter, TraceState

SUMMED = "it adds up products over these channels"


def linear(walk: TraceState, node: fx.Node, a: dict[str, Any]) -> Tensor:
    """Read the last dimension, make a new one. After a flatten one channel owns several inputs."""
    x, weight, bias = a["input"], a["weight"], a.get("bias")
    if not isinstance(weight, (Parameter, Stored)) or isinstance(bias, Tensor):
        tensors = [t for t in (x, weight, bias) if isinstance(t, Tensor)]
        made = int(node.meta["val"].shape[-1])
        return walk.opaque(node, tensors, walk.without_labels(node, made, "its weight is computed from activations"))
    walk.bind(weight, 1, walk.vector(x, -1), "column")
    out = walk.bind(weight, 0, rows_of(walk, weight, 0, weight.shape[0]))
    walk.bind(bias, 0, out)
    note_call(walk, node, "linear", weight, bias)
    shape = shape_of(node)
    return spread(out, len(shape) - 1, shape)


def matmul(walk: TraceState, node: fx.Node, a: dict[str, Any]) -> Any:
    """Multiply by a stored matrix (inputs × outputs): a linear layer with its weight transposed; or two activations."""
    x, weight = a["self"], a.get("other", a.get("mat2"))
    if not isinstance(x, Tensor) or not isinstance(weight, (Parameter, Stored)) or len(weight.shape) != 2:
        return _of_activations(walk, node, walk.as_data(x), walk.as_data(weight))
    walk.bind(weight, 0, walk.vector(x, -1), "column")
    out = walk.bind(weight, 1, rows_of(walk, weight, 1, weight.shape[1]))
    note_call(walk, node, "matmul", weight, None)
    shape = shape_of(node)
    return spread(out, len(shape) - 1, shape)


def batched(walk: TraceState, node: fx.Node, a: dict[str, Any]) -> Any:
    """Multiply matrix by matrix."""
    return _of_activations(walk, node, a["self"], a["mat2"])


def batched_sum(walk: TraceState, node: fx.Node, a: dict[str, Any]) -> Any:
    """Multiply matrix by matrix and add something."""
    return _of_activations(walk, node, a["batch1"], a["batch2"], added=a["self"])


def _of_activations(walk: TraceState, node: fx.Node, x: Any, y: Any, added: Any = None) -> Any:
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        return walk.opaque(node, [t for t in (x, y) if isinstance(t, Tensor)], f"{node.name}: {SUMMED}")
    rank: int = len(shape_of(node)) + (x.ndim == 1) + (y.ndim == 1)
    batch = [f"batch{place}" for place in range(rank - 2)]
    operands = [
        (x, ["inner"] if x.ndim == 1 else [*batch[len(batch) - x.ndim + 2 :], "row", "inner"]),
        (y, ["inner"] if y.ndim == 1 else [*batch[len(batch) - y.ndim + 2 :], "inner", "column"]),
    ]
    made = batch + ["row"] * (x.ndim > 1) + ["column"] * (y.ndim > 1)
    if isinstance(added, Tensor):
        operands.append((added, made[len(made) - added.ndim :]))
    return contract(walk, node, operands, made)


def einsum(walk: TraceState, node: fx.Node, a: dict[str, Any]) -> Any:
    """Multiply and add by the letters of an equation."""
    equation, operands = a["equation"].replace(" ", ""), list(a["tensors"])
    tensors = [t for t in operands if isinstance(t, Tensor)]
    inputs, arrow, made = equation.partition("->")
    letters = [list(part) for part in inputs.split(",")]
    if "." in equation or not arrow or len(tensors) < len(letters) or any(len(set(p)) < len(p) for p in letters):
        return walk.opaque(node, tensors, f"{node.name}: an einsum with ellipses, diagonals or no result")
    return contract(walk, node, list(zip(tensors, letters, strict=True)), list(made))


def contract(walk: TraceState, node: fx.Node, operands: Sequence[tuple[Tensor, list[str]]], made: list[str]) -> Any:
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
    shape = shape_of(node)
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


def matrix_batch(_product: fx.Node, source: fx.Node) -> set[int]:
    """Return the dimensions of an operand before those of the matrix."""
    return set(range(source.meta["val"].ndim - 2))


def _letters_in_common(product: fx.Node, source: fx.Node) -> set[int]:
    equation, operands = product.args[:2]
    inputs, _, made = str(equation).replace(" ", "").partition("->")
    letters = inputs.split(",")
    own = letters[list(operands).index(source)]  # type: ignore[arg-type]
    return {dim for dim, letter in enumerate(own) if letter in made and sum(letter in part for part in letters) > 1}


def _linear_cost(reader: CostReader, node: fx.Node) -> list[Term] | None:
    x: Any = node.args[0]
    return [Term(1.0, (*reader.all_of(node), reader.along(x, -1)))] if x.meta["val"].ndim > 1 else None


def _product_cost(reader: CostReader, node: fx.Node) -> list[Term] | None:
    return _matrices(reader, node, node.args[0], node.args[1])


def _sum_and_product_cost(reader: CostReader, node: fx.Node) -> list[Term] | None:
    return _matrices(reader, node, node.args[1], node.args[2])


def _matrices(reader: CostReader, node: fx.Node, first: Any, second: Any) -> list[Term] | None:
    """Count a product of matrices; products with vectors are none to PyTorch's counter, which is asked then."""
    if min(first.meta["val"].ndim, second.meta["val"].ndim) < 2:
        return None
    return [Term(1.0, (*reader.all_of(node), reader.shared(first, -1, second, -2)))]


def _einsum_cost(reader: CostReader, node: fx.Node) -> list[Term] | None:
    """Count a sum over products of two operands by its letters, if PyTorch's counter agrees."""
    equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    sides = equation.partition("->")[0].split(",")
    if "." in equation or not isinstance(operands, (list, tuple)) or len(operands) != 2 or len(sides) != 2:
        return None
    lengths: dict[str, Extent] = {}
    for letters, operand in zip(sides, operands, strict=True):
        for dim, letter in enumerate(letters):
            if letter not in lengths or lengths[letter].labels is None:
                lengths[letter] = reader.along(operand, dim)
    term = Term(1.0, tuple(lengths.values()))
    return [term] if math.isclose(term.value, reader.measured(node)) else None


def _widths(_layer: Any, weight: tuple[int, ...], _depthwise: bool) -> dict[str, Any]:
    return {"in_features": weight[1], "out_features": weight[0]}


def _shapes(layer: Any) -> dict[str, tuple[int, ...]]:
    return {"weight": (layer.out_features, layer.in_features), "bias": (layer.out_features,)}


def _run_and_add(
    target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    return target(x, weight, *args[2:], **kwargs) + bias


LINEAR = Op(
    labels=linear,
    parameters=STORED_ARGUMENTS,
    kernels=True,
    layer=True,
    cost=_linear_cost,
    modules=(LayerShapes((nn.Linear,), _widths, _shapes),),
    run=run_with_bias,
)
MATMUL = Op(
    labels=matmul,
    parameters=frozenset({"other", "mat2"}),
    kernels=True,
    batch_dims=matrix_batch,
    cost=_product_cost,
    run=_run_and_add,
)
BATCHED = Op(labels=batched, batch_dims=matrix_batch, cost=_product_cost)
EINSUM = Op(labels=einsum, batch_dims=_letters_in_common, cost=_einsum_cost)
register_op("linear", LINEAR)
register_op("matmul mm", MATMUL)
register_op("bmm", BATCHED)
register_op("baddbmm", replace(BATCHED, labels=batched_sum, cost=_sum_and_product_cost))
register_op("einsum", EINSUM)
