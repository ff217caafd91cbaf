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

from clusterprune.graph.labels import spread, varying_dims
from clusterprune.graph.stored import Stored
from clusterprune.graph.walk import Kind, LayerCall, Parameter, Partition, Walk

Rule = Callable[[Walk, fx.Node, dict[str, Any]], Any]
RULES: dict[Any, Rule] = {}
aten = torch.ops.aten


def rule(names: str) -> Callable[[Rule], Rule]:
    """Enter a function in the table for every named ATen operator that this PyTorch has.

    A name stands for all overloads of an operator, `name.overload` for one.
    """

    def enter(function: Rule) -> Rule:
        for name in names.split():
            packet, _, overload = name.partition(".")
            target = getattr(aten, packet, None)
            target = getattr(target, overload, None) if overload else target
            if target is not None:
                RULES[target] = function
        return function

    return enter


def data_rule(names: str) -> Callable[[Rule], Rule]:
    """Enter a rule that takes parameters like any other data: by the labels of their elements."""

    def enter(function: Rule) -> Rule:
        def on_data(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Any:
            return function(walk, node, walk.as_data(a))

        rule(names)(on_data)
        return function

    return enter


def rule_for(target: Any) -> Rule | None:
    """Return the rule of an operator overload, or of its operator, or None."""
    packet = getattr(target, "overloadpacket", None)
    return RULES.get(target) or RULES.get(packet) or NAMED.get(str(packet))


def is_layer(target: Any) -> bool:
    """Tell whether an operator is a convolution of a library, which takes constants for what it is not given."""
    return str(getattr(target, "overloadpacket", None)) in NAMED


def output_shape(node: fx.Node) -> list[int]:
    """Return the shape of what a node makes."""
    return [int(length) for length in node.meta["val"].shape]


def input_of(node: fx.Node) -> str:
    """Return the name of the node that a layer reads."""
    source = node.args[0]
    assert isinstance(source, fx.Node)  # noqa: S101 (a fact about exported graphs, for the type checker)
    return source.name


def _convolution(walk: Walk, node: fx.Node, a: dict[str, Any], kind: Kind) -> Tensor:
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
            walk.partitions.append(Partition(channels, groups, reason, hard=True))
            walk.partitions.append(Partition(out, groups, reason, hard=True))
    walk.bind(bias, 0, out)
    note_call(walk, node, kind, weight, bias, groups, depthwise=depthwise)
    return spread(out, channel_dim, output_shape(node))


def rows_of(walk: Walk, weight: Parameter | Stored, dim: int, count: int) -> Tensor:
    """Return the labels of the channels that a weight makes: the same ones at every call."""
    known = walk.known(weight, dim)
    return known if known is not None and len(known) == count else walk.space.new(count)


def note_call(
    walk: Walk,
    node: fx.Node,
    kind: Kind,
    weight: Parameter | Stored,
    bias: Parameter | Stored | None,
    groups: int = 1,
    *,
    depthwise: bool = False,
) -> None:
    """Enter an application of a layer, unless its kernel has nothing to do with parameters."""
    path = bias.path if isinstance(bias, Parameter) else None
    if isinstance(weight, Parameter):
        walk.calls.append(LayerCall(node.name, kind, weight.path, path, groups, input_of(node), depthwise))
    elif paths := weight.paths:
        # The parameter that has most of the kernel's dimensions is what it is made of; others scale or mask it.
        count = {path: len({dim for other, dim in weight.places if other == path}) for path in paths}
        likely = (".weight", ".original", ".original1")
        main = max(paths, key=lambda path: (count[path], f".{path}".endswith(likely)))
        walk.calls.append(LayerCall(node.name, kind, main, path, groups, input_of(node), depthwise, True, tuple(paths)))


@rule("conv1d conv2d conv3d convolution")
def convolution(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Tensor:
    """Read the input channels, make new ones; depthwise filters are carried along with their channel."""
    return _convolution(walk, node, a, "conv_transpose" if a.get("transposed") else "conv")


@rule("conv_transpose1d conv_transpose2d conv_transpose3d")
def transposed_convolution(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Tensor:
    """Like a convolution, with the weight's first two dimensions exchanged."""
    return _convolution(walk, node, a, "conv_transpose")


def deformable_convolution(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Any:
    """Like a convolution; where it looks, and how much that counts, is made by layers that have to stay."""
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
        walk.partitions.append(Partition(walk.vector(x, 1), groups, reason, hard=True))
    # Without a bias it is given zeros, which are cut with the rows.
    made = _convolution(walk, node, {**a, "bias": bias if isinstance(bias, Parameter) else None}, "conv_deformable")
    if isinstance(bias, Tensor):
        walk.space.unite(walk.vector(made, 1), bias)
    return made


NAMED: dict[str, Rule] = {"torchvision.deform_conv2d": deformable_convolution}
"""Rules for operators of libraries that need not be imported, by the operator's name."""


@rule("linear")
def linear(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Tensor:
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
    shape = output_shape(node)
    return spread(out, len(shape) - 1, shape)


@rule("prelu")
def prelu(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Tensor:  # noqa: ARG001 (all rules are called alike)
    """Pass channels on; a slope per channel is cut with its channel."""
    x, weight = a["self"] if "self" in a else a["input"], a["weight"]
    if isinstance(weight, Parameter) and weight.shape[0] > 1:
        walk.bind(weight, 0, walk.vector(x, 1))
    return x


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
