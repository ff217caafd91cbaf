"""Pooling, resizing and sampling: operations that move pixels about and leave channels what they are."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, fx

from clusterprune.graph.labels import collapse, spread, varying_dims
from clusterprune.graph.nest import map_leaves
from clusterprune.graph.ops._base import LabelRule, Op, free, register_op, shape_of
from clusterprune.graph.stored import Axis, Stored, as_dimension, places_of
from clusterprune.graph.walk import TraceState


def in_space(walk: TraceState, node: fx.Node, x: Tensor, dims: int) -> Any:
    """Pool or resize the last `dims` dimensions: channels stay, unless they run along those dimensions."""
    small = collapse(x)
    window = range(small.ndim - dims, small.ndim)
    if set(window) & set(varying_dims(walk.space.root_tensor(small))):
        return walk.opaque(node, [x], f"{node.name}: it pools over channels")
    for dim in window:
        small = small.narrow(dim, 0, 1)
    return map_leaves(lambda value: small.expand([int(length) for length in value.shape]), node.meta["val"])


def grid_sample(walk: TraceState, node: fx.Node, a: dict[str, Any]) -> Any:
    """Sample space where a grid says. The grid's numbers are coordinates, which have to stay."""
    x, grid = a["input"], a["grid"]
    walk.space.freeze(grid, f"{node.name}: they are coordinates")
    return in_space(walk, node, x, x.ndim - 2)


def affine_grid(walk: TraceState, node: fx.Node, a: dict[str, Any]) -> Any:
    """Make a grid of coordinates from the entries of a matrix, which have to stay."""
    return walk.opaque(node, [a["theta"]], f"{node.name}: they are the entries of a transformation")


def unfold(walk: TraceState, node: fx.Node, a: dict[str, Any]) -> Tensor:
    """Put patches side by side: every channel becomes as many as its kernel has places."""
    x = a["self"]
    batched = x.ndim == 4
    channels = walk.vector(x, 1 if batched else 0).repeat_interleave(math.prod(a["kernel_size"]))
    return spread(channels, 1 if batched else 0, shape_of(node))


def fold(walk: TraceState, node: fx.Node, a: dict[str, Any]) -> Tensor:
    """Add patches up where they overlap: the places of one kernel become one channel again."""
    x = a["self"]
    batched = x.ndim == 3
    dim = 1 if batched else 0
    channels = walk.vector(x, dim).view(-1, math.prod(a["kernel_size"]))
    return spread(walk.space.unite_along(channels, 1).reshape(-1), dim, shape_of(node))


def _pooled(dims: int) -> LabelRule:
    def sample(walk: TraceState, node: fx.Node, a: dict[str, Any]) -> Any:
        """Pool or resize in space: channels stay what they are."""
        return in_space(walk, node, a["self"] if "self" in a else a["input"], dims)

    return sample


def _unpooled(dims: int) -> LabelRule:
    def unpool(walk: TraceState, node: fx.Node, a: dict[str, Any]) -> Any:
        """Put every entry back where its index says; values and indices belong to the same channels."""
        x, indices = a["self"], a["indices"]
        walk.space.unite(x, indices)
        return in_space(walk, node, x, dims)

    return unpool


def _stored(dims: int) -> Callable[..., list[Stored] | None]:
    def resized(
        _name: str, operands: list[Stored], _arguments: dict[str, Any], shapes: list[tuple[int, ...]]
    ) -> list[Stored] | None:
        """Leave alone what stands before the last dimensions."""
        value = operands[0]
        before, inside = value.dimensions[:-dims], value.dimensions[-dims:]
        mixed = value.mixed.union(*(places_of(dimension) for dimension in inside))
        return [Stored((*before, *(as_dimension(Axis(length)) for length in shape[-dims:])), mixed) for shape in shapes]

    return resized


for _dims in (1, 2, 3):
    RESIZE = Op(labels=_pooled(_dims), stored=_stored(_dims), cost=free)
    POOL = replace(RESIZE, homogeneous=True)
    register_op(
        f"max_pool{_dims}d max_pool{_dims}d_with_indices avg_pool{_dims}d adaptive_avg_pool{_dims}d "
        f"adaptive_max_pool{_dims}d _adaptive_avg_pool{_dims}d",
        POOL,
    )
    _kind = ("linear", "bilinear", "trilinear")[_dims - 1]
    register_op(f"upsample_nearest{_dims}d _upsample_nearest_exact{_dims}d upsample_{_kind}{_dims}d", RESIZE)
    register_op(f"max_unpool{_dims}d", Op(labels=_unpooled(_dims), cost=free))
    if _dims == 2:
        register_op("upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa", RESIZE)
register_op("grid_sampler grid_sampler_2d grid_sampler_3d", Op(labels=grid_sample, cost=free))
register_op("affine_grid_generator", Op(labels=affine_grid))
register_op("im2col", Op(labels=unfold, cost=free))
register_op("col2im", Op(labels=fold, cost=free))
