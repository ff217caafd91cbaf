"""Operations that work along some dimensions and leave the others alone: reductions, scans, sorting, transforms.

Along space the channels stay what they are. Along channels every result needs all of them, so they freeze. Which
dimensions an operation works along is read by *overload*: `max(a, b)` works element by element, `max(a, dim)`
reduces.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor, fx

from clusterprune.graph.labels import varying_dims
from clusterprune.graph.nest import is_sequence, like
from clusterprune.graph.ops._base import Op, free, register_op
from clusterprune.graph.ops.norm import REMEDY, is_statistic
from clusterprune.graph.stored import Stored, elementwise, nowhere_zero, places_of
from clusterprune.graph.walk import TraceState


def along(walk: TraceState, node: fx.Node, x: Tensor, dims: list[int], reason: str) -> Any:
    """Return the labels of an operation along `dims`, whose result keeps, changes or drops these dimensions."""
    if set(dims) & set(varying_dims(walk.space.root_tensor(x))):
        return walk.opaque(node, [x], f"{node.name}: {reason}")
    return without(x, dims, node.meta["val"])


def without(x: Tensor, dims: list[int], made: Any) -> Any:
    """Return labels in the shape of `made`, where `x` (which does not vary along `dims`) had other lengths or none."""
    if is_sequence(made):
        return like(made, (without(x, dims, part) for part in made))
    for dim in dims:
        x = x.narrow(dim, 0, 1)
    shape = [int(length) for length in made.shape]
    if len(shape) == x.ndim:
        return x.expand(shape)
    kept = [dim for dim in range(x.ndim) if dim not in dims]
    return x.permute([*kept, *dims]).reshape([x.shape[dim] for dim in kept]).expand(shape)


def dims_of(x: Tensor, dim: int | list[int] | None) -> list[int]:
    """Return dimensions as numbers from 0; none given means all."""
    if dim is None or dim == []:
        return list(range(x.ndim))
    return sorted({d % x.ndim for d in (dim if isinstance(dim, (list, tuple)) else [dim])}) if x.ndim else []


def reduction(walk: TraceState, node: fx.Node, a: dict[str, Any]) -> Any:
    """Reduce over space (channels stay) or over channels (they freeze: the result needs all of them)."""
    x = a["self"] if "self" in a else a["input"] if "input" in a else a["y"]
    dims = dims_of(x, a.get("dim"))
    varying = set(dims) & set(varying_dims(walk.space.root_tensor(x)))
    if not varying or not is_statistic(node):
        return along(walk, node, x, dims, "it reduces over channels")
    if walk.allow_approximate:
        reason = "a statistic of the kept channels in place of all"
        walk.note_approximate(node, x, reason)
        return walk.opaque_like(node.meta["val"], f"{node.name}: {reason}")
    return walk.opaque(node, [x], f"{node.name}: it reduces over channels, as a norm does; {REMEDY}")


def softmax(walk: TraceState, node: fx.Node, a: dict[str, Any]) -> Any:
    """Compare the entries of a dimension: over space channels stay."""
    x = a["self"]
    return along(walk, node, x, dims_of(x, a["dim"]), "a softmax over channels reads all of them")


def scan(walk: TraceState, node: fx.Node, a: dict[str, Any]) -> Any:
    """Accumulate, sort or transform the entries of some dimensions: over space channels stay."""
    x = a["self"]
    more = [t for name in ("prepend", "append") if isinstance(t := a.get(name), Tensor)]
    if more and not all(walk.space.all_opaque(t) for t in more):
        return walk.opaque(node, [x, *more], f"{node.name}: it joins several activations")
    if isinstance(index := a.get("index"), Tensor):
        return _gather(walk, node, x, index, a["dim"])
    return along(walk, node, x, dims_of(x, a["dim"]), "it works along the channels")


def _gather(walk: TraceState, node: fx.Node, x: Tensor, index: Tensor, dim: int) -> Any:
    """Pick from one dimension, by an index that is cut with the channels."""
    dim %= x.ndim
    if dim in varying_dims(walk.space.root_tensor(x)):
        return walk.opaque(node, [x, index], f"{node.name}: it picks channels by number")
    for other, length in enumerate(index.shape):
        x = x.narrow(other, 0, 1 if other == dim else length)
    x = x.expand(index.shape)
    walk.space.unite(x, index)
    return x


def first_dimension(walk: TraceState, node: fx.Node, a: dict[str, Any]) -> Any:
    """Sort along the first dimension."""
    return along(walk, node, a["self"], [0], "it works along the channels")


def matrices(walk: TraceState, node: fx.Node, a: dict[str, Any]) -> Any:
    """Look at two dimensions as the rows and columns of matrices."""
    x = a["self"]
    return along(walk, node, x, dims_of(x, list(a.get("dims") or (-2, -1))), "it looks at channels by their number")


def compare(walk: TraceState, node: fx.Node, a: dict[str, Any]) -> Any:
    """Compare two activations along one dimension."""
    first, second = a["x1"], a["x2"]
    if first.ndim != second.ndim:
        return walk.opaque(node, [first, second], f"{node.name}: it compares activations of different rank")
    dims = dims_of(first, a.get("dim", -1))
    if any(set(dims) & set(varying_dims(walk.space.root_tensor(x))) for x in (first, second)):
        return walk.opaque(node, [first, second], f"{node.name}: it reduces over channels")
    shape = [max(pair) for pair in zip(first.shape, second.shape, strict=True)]
    if first.shape != second.shape:
        return walk.opaque(node, [first, second], f"{node.name}: it compares activations of different shape")
    walk.space.unite(first, second.expand(shape))
    return without(first, dims, node.meta["val"])


def _reduce(
    name: str, operands: list[Stored], arguments: dict[str, Any], shapes: list[tuple[int, ...]]
) -> list[Stored] | None:
    """Reduce over some dimensions: what is left depends on all indices of those."""
    if len(operands) > 1:  # max and min of two tensors
        return elementwise(name, operands, arguments, shapes)
    value = operands[0]
    count = len(value.dimensions)
    dim = arguments.get("dim")
    dims = set(range(count)) if dim is None or dim == [] else {d % count for d in (dim if is_sequence(dim) else (dim,))}
    mixed = value.mixed.union(*(places_of(value.dimensions[d]) for d in dims))
    zero = name != "logsumexp"
    made: list[Stored] = []
    for shape in shapes:
        if len(shape) == count:
            dimensions = [() if d in dims else dimension for d, dimension in enumerate(value.dimensions)]
        else:
            dimensions = [dimension for d, dimension in enumerate(value.dimensions) if d not in dims]
        kept = tuple(tuple(replace(axis, vanishes=axis.vanishes and zero) for axis in part) for part in dimensions)
        made.append(Stored(kept, mixed))
    return made if all(one.shape == shape for one, shape in zip(made, shapes, strict=True)) else None


def _softmax(
    _name: str, operands: list[Stored], arguments: dict[str, Any], _shapes: list[tuple[int, ...]]
) -> list[Stored]:
    value = operands[0]
    mixed = value.mixed | places_of(value.dimensions[int(arguments["dim"])]) if value.dimensions else value.mixed
    return [nowhere_zero(Stored(value.dimensions, mixed))]


REDUCTION = Op(labels=reduction, stored=_reduce, cost=free)
STATISTIC = replace(REDUCTION, statistic=True)
SCAN = Op(labels=scan, cost=free)
SOFTMAX = Op(labels=softmax, keeps_places=True, stored=_softmax, cost=free)
register_op(
    "sum nansum amax amin aminmax prod logsumexp special_logsumexp max.default max.dim min.default min.dim median "
    "nanmedian mode kthvalue quantile.scalar nanquantile.scalar all any argmax argmin count_nonzero trapezoid.dx "
    "linalg_norm linalg_matrix_norm",
    REDUCTION,
)
register_op("var std var_mean std_mean linalg_vector_norm norm nanmean", STATISTIC)
register_op("mean", replace(STATISTIC, homogeneous=True))
register_op("softmin softmax log_softmax _softmax _log_softmax", SOFTMAX)
register_op(
    "cumsum cumsum_ cumprod cumprod_ cummax cummin logcumsumexp topk sort.default sort.stable argsort diff "
    "fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_fftn fft_ifftn "
    "fft_rfftn fft_irfftn fft_fftshift fft_ifftshift gather",
    SCAN,
)
register_op("msort", Op(labels=first_dimension, cost=free))
register_op("tril triu tril_ triu_ rot90", Op(labels=matrices, cost=free))
register_op("cosine_similarity pairwise_distance", Op(labels=compare, cost=free))
