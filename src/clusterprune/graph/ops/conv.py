"""Convolutions: plain, transposed, deformable."""

import math
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional

from clusterprune.graph.labels import spread
from clusterprune.graph.ops._base import (
    STORED_ARGUMENTS,
    CallEdit,
    CostReader,
    CutReader,
    Extent,
    LayerShapes,
    Op,
    Term,
    named_arguments,
    register_op,
    shape_of,
)
from clusterprune.graph.ops._layers import note_call, rows_of, run_with_bias
from clusterprune.graph.stored import Stored
from clusterprune.graph.walk import EqualBlocks, Kind, Parameter, TraceState


def _labels(walk: TraceState, node: fx.Node, a: dict[str, Any], kind: Kind) -> Tensor:
    x, weight, bias, groups = a["input"], a["weight"], a.get("bias"), a.get("groups", 1)
    if not isinstance(weight, (Parameter, Stored)) or isinstance(bias, Tensor):
        tensors = [t for t in (x, weight, bias) if isinstance(t, Tensor)]
        made = node.meta["val"].shape[1 if node.meta["val"].ndim > 2 else 0]
        reason = "its weight is computed from activations"
        return walk.opaque(node, tensors, walk.without_labels(node, int(made), reason))
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
        reason = walk.without_labels(node, made, "grouped transposed convolution")
        walk.space.freeze(channels, reason)
        out = walk.space.new(made)
        walk.space.freeze(out, reason)
    else:
        walk.bind(weight, column_dim, channels, "column", groups)
        out = walk.bind(weight, row_dim, rows_of(walk, weight, row_dim, made))
        if groups > 1:
            reason = f"{node.name}: every one of its {groups} groups loses the same number of channels"
            walk.partitions.append(EqualBlocks(channels, groups, reason, hard=True))
            walk.partitions.append(EqualBlocks(out, groups, reason, hard=True))
    walk.bind(bias, 0, out)
    note_call(walk, node, kind, weight, bias, groups, depthwise=depthwise)
    return spread(out, channel_dim, shape_of(node))


def convolution(walk: TraceState, node: fx.Node, a: dict[str, Any]) -> Tensor:
    """Read the input channels, make new ones; depthwise filters are carried along with their channel."""
    return _labels(walk, node, a, "conv_transpose" if a.get("transposed") else "conv")


def transposed_convolution(walk: TraceState, node: fx.Node, a: dict[str, Any]) -> Tensor:
    """Do like a convolution, with the weight's first two dimensions exchanged."""
    return _labels(walk, node, a, "conv_transpose")


def deformable_convolution(walk: TraceState, node: fx.Node, a: dict[str, Any]) -> Any:
    """Do like a convolution; where it looks, and how much that counts, is made by layers that have to stay."""
    x, groups, bias = a["input"], a["offset_groups"], a["bias"]
    for name in ("offset", "mask"):
        if isinstance(a[name], Tensor):
            walk.space.freeze(a[name], f"{node.name}: they say where it looks")
    if a["groups"] > 1 or not isinstance(x, Tensor):
        tensors = [t for t in (x, bias) if isinstance(t, Tensor)]
        made = int(node.meta["val"].shape[1])
        return walk.opaque(node, tensors, walk.without_labels(node, made, "grouped deformable convolution"))
    if groups > 1:
        reason = f"{node.name}: every one of its {groups} offset groups loses the same number of channels"
        walk.partitions.append(EqualBlocks(walk.vector(x, 1), groups, reason, hard=True))
    # Without a bias it is given zeros, which are cut with the rows.
    made = _labels(walk, node, {**a, "bias": bias if isinstance(bias, Parameter) else None}, "conv_deformable")
    if isinstance(bias, Tensor):
        walk.space.unite(walk.vector(made, 1), bias)
    return made


def _rewrite(mask: CutReader, node: fx.Node) -> CallEdit:
    """A depthwise convolution has as many groups as channels; a grouped one keeps its groups."""
    call = mask.call_of(node.name)
    if not call.depthwise:
        return CallEdit(node.target, tuple(node.args), dict(node.kwargs))
    kept = mask.along(call.input)
    channel_dim = 1 if len(kept) == len(shape_of(node)) and len(kept) > 2 else 0
    a = {**named_arguments(node), "groups": int(kept[channel_dim].sum())}
    return CallEdit(node.target, tuple(a.values()), {})


def _cost(reader: CostReader, node: fx.Node, *, transposed: bool = False) -> list[Term]:
    a = named_arguments(node)
    x, weight, groups = a["input"], a["weight"], int(a.get("groups", 1))
    channel = 1 if x.meta["val"].ndim == weight.meta["val"].ndim else 0
    kernel = math.prod(shape_of(weight)[2:])
    # Positions are those of the output; where kernels are written to overlapping places, those of the input.
    wide, narrow = (x, node) if transposed or a.get("transposed") else (node, x)
    columns = shape_of(weight)[1]
    depthwise = groups > 1 and groups == shape_of(x)[channel]
    inner = Extent(columns) if depthwise else reader.along(narrow, channel, groups)
    return [Term(float(kernel), (*reader.all_of(wide), inner))]


def _transposed_cost(reader: CostReader, node: fx.Node) -> list[Term]:
    return _cost(reader, node, transposed=True)


def _widths(layer: Any, weight: tuple[int, ...], depthwise: bool) -> dict[str, Any]:
    groups = weight[0] * layer.groups // layer.out_channels if depthwise else layer.groups
    return {"in_channels": weight[1] * groups, "out_channels": weight[0], "groups": groups}


def _transposed_widths(layer: Any, weight: tuple[int, ...], depthwise: bool) -> dict[str, Any]:
    groups = weight[0] if depthwise else layer.groups
    return {"in_channels": weight[0], "out_channels": weight[1] * groups, "groups": groups}


def _shapes(layer: Any) -> dict[str, tuple[int, ...]]:
    rows, columns = layer.out_channels, layer.in_channels
    lengths = (columns, rows // layer.groups) if layer.transposed else (rows, columns // layer.groups)
    return {"weight": (*lengths, *layer.kernel_size), "bias": (rows,)}


def _run_in_place_of_deformed(
    _target: Any, args: tuple[Any, ...], _kwargs: dict[str, Any], x: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """Estimate: the layer as it were without its offsets, which are other layers' outputs."""
    stride, padding, dilation = (tuple(args[place : place + 2]) for place in (5, 7, 9))
    return functional.conv2d(x, weight, bias, stride, padding, dilation)


CONVOLUTION = Op(
    labels=convolution,
    parameters=STORED_ARGUMENTS,
    kernels=True,
    layer=True,
    rewrite=_rewrite,
    cost=_cost,
    modules=(LayerShapes((nn.Conv1d, nn.Conv2d, nn.Conv3d), _widths, _shapes),),
    run=run_with_bias,
)
TRANSPOSED = Op(
    labels=transposed_convolution,
    parameters=STORED_ARGUMENTS,
    kernels=True,
    layer=True,
    rewrite=_rewrite,
    cost=_transposed_cost,
    modules=(LayerShapes((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _transposed_widths, _shapes),),
    run=run_with_bias,
)
DEFORMABLE = Op(labels=deformable_convolution, parameters=STORED_ARGUMENTS, layer=True, run=_run_in_place_of_deformed)
register_op("conv1d conv2d conv3d convolution _convolution", CONVOLUTION)
register_op("conv_transpose1d conv_transpose2d conv_transpose3d", TRANSPOSED)
register_op("torchvision::deform_conv2d", DEFORMABLE)
