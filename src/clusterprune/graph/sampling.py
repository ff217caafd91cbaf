"""Pooling, resizing and sampling: operations that move pixels about and leave channels what they are."""

import math
from typing import Any

from torch import Tensor, fx

from clusterprune.graph.labels import collapse, spread, varying_dims
from clusterprune.graph.movement import pad
from clusterprune.graph.rules import Rule, data_rule, output_shape
from clusterprune.graph.walk import Walk


def in_space(walk: Walk, node: fx.Node, x: Tensor, dims: int) -> Any:
    """Pool or resize the last `dims` dimensions: channels stay, unless they run along those dimensions."""
    small = collapse(x)
    window = range(small.ndim - dims, small.ndim)
    if set(window) & set(varying_dims(walk.space.root_tensor(small))):
        return walk.opaque(node, [x], f"{node.name}: it pools over channels")
    for dim in window:
        small = small.narrow(dim, 0, 1)

    def like(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(like(part) for part in value)
        return small.expand([int(length) for length in value.shape])

    return like(node.meta["val"])


def _in_space_rule(dims: int) -> Rule:
    def sample(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Any:
        """Pool or resize in space: channels stay what they are."""
        return in_space(walk, node, a["self"] if "self" in a else a["input"], dims)

    return sample


for _dims in (1, 2, 3):
    data_rule(
        f"max_pool{_dims}d avg_pool{_dims}d adaptive_avg_pool{_dims}d adaptive_max_pool{_dims}d "
        f"max_pool{_dims}d_with_indices _adaptive_avg_pool{_dims}d upsample_nearest{_dims}d "
        f"_upsample_nearest_exact{_dims}d"
    )(_in_space_rule(_dims))
data_rule("upsample_linear1d")(_in_space_rule(1))
data_rule("upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa")(_in_space_rule(2))
data_rule("upsample_trilinear3d")(_in_space_rule(3))


@data_rule("max_unpool2d max_unpool3d")
def unpool(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Any:
    """Put every entry back where its index says; values and indices belong to the same channels."""
    x, indices = a["self"], a["indices"]
    walk.space.unite(x, indices)
    return in_space(walk, node, x, 2 if "2d" in str(node.target) else 3)


@data_rule("grid_sampler grid_sampler_2d grid_sampler_3d")
def grid_sample(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Any:
    """Sample space where a grid says. The grid's numbers are coordinates, which have to stay."""
    x, grid = a["input"], a["grid"]
    walk.space.freeze(grid, f"{node.name}: they are coordinates")
    return in_space(walk, node, x, x.ndim - 2)


@data_rule("affine_grid_generator")
def affine_grid(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Any:
    """Make a grid of coordinates from the entries of a matrix, which have to stay."""
    return walk.opaque(node, [a["theta"]], f"{node.name}: they are the entries of a transformation")


@data_rule("im2col")
def unfold(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Tensor:
    """Put patches side by side: every channel becomes as many as its kernel has places."""
    x = a["self"]
    batched = x.ndim == 4
    channels = walk.vector(x, 1 if batched else 0).repeat_interleave(math.prod(a["kernel_size"]))
    return spread(channels, 1 if batched else 0, output_shape(node))


@data_rule("col2im")
def fold(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Tensor:
    """Add patches up where they overlap: the places of one kernel become one channel again."""
    x = a["self"]
    batched = x.ndim == 3
    dim = 1 if batched else 0
    channels = walk.vector(x, dim).view(-1, math.prod(a["kernel_size"]))
    return spread(walk.space.unite_along(channels, 1).reshape(-1), dim, output_shape(node))


@data_rule(
    "pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
    "replication_pad3d"
)
def padding(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Tensor:
    """Extend a border; constant padding of the channel dimension makes channels of its own."""
    x = a["self"] if "self" in a else a["input"]
    amounts = a["pad"] if "pad" in a else a["padding"]
    name = str(node.target)
    constant = "reflection" not in name and "replication" not in name and a.get("mode", "constant") == "constant"
    padded = {x.ndim - 1 - place for place in range(len(amounts) // 2) if any(amounts[2 * place : 2 * place + 2])}
    if not constant and padded & set(varying_dims(walk.space.root_tensor(x))):
        return walk.opaque(node, [x], f"{node.name}: it repeats channels by their number")
    return pad(walk.space, x, list(amounts), constant=constant)


@data_rule("glu")
def gated_linear_unit(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Tensor:  # noqa: ARG001 (all are called alike)
    """Scale the first half of a dimension by the second: a channel goes with its gate."""
    x = a["self"]
    dim = a["dim"] % x.ndim
    half = x.shape[dim] // 2
    first = x.narrow(dim, 0, half)
    walk.space.unite(first, x.narrow(dim, half, half))
    return first
