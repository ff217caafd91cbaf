"""Views: operations that change the shape, or exchange or expand dimensions, and only move elements."""

from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import fx

from clusterprune.graph.ops._base import (
    CallEdit,
    CutReader,
    Op,
    aten,
    free,
    named_arguments,
    register_op,
    shape_of,
)
from clusterprune.graph.stored import Axis, Dimension, Stored, places_of


def _rewrite_shape(mask: CutReader, node: fx.Node) -> CallEdit:
    """Views and expands take the new shape of their result, and leave open what they left open."""
    shape = mask.shape(node.name)
    given: Any = node.args[1]
    size = [-1 if g == -1 else s for g, s in zip(given, shape, strict=True)]
    return CallEdit(node.target, (node.args[0], size, *node.args[2:]), {})


def _rewrite_as_other(mask: CutReader, node: fx.Node) -> CallEdit:
    """Views that take their shape from an activation, which a cut may leave whole, take it in numbers."""
    return CallEdit(aten.reshape.default, (node.args[0], list(mask.shape(node.name))), {})


def _rewrite_unflatten(mask: CutReader, node: fx.Node) -> CallEdit:
    before = shape_of(node.args[0])
    dim = named_arguments(node)["dim"] % len(before)
    count = len(shape_of(node)) - len(before) + 1
    return CallEdit(node.target, (node.args[0], dim, list(mask.shape(node.name)[dim : dim + count])), {})


def _reshape(
    _name: str, operands: list[Stored], _arguments: dict[str, Any], shapes: list[tuple[int, ...]]
) -> list[Stored]:
    """Split and join dimensions: axes stay whole where the new boundaries let them."""
    value = operands[0]
    axes = [axis for dimension in value.dimensions for axis in dimension]
    (shape,) = shapes
    mixed = set(value.mixed)
    dimensions: list[Dimension] = []
    for wanted in shape:
        if wanted == 1:
            dimensions.append(())
            continue
        taken: list[Axis] = []
        while axes and prod(axis.length for axis in taken) < wanted:
            taken.append(axes.pop(0))
        size = prod(axis.length for axis in taken)
        if size != wanted:
            # A boundary inside an axis: what it was is lost, unless nothing changes along it.
            flat = all(axis.flat for axis in taken)
            mixed |= places_of(tuple(taken))
            rest = size // wanted if size % wanted == 0 else 0
            if not rest:
                return [Stored.lost(shape, mixed.union(*(axis.places for axis in axes)))]
            axes.insert(0, Axis(rest, flat=flat))
            taken = [Axis(wanted, flat=flat)]
        dimensions.append(tuple(taken))
    return [Stored(tuple(dimensions), frozenset(mixed))]


def _permute(
    name: str, operands: list[Stored], arguments: dict[str, Any], shapes: list[tuple[int, ...]]
) -> list[Stored] | None:
    """Exchange dimensions: how, a tensor of the same number of dimensions tells."""
    value = operands[0]
    count = len(value.dimensions)
    target = getattr(aten, name)
    template = torch.empty(tuple(range(2, 2 + count)), device="meta")
    given = {k: v for k, v in arguments.items() if not isinstance(v, Stored)}
    try:
        order: list[int] = [length - 2 for length in target(template, **given).shape]
    except (RuntimeError, TypeError, IndexError):
        return None
    made = Stored(tuple(value.dimensions[d] for d in order), value.mixed)
    return [made] if [made.shape] == shapes else None


def _expand(
    _name: str, operands: list[Stored], _arguments: dict[str, Any], shapes: list[tuple[int, ...]]
) -> list[Stored]:
    value = operands[0]
    (shape,) = shapes
    given = ((),) * (len(shape) - len(value.dimensions)) + value.dimensions
    made = tuple(d if d or n == 1 else (Axis(n, flat=True),) for d, n in zip(given, shape, strict=True))
    return [Stored(made, value.mixed)]


MOVE = Op(moves=True, cost=free)
PASS = Op(passes=True, cost=free)
DROPOUT = replace(PASS)
RESHAPE = replace(MOVE, stored=_reshape)
VIEW = replace(RESHAPE, rewrite=_rewrite_shape)
VIEW_AS = replace(RESHAPE, rewrite=_rewrite_as_other)
UNFLATTEN = replace(RESHAPE, rewrite=_rewrite_unflatten)
EXPAND_AS = replace(MOVE, stored=_expand)
EXPAND = replace(EXPAND_AS, rewrite=_rewrite_shape)
EXPANDS = (EXPAND, EXPAND_AS)
SIZED = (VIEW, UNFLATTEN, EXPAND)
"""Views that take sizes in numbers."""
register_op("view reshape _unsafe_view", VIEW)
register_op("view_as reshape_as", VIEW_AS)
register_op("unflatten", UNFLATTEN)
register_op("flatten squeeze unsqueeze ravel", RESHAPE)
register_op("permute transpose t numpy_T swapaxes swapdims movedim moveaxis mT adjoint", replace(MOVE, stored=_permute))
register_op("expand broadcast_to", EXPAND)
register_op("expand_as", EXPAND_AS)
register_op(
    "repeat repeat_interleave tile flip pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle unfold "
    "view_copy diagonal atleast_2d",
    MOVE,
)
register_op("clone contiguous detach detach_ alias to _to_copy lift_fresh_copy lift_fresh type_as", PASS)
# Networks are traced in evaluation.
register_op(
    "dropout dropout_ feature_dropout feature_dropout_ alpha_dropout alpha_dropout_ feature_alpha_dropout "
    "feature_alpha_dropout_",
    DROPOUT,
)
