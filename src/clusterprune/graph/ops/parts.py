"""Parts: operations that take, split, join, roll or pad positions of a dimension."""

from dataclasses import replace
from itertools import pairwise
from math import prod
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, fx, nn

from clusterprune.errors import PlanError
from clusterprune.graph.labels import varying_dims
from clusterprune.graph.movement import pad
from clusterprune.graph.ops._base import (
    CallEdit,
    CutReader,
    LabelRule,
    Op,
    aten,
    free,
    named_arguments,
    register_op,
    shape_of,
    source_of,
)
from clusterprune.graph.ops.shape import MOVE
from clusterprune.graph.stored import Axis, Dimension, Place, Stored, as_dimension, combine, places_of
from clusterprune.graph.walk import TraceState


@runtime_checkable
class ChannelPadding(Protocol):
    """A module that pads channels and keeps the two amounts as attributes, so that surgery can change them."""

    before: int
    after: int


def _padded(constant: bool) -> LabelRule:
    def padding(walk: TraceState, node: fx.Node, a: dict[str, Any]) -> Tensor:
        """Extend a border; constant padding of the channel dimension makes channels of its own."""
        x = a["self"] if "self" in a else a["input"]
        amounts = a["pad"] if "pad" in a else a["padding"]
        filled = constant and a.get("mode", "constant") == "constant"
        padded = {x.ndim - 1 - place for place in range(len(amounts) // 2) if any(amounts[2 * place : 2 * place + 2])}
        if not filled and padded & set(varying_dims(walk.space.root_tensor(x))):
            return walk.opaque(node, [x], f"{node.name}: it repeats channels by their number")
        return pad(walk.space, x, list(amounts), constant=filled)

    return padding


def _flags_along(mask: CutReader, node: fx.Node, dim: int) -> tuple[int, np.ndarray]:
    """Return a dimension of what a node reads, counted from 0, and which of its indices stay."""
    source = source_of(node)
    dim %= len(shape_of(source))
    return dim, mask.along(source.name)[dim]


def _rewrite_pad(mask: CutReader, node: fx.Node) -> CallEdit:
    """A padded dimension that runs over channels pads only those that stay."""
    amounts = list(named_arguments(node)["pad"])
    kept = mask.along(node.name)
    for position in range(len(amounts) // 2):
        before, after = amounts[2 * position], amounts[2 * position + 1]
        flags = kept[len(kept) - 1 - position]
        amounts[2 * position] = int(flags[: max(before, 0)].sum()) if before > 0 else before
        amounts[2 * position + 1] = int(flags[len(flags) - max(after, 0) :].sum()) if after > 0 else after
    return CallEdit(node.target, (node.args[0], amounts, *node.args[2:]), dict(node.kwargs))


def _resize_padding(owner: nn.Module, edit: CallEdit) -> dict[str, Any]:
    amounts = edit.args[1]
    fits = isinstance(owner, ChannelPadding) and len(amounts) >= 6
    return {"before": amounts[4], "after": amounts[5]} if fits else {}


def _rewrite_sections(mask: CutReader, node: fx.Node) -> CallEdit:
    """Chunks and splits become splits of the new sizes: a cut may leave unequal ones, which only a split can make."""
    dim, flags = _flags_along(mask, node, named_arguments(node).get("dim", 0))
    bounds = np.cumsum([0, *(int(value.shape[dim]) for value in node.meta["val"])])
    sizes = [int(flags[low:high].sum()) for low, high in pairwise(bounds)]
    return CallEdit(aten.split_with_sizes.default, (node.args[0], sizes, dim), {})


def _rewrite_slice(mask: CutReader, node: fx.Node) -> CallEdit:
    """A slice keeps those of its indices that stay, counted among the survivors."""
    a = named_arguments(node)
    dim, flags = _flags_along(mask, node, a["dim"])
    if flags.all():
        return CallEdit(node.target, tuple(node.args), dict(node.kwargs))
    start, step, count = _picked(node, flags, np.arange(len(flags))[slice(a["start"], a["end"], a["step"])])
    stop = start + (count - 1) * step + 1 if count else 0
    return CallEdit(node.target, (node.args[0], dim, start, stop, step), {})


def _rewrite_narrow(mask: CutReader, node: fx.Node) -> CallEdit:
    a = named_arguments(node)
    dim, flags = _flags_along(mask, node, a["dim"])
    if flags.all():
        return CallEdit(node.target, tuple(node.args), dict(node.kwargs))
    start, _, count = _picked(node, flags, np.arange(int(a["start"]), int(a["start"]) + int(a["length"])))
    return CallEdit(node.target, (node.args[0], dim, start, count), {})


def _picked(node: fx.Node, flags: np.ndarray, wanted: np.ndarray) -> tuple[int, int, int]:
    """Return the first, the step and the number of the survivors among `wanted`, counted among all survivors."""
    rank = np.cumsum(flags) - 1
    index = rank[wanted[flags[wanted]]]
    if len(index) > 1 and len(set(np.diff(index).tolist())) > 1:
        raise PlanError(f"{node.name} picks channels with a stride that the cut breaks; leave its group alone")
    step = int(index[1] - index[0]) if len(index) > 1 else 1
    return int(index[0]) if len(index) else 0, step, len(index)


def _rewrite_select(mask: CutReader, node: fx.Node) -> CallEdit:
    a = named_arguments(node)
    dim, flags = _flags_along(mask, node, a["dim"])
    before = flags[: int(a["index"]) % len(flags)]
    return CallEdit(node.target, (node.args[0], dim, int(before.sum())), {})


def _rewrite_roll(mask: CutReader, node: fx.Node) -> CallEdit:
    """A roll by the whole width is none."""
    a, flags = named_arguments(node), mask.along(source_of(node).name)
    dims: list[int] = [d % len(flags) for d in a["dims"]]
    shifts: list[int] = [s if flags[d].all() else 0 for s, d in zip(a["shifts"], dims, strict=True)]
    return CallEdit(node.target, (node.args[0], shifts, dims), {})


def _pick(
    name: str, operands: list[Stored], arguments: dict[str, Any], shapes: list[tuple[int, ...]]
) -> list[Stored] | None:
    """Take some of the indices of one dimension: the others stay what they are."""
    value = operands[0]
    count = len(value.dimensions)
    dim = int(arguments.get("dim") or 0) % count
    mixed = value.mixed | places_of(value.dimensions[dim])
    made: list[Stored] = []
    for shape in shapes:
        kept = list(value.dimensions)
        if len(shape) == count - 1:
            del kept[dim]
        elif name in ("slice", "narrow") and shape[dim] == value.shape[dim]:
            made.append(value)
            continue
        else:
            flat = all(axis.flat for axis in kept[dim])
            kept[dim] = as_dimension(Axis(shape[dim], flat=flat))
        made.append(Stored(tuple(kept), mixed))
    return made if all(one.shape == shape for one, shape in zip(made, shapes, strict=True)) else None


def _index(
    _name: str, operands: list[Stored], arguments: dict[str, Any], shapes: list[tuple[int, ...]]
) -> list[Stored] | None:
    """Pick indices of neighbouring dimensions (rows of a table): the other dimensions stay what they are."""
    value, indices = operands[0], arguments["indices"]
    picked = [dim for dim, index in enumerate(indices) if index is not None]
    if not picked or picked != list(range(picked[0], picked[-1] + 1)):
        return None
    (shape,) = shapes
    first, last = picked[0], picked[-1] + 1
    count = len(shape) - len(value.dimensions) + len(picked)
    mixed = value.mixed.union(
        *(places_of(value.dimensions[dim]) for dim in picked), *(index.places for index in operands[1:])
    )
    new = tuple(as_dimension(Axis(length)) for length in shape[first : first + count])
    made = Stored((*value.dimensions[:first], *new, *value.dimensions[last:]), mixed)
    return [made] if made.shape == shape else None


def _join(
    name: str, operands: list[Stored], arguments: dict[str, Any], shapes: list[tuple[int, ...]]
) -> list[Stored] | None:
    """Stack or concatenate: along the joint nothing is known, elsewhere the values lie side by side."""
    (shape,) = shapes
    dim = int(arguments.get("dim") or 0) % len(shape)
    parts = [list(operand.dimensions) for operand in operands if prod(operand.shape)]
    mixed = set[Place]().union(*(operand.mixed for operand in operands))
    for part in parts:
        if name == "stack":
            part.insert(dim, ())
        else:
            mixed |= places_of(part[dim])
            part[dim] = ()
    if any(len(part) != len(shape) for part in parts):
        return None
    dimensions: list[Dimension] = []
    for d, length in enumerate(shape):
        if d == dim:
            dimensions.append(as_dimension(Axis(length)))
            continue
        given = [part[d] for part in parts]
        # A part that does not change along the dimension is no obstacle, one that is lost is.
        dimension, gone = combine(given, length)
        mixed |= gone
        vanishes = all(part and all(axis.vanishes for axis in part) for part in given)
        dimensions.append(tuple(replace(axis, vanishes=vanishes) for axis in dimension))
    return [Stored(tuple(dimensions), frozenset(mixed))]


def _pad(_name: str, operands: list[Stored], arguments: dict[str, Any], shapes: list[tuple[int, ...]]) -> list[Stored]:
    value = operands[0]
    (shape,) = shapes
    mixed, dimensions = set(value.mixed), list[Dimension]()
    zero = not arguments.get("value") and arguments.get("mode", "constant") == "constant"
    for dimension, before, after in zip(value.dimensions, value.shape, shape, strict=True):
        if before != after:
            mixed |= places_of(dimension)
            dimensions.append(as_dimension(Axis(after)))
        else:
            dimensions.append(tuple(replace(axis, vanishes=axis.vanishes and zero) for axis in dimension))
    return [Stored(tuple(dimensions), frozenset(mixed))]


PART = replace(MOVE, stored=_pick)
SECTIONS = replace(PART, rewrite=_rewrite_sections)
JOIN = replace(MOVE, stored=_join)
PADDING = Op(labels=_padded(constant=True), stored=_pad, rewrite=_rewrite_pad, cost=free, resize=_resize_padding)
register_op("slice", replace(PART, rewrite=_rewrite_slice, shifts=True))
register_op("narrow", replace(PART, rewrite=_rewrite_narrow, shifts=True))
register_op("select", replace(PART, rewrite=_rewrite_select, shifts=True))
register_op("chunk split split_with_sizes tensor_split", SECTIONS)
register_op("unbind index_select", PART)
register_op("slice_copy hsplit vsplit", MOVE)
register_op("index", replace(MOVE, stored=_index))
register_op("cat concat concatenate", JOIN)
register_op("stack", replace(JOIN))
register_op("roll", replace(MOVE, rewrite=_rewrite_roll))
register_op("pad constant_pad_nd", PADDING)
register_op(
    "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d",
    Op(labels=_padded(constant=False), cost=free),
)
