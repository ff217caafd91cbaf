"""Operations that work element by element, and activations with parameters or gates."""

import math
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from clusterprune.graph.labels import varying_dims
from clusterprune.graph.ops._base import (
    ELEMENTWISE,
    LayerShapes,
    Op,
    free,
    named_arguments,
    op_of,
    register_op,
    shape_of,
)
from clusterprune.graph.walk import Parameter, TraceState


def pointwise(walk: TraceState, node: fx.Node, tensors: list[Tensor]) -> Tensor:
    """Unite the labels of all operands, element by element.

    An operand that is broadcast along the channels of another (a spatial attention map) is not one of
    them: it must stay, and the channels pass.
    """
    shape = shape_of(node)
    tensors = [t for t in tensors if t.numel() > 1 or not walk.space.all_opaque(t)]
    if not tensors:
        return walk.space.opaque(shape, f"{node.name}: no channels")
    aligned = [t.reshape([1] * (len(shape) - t.ndim) + list(t.shape)) for t in tensors]
    varying = [set(varying_dims(walk.space.root_tensor(t))) for t in aligned]
    carriers: list[Tensor] = []
    for index, t in enumerate(aligned):
        others = set[int]().union(*(v for j, v in enumerate(varying) if j != index))
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


def by_channel(*parameters: str, dim: int = 1) -> Op:
    """Return what an operator does that treats every channel by itself, with parameters of one number a channel.

    Parameters
    ----------
    parameters
        Names of the operator's arguments that are cut with the channels, along their first dimension. Its first
        argument is the activation.
    dim
        Dimension of the activation along which its channels run.

    Raises
    ------
    TraceError
        When a model is traced, if a parameter is neither stored nor absent.
    """

    def labels(walk: TraceState, node: fx.Node, a: dict[str, Any]) -> Any:
        """Pass channels on, and cut the parameters with them."""
        x = next(iter(a.values()))
        computed = [a[name] for name in parameters if isinstance(a.get(name), Tensor)]
        if computed:
            return walk.opaque(node, [x, *computed], f"{node.name}: a parameter of it is computed from activations")
        for name in parameters:
            walk.bind(a.get(name), 0, walk.vector(x, dim))
        return x

    return Op(labels=labels, parameters=frozenset(parameters), kernels=True, cost=free)


def prelu(walk: TraceState, node: fx.Node, a: dict[str, Any]) -> Tensor:  # noqa: ARG001 (all rules are called alike)
    """Pass channels on; a slope per channel is cut with its channel."""
    x, weight = a["self"] if "self" in a else a["input"], a["weight"]
    if isinstance(weight, Parameter) and weight.shape[0] > 1:
        walk.bind(weight, 0, walk.vector(x, 1))
    return x


def gated_linear_unit(walk: TraceState, node: fx.Node, a: dict[str, Any]) -> Tensor:  # noqa: ARG001 (all are called alike)
    """Scale the first half of a dimension by the second: a channel goes with its gate."""
    x = a["self"]
    dim = a["dim"] % x.ndim
    half = x.shape[dim] // 2
    first = x.narrow(dim, 0, half)
    walk.space.unite(first, x.narrow(dim, half, half))
    return first


def is_addition(node: fx.Node | None) -> bool:
    """Tell whether a node adds two values."""
    return node is not None and op_of(node) is ADDITION


def bounds_of(node: fx.Node) -> tuple[float, float] | None:
    """Return between which bounds a rectifier or clamp lets its input through; None for any other operation."""
    op = op_of(node)
    if op is RECTIFIER:
        return 0.0, math.inf
    if op is RECTIFIER_6:
        return 0.0, 6.0
    if op is not CLAMP:
        return None
    given = named_arguments(node)
    low, high = given.get("min_val", given.get("min")), given.get("max_val", given.get("max"))
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    return (float(low), float(high)) if all(isinstance(v, (int, float)) for v in (low, high)) else None


def _slopes(_layer: Any, weight: tuple[int, ...], _depthwise: bool) -> dict[str, Any]:
    return {"num_parameters": weight[0]}


def _slope_shapes(layer: Any) -> dict[str, tuple[int, ...]]:
    return {"weight": (layer.num_parameters,)}


ADDITION = replace(ELEMENTWISE)
RECTIFIER = replace(ELEMENTWISE, homogeneous=True)
RECTIFIER_6 = replace(ELEMENTWISE)
CLAMP = replace(ELEMENTWISE)
PRELU = Op(
    labels=prelu,
    parameters=frozenset({"weight"}),
    cost=free,
    modules=(LayerShapes((nn.PReLU,), _slopes, _slope_shapes),),
)
register_op("add.Tensor add_.Tensor", ADDITION)
register_op("relu relu_", RECTIFIER)
register_op("leaky_relu leaky_relu_", replace(ELEMENTWISE, homogeneous=True))
register_op("relu6 relu6_", RECTIFIER_6)
register_op("hardtanh hardtanh_ clamp clamp_", CLAMP)
register_op("prelu", PRELU)
register_op("glu", Op(labels=gated_linear_unit, cost=free))
# Element by element, although PyTorch does not tag them so.
register_op(
    "hardswish hardswish_ rrelu_ rsub log_sigmoid special_expit floor_divide isclose copy copy_ fill fill_ zero zero_ "
    "__and__ __or__ __xor__ __lshift__ __rshift__ __iand__ __ior__ __ixor__ bernoulli real imag",
    ELEMENTWISE,
)
