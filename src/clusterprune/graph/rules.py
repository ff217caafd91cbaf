"""What the compute operations do to labels: one documented function per rule, one table.

A rule takes the walk, the graph node and the node's arguments by name (labels in place of activations,
:class:`Parameter` in place of weights) and returns the labels of the node's output. Everything that only
moves data is not here but executed on the labels (:mod:`clusterprune.graph.movement`); an operation that
is neither here nor pointwise freezes what it reads and is reported.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from clusterprune.graph.labels import collapse, spread, varying_dims
from clusterprune.graph.movement import pad
from clusterprune.graph.walk import Kind, LayerCall, Parameter, Partition, Walk

Rule = Callable[[Walk, fx.Node, dict[str, Any]], Any]
RULES: dict[Any, Rule] = {}
aten = torch.ops.aten


def rule(names: str) -> Callable[[Rule], Rule]:
    """Enter a function in the table for every named ATen operator that this PyTorch has."""

    def enter(function: Rule) -> Rule:
        for name in names.split():
            if (packet := getattr(aten, name, None)) is not None:
                RULES[packet] = function
        return function

    return enter


def output_shape(node: fx.Node) -> list[int]:
    """Return the shape of what a node makes."""
    return [int(length) for length in node.meta["val"].shape]


def _input_of(node: fx.Node) -> str:
    source = node.args[0]
    assert isinstance(source, fx.Node)  # noqa: S101 (a fact about exported graphs, for the type checker)
    return source.name


def _convolution(walk: Walk, node: fx.Node, a: dict[str, Any], kind: Kind) -> Tensor:
    x, weight, bias, groups = a["input"], a["weight"], a.get("bias"), a.get("groups", 1)
    if not isinstance(weight, Parameter) or not isinstance(bias, (Parameter, type(None))):
        tensors = [t for t in (x, weight, bias) if isinstance(t, Tensor)]
        return walk.opaque(node, tensors, f"{node.name}: its weight is computed, not stored")
    batched = x.ndim == len(weight.shape)
    channel_dim = 1 if batched else 0
    channels = walk.vector(x, channel_dim)
    # Transposed convolutions store (inputs, outputs / groups, …), all others (outputs, inputs / groups, …).
    row_dim, column_dim = (1, 0) if kind == "conv_transpose" else (0, 1)
    depthwise = groups > 1 and groups == len(channels)
    made = weight.shape[row_dim] * (groups if kind == "conv_transpose" else 1)
    if depthwise:
        # One filter (or `made / groups` of them) per channel: they share the channel's fate.
        out = channels.repeat_interleave(made // groups)
        walk.bind(weight, 0, out if kind == "conv" else channels)
    elif kind == "conv_transpose" and groups > 1:
        walk.space.freeze(channels, f"{node.name}: grouped transposed convolution")
        out = walk.space.new(made)
        walk.space.freeze(out, f"{node.name}: grouped transposed convolution")
    else:
        walk.bind(weight, column_dim, channels, "column", groups)
        out = walk.bind(weight, row_dim, _rows(walk, weight, row_dim, made))
        if groups > 1:
            reason = f"{node.name}: every one of its {groups} groups loses the same number of channels"
            walk.partitions.append(Partition(channels, groups, reason, hard=True))
            walk.partitions.append(Partition(out, groups, reason, hard=True))
    walk.bind(bias, 0, out)
    walk.calls.append(
        LayerCall(node.name, kind, weight.path, bias.path if bias else None, groups, _input_of(node), depthwise)
    )
    return spread(out, channel_dim, output_shape(node))


def _rows(walk: Walk, weight: Parameter, dim: int, count: int) -> Tensor:
    """Return the labels of the channels that a weight makes: the same ones at every call."""
    known = walk.slices.get((weight.path, dim))
    return known.labels if known is not None and len(known.labels) == count else walk.space.new(count)


@rule("conv1d conv2d conv3d convolution")
def convolution(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Tensor:
    """Read the input channels, make new ones; depthwise filters are carried along with their channel."""
    return _convolution(walk, node, a, "conv_transpose" if a.get("transposed") else "conv")


@rule("conv_transpose1d conv_transpose2d conv_transpose3d")
def transposed_convolution(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Tensor:
    """Like a convolution, with the weight's first two dimensions exchanged."""
    return _convolution(walk, node, a, "conv_transpose")


@rule("linear")
def linear(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Tensor:
    """Read the last dimension, make a new one. After a flatten one channel owns several inputs."""
    x, weight, bias = a["input"], a["weight"], a.get("bias")
    if not isinstance(weight, Parameter) or not isinstance(bias, (Parameter, type(None))):
        tensors = [t for t in (x, weight, bias) if isinstance(t, Tensor)]
        return walk.opaque(node, tensors, f"{node.name}: its weight is computed, not stored")
    walk.bind(weight, 1, walk.vector(x, -1), "column")
    out = walk.bind(weight, 0, _rows(walk, weight, 0, weight.shape[0]))
    walk.bind(bias, 0, out)
    walk.calls.append(LayerCall(node.name, "linear", weight.path, bias.path if bias else None, 1, _input_of(node)))
    shape = output_shape(node)
    return spread(out, len(shape) - 1, shape)


@rule("batch_norm instance_norm _native_batch_norm_legit_no_training")
def batch_norm(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Any:
    """Scale and shift every channel on its own: its four statistics are cut with the channel."""
    x = a["input"]
    channels = walk.vector(x, 1)
    for name in ("weight", "bias", "running_mean", "running_var"):
        parameter = a.get(name)
        if isinstance(parameter, Parameter):
            walk.bind(parameter, 0, channels)
        elif isinstance(parameter, Tensor):
            return walk.opaque(node, [x, parameter], f"{node.name}: its {name} is computed, not stored")
    return x


@rule("group_norm")
def group_norm(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Tensor:
    """Normalise groups of channels together: a normalisation group stays or goes as a whole."""
    x, groups = a["input"], a["num_groups"]
    channels = walk.vector(x, 1)
    blocks = channels.view(groups, -1)
    walk.space.unite_along(blocks, 1)
    walk.norm_groups[node.name] = groups
    for name in ("weight", "bias"):
        if isinstance(a.get(name), Parameter):
            walk.bind(a[name], 0, channels)
    return x


@rule("layer_norm rms_norm")
def layer_norm(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Tensor:
    """Normalise over the last dimensions; if channels run along them, their statistics need all channels."""
    x = a["input"]
    count = len(a["normalized_shape"])
    dims = [dim % x.ndim for dim in range(-count, 0)]
    if set(dims) & set(varying_dims(walk.space.root_tensor(x))):
        walk.space.freeze(x, f"{node.name}: a norm over the channels reads all of them")
    for name in ("weight", "bias"):
        parameter = a.get(name)
        if isinstance(parameter, Parameter) and count == 1:
            walk.bind(parameter, 0, walk.vector(x, -1))
    return x


@rule("prelu")
def prelu(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Tensor:  # noqa: ARG001 (all rules are called alike)
    """Pass channels on; a slope per channel is cut with its channel."""
    x, weight = a["self"] if "self" in a else a["input"], a["weight"]
    if isinstance(weight, Parameter) and weight.shape[0] > 1:
        walk.bind(weight, 0, walk.vector(x, 1))
    return x


def _spatial(walk: Walk, node: fx.Node, x: Tensor, dims: int) -> Any:
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


def _pool_rule(dims: int) -> Rule:
    def pool(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Any:
        """Pool or resize in space: channels stay what they are."""
        return _spatial(walk, node, a["self"] if "self" in a else a["input"], dims)

    return pool


for _dims in (1, 2, 3):
    rule(
        f"max_pool{_dims}d avg_pool{_dims}d adaptive_avg_pool{_dims}d adaptive_max_pool{_dims}d "
        f"max_pool{_dims}d_with_indices _adaptive_avg_pool{_dims}d"
    )(_pool_rule(_dims))
rule("upsample_nearest1d upsample_linear1d _upsample_nearest_exact1d")(_pool_rule(1))
rule(
    "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa"
)(_pool_rule(2))
rule("upsample_nearest3d upsample_trilinear3d _upsample_nearest_exact3d")(_pool_rule(3))


@rule("mean sum amax amin var std var_mean std_mean prod logsumexp linalg_vector_norm norm max min median all any")
def reduction(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Any:
    """Reduce over space (channels stay) or over channels (they freeze: the result needs all of them)."""
    x = a["self"] if "self" in a else a["input"]
    dim = a.get("dim")
    dims = (
        range(x.ndim) if dim is None or dim == [] else [d % x.ndim for d in (dim if isinstance(dim, list) else [dim])]
    )
    if set(dims) & set(varying_dims(walk.space.root_tensor(x))):
        return walk.opaque(node, [x], f"{node.name}: it reduces over channels")
    for d in dims:
        x = x.narrow(d, 0, 1)

    def like(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(like(part) for part in value)
        shape = [int(length) for length in value.shape]
        if len(shape) == x.ndim:
            return x.expand(shape)
        kept = [d for d in range(x.ndim) if d not in dims]
        return x.permute([*kept, *dims]).reshape([x.shape[d] for d in kept]).expand(shape)

    return like(node.meta["val"])


@rule("softmax log_softmax _softmax _log_softmax")
def softmax(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Tensor:
    """Compare the entries of one dimension: over space channels stay, over channels they freeze."""
    x = a["self"] if "self" in a else a["input"]
    if a["dim"] % x.ndim in varying_dims(walk.space.root_tensor(x)):
        return walk.opaque(node, [x], f"{node.name}: a softmax over channels reads all of them")
    return x


@rule("pad constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d")
def padding(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Tensor:
    """Extend a border; constant padding of the channel dimension makes channels of its own."""
    x = a["self"] if "self" in a else a["input"]
    amounts = a["pad"] if "pad" in a else a["padding"]
    constant = "reflection" not in node.name and "replication" not in node.name
    return pad(walk.space, x, list(amounts), constant=constant and a.get("mode", "constant") == "constant")


@rule("matmul mm")
def matmul(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Any:
    """Multiply by a stored matrix (inputs × outputs): a linear layer with its weight transposed."""
    x, weight = a["self"], a.get("other", a.get("mat2"))
    if not isinstance(x, Tensor) or not isinstance(weight, Parameter) or len(weight.shape) != 2:
        tensors = [t for t in (x, weight) if isinstance(t, Tensor)]
        return walk.opaque(node, tensors, f"{node.name}: it mixes channels of two activations")
    walk.bind(weight, 0, walk.vector(x, -1), "column")
    out = walk.bind(weight, 1, _rows(walk, weight, 1, weight.shape[1]))
    walk.calls.append(LayerCall(node.name, "matmul", weight.path, None, 1, _input_of(node)))
    shape = output_shape(node)
    return spread(out, len(shape) - 1, shape)


def pointwise(walk: Walk, node: fx.Node, tensors: list[Tensor]) -> Tensor:
    """Unite the labels of all operands, element by element.

    An operand that is broadcast along the channels of another (a spatial attention map) is not one of
    them: it must stay, and the channels pass.
    """
    shape = output_shape(node)
    tensors = [t for t in tensors if t.numel() > 1 or not walk.space.all_opaque(t)]
    if not tensors:
        return walk.space.opaque(shape, f"{node.name}: no channels")
    aligned = [t.reshape([1] * (len(shape) - t.ndim) + list(t.shape)) for t in tensors]
    varying = [set(varying_dims(walk.space.root_tensor(t))) for t in aligned]
    carriers = []
    for index, t in enumerate(aligned):
        others = set().union(*(v for j, v in enumerate(varying) if j != index))
        if any(t.shape[dim] == 1 and shape[dim] > 1 and dim in others for dim in range(len(shape))):
            walk.space.freeze(t, f"{node.name}: it is broadcast over the channels of another input")
        else:
            carriers.append(t)
    carriers = carriers or aligned
    # Opaque operands only freeze; the labels handed on are those of a real channel where there are any.
    carriers.sort(key=walk.space.all_opaque)
    first = carriers[0].expand(shape)
    for other in carriers[1:]:
        walk.space.unite(first, other.expand(shape))
    return first
