# pyright: reportPrivateUsage=false
"""Norms: which of them cut with their channels, and which read all channels at once; batch norms and their folding.

A norm of each channel by itself (batch, instance) is cut with its channels. A norm over the channels takes its
statistics from all of them: a cut there changes what the kept channels are divided by. Such channels stay, unless the
trace allows approximate cuts; then the cut network's norm is the norm over the kept channels.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx, nn

from clusterprune.graph.labels import varying_dims
from clusterprune.graph.ops._base import (
    STORED_ARGUMENTS,
    CallEdit,
    CutReader,
    LayerShapes,
    Op,
    aten,
    free,
    named_arguments,
    op_of,
    register_op,
    source_of,
)
from clusterprune.graph.stored import Stored, elementwise, nowhere_zero, places_of
from clusterprune.graph.walk import Parameter, TraceState

REMEDY = "approximate=True would cut them and change its statistics"
OVER_CHANNELS = f"a norm over the channels reads all of them; {REMEDY}"


def batch_norm(walk: TraceState, node: fx.Node, a: dict[str, Any]) -> Any:
    """Scale and shift every channel on its own: its four statistics are cut with the channel."""
    x = walk.as_data(a["input"])
    channels = walk.vector(x, 1)
    for name in ("weight", "bias", "running_mean", "running_var"):
        parameter = a.get(name)
        if isinstance(parameter, (Parameter, Stored)):
            walk.bind(parameter, 0, channels)
        elif isinstance(parameter, Tensor):
            return walk.opaque(node, [x, parameter], f"{node.name}: its {name} is computed from activations")
    made = node.meta["val"]
    return x if isinstance(made, Tensor) else (x, *walk.opaque_like(tuple(made)[1:], f"{node.name}: statistics"))


def group_norm(walk: TraceState, node: fx.Node, a: dict[str, Any]) -> Any:
    """Normalise groups of channels together: a normalisation group stays or goes as a whole.

    A single group is a norm over the channels.
    """
    x, groups = walk.as_data(a["input"]), a["num_groups"]
    channels = walk.vector(x, 1)
    if groups == 1:
        _over_channels(walk, node, x)
    else:
        walk.space.unite_along(channels.view(groups, -1), 1)
        walk.norm_groups[node.name] = groups
    return _affine(walk, node, a, x, {0: channels})


def layer_norm(walk: TraceState, node: fx.Node, a: dict[str, Any]) -> Any:
    """Normalise over the last dimensions; if channels run along them, their statistics need all channels."""
    x = walk.as_data(a["input"])
    count = len(a["normalized_shape"])
    dims = range(x.ndim - count, x.ndim)
    varying = set(dims) & set(varying_dims(walk.space.root_tensor(x)))
    if varying:
        _over_channels(walk, node, x)
    # Where channels run along other dimensions alone, scale and shift have none.
    own = varying or (dims if count == 1 and not varying_dims(walk.space.root_tensor(x)) else ())
    affine = {dim - dims[0]: walk.vector(x, dim) for dim in dims if dim in own}
    return _affine(walk, node, a, x, affine)


def _affine(walk: TraceState, node: fx.Node, a: dict[str, Any], x: Tensor, channels: dict[int, Tensor]) -> Any:
    """Bind a norm's scale and shift to the channels that their dimensions run along."""
    for name in ("weight", "bias"):
        parameter = a.get(name)
        if isinstance(parameter, Tensor):
            return walk.opaque(node, [x, parameter], f"{node.name}: its {name} is computed, not stored")
        for dim, labels in channels.items():
            walk.bind(parameter, dim, labels)
    return x


def _over_channels(walk: TraceState, node: fx.Node, x: Tensor) -> None:
    if walk.allow_approximate:
        walk.note_approximate(node, x, "the norm of the kept channels in place of the norm of all")
    else:
        walk.space.freeze(x, f"{node.name}: {OVER_CHANNELS}")


def is_statistic(node: fx.Node) -> bool:
    """Tell whether a reduction over channels is one of a norm: it only scales or shifts the channels it was taken from.

    What it makes must flow, through operations that work element by element or move data, into operations whose
    result is as wide as what was reduced.
    """
    source, op = node.args[0], op_of(node)
    if op is None or not op.statistic or not isinstance(source, fx.Node):
        return False
    whole = source.meta["val"].numel()
    waiting, seen = list(node.users), set[fx.Node]()
    if not waiting:
        return False
    while waiting:
        user = waiting.pop()
        if user in seen:
            continue
        seen.add(user)
        if user.op != "call_function" or not _passes_elements(user):
            return False
        made = user.meta["val"]
        # var_mean makes a pair, whose parts are picked first.
        if isinstance(made, Tensor) and made.numel() >= whole:
            continue
        if not user.users:
            return False
        waiting.extend(user.users)
    return True


def _passes_elements(user: fx.Node) -> bool:
    op = op_of(user)
    if op is None:
        return getattr(user.target, "__name__", "") == "getitem"
    return op.elementwise or op.keeps_elements


def _stored(
    name: str, operands: list[Stored], arguments: dict[str, Any], shapes: list[tuple[int, ...]]
) -> list[Stored] | None:
    """Standardise over some dimensions; scales and shifts run along the others, or along the last ones."""
    value, extra = operands[0], operands[1:]
    count = len(value.dimensions)
    if "normalized_shape" in arguments:
        over, tail = list(range(count - len(arguments["normalized_shape"]), count)), 0
    else:
        over, tail = [d for d in range(count) if d != 1 and not (name == "instance_norm" and d == 0)], count - 2
    mixed = value.mixed.union(*(places_of(value.dimensions[d]) for d in over))
    scales = [replace(one, dimensions=(*one.dimensions, *((),) * tail)) for one in extra]
    (result,) = elementwise(name, [Stored(value.dimensions, mixed), *scales], {}, [value.shape])
    return [nowhere_zero(result)] if len(shapes) == 1 else None


def _stored_direction(
    _name: str, operands: list[Stored], arguments: dict[str, Any], _shapes: list[tuple[int, ...]]
) -> list[Stored] | None:
    """Scale the direction v of every index of `dim` to the length g: the other dimensions are reduced over."""
    direction, length = operands
    dim = arguments["dim"]
    if dim < 0:
        return None  # one length for all
    others = [d for d in range(len(direction.dimensions)) if d != dim]
    mixed = direction.mixed.union(*(places_of(direction.dimensions[d]) for d in others))
    (result,) = elementwise("div", [Stored(direction.dimensions, mixed), length], {}, [direction.shape])
    return [result]


def take_up_length(walk: TraceState, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Stored | None:
    """Let the length of a normalised direction take up what its norm loses with its columns, where it can."""
    a = named_arguments(node, args, kwargs)
    direction, length, dim = a["v"], a["g"], int(a["dim"])
    users = {user.target for source in node.all_input_nodes for user in source.users}
    plain = isinstance(direction, Parameter) and isinstance(length, Parameter)
    if not plain or dim < 0 or users != {aten._weight_norm.default}:
        return None
    walk.gains[direction.path] = (length.path, dim)
    value = Stored.of(direction.path, direction.shape)
    lengths = Stored.of(length.path, length.shape).dimensions[dim]
    made = [*value.dimensions]
    # An index without direction has no length either: what vanishes there is not zero, but undefined.
    pairs = zip(made[dim], lengths, strict=True)
    made[dim] = tuple(replace(one, places=one.places | other.places, vanishes=False) for one, other in pairs)
    return Stored(tuple(made), value.mixed, value.places - places_of(value.dimensions[dim]))


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """A batch norm in a traced graph: γ·(x − mean)/√(variance + ε) + β for every channel.

    Attributes
    ----------
    node
        Its node in the graph.
    weight, bias, mean, variance
        Paths of γ, β and the running statistics in the module, or None where it has none or computes them.
    eps
        Its ε.
    """

    node: fx.Node
    weight: str | None
    bias: str | None
    mean: str | None
    variance: str | None
    eps: float

    @property
    def name(self) -> str:
        """Name of its node."""
        return self.node.name

    @property
    def input(self) -> fx.Node:
        """The node whose value it normalises."""
        return source_of(self.node)

    @property
    def alone(self) -> bool:
        """Whether nothing else reads what it normalises."""
        return len(self.input.users) == 1

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of all its tensors: γ, β, mean and variance, as far as it has them."""
        return tuple(path for path in (self.weight, self.bias, self.mean, self.variance) if path is not None)

    @property
    def complete(self) -> bool:
        """Whether it has all four tensors."""
        return len(self.paths) == 4

    def folding(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        """Return its scale and shift, (channels,) each, from tensors by path; None without running statistics."""
        if self.mean is None or self.variance is None:
            return None
        weight = None if self.weight is None else tensors[self.weight]
        bias = None if self.bias is None else tensors[self.bias]
        return fold(tensors[self.mean], tensors[self.variance], self.eps, weight, bias)


def fold(
    mean: Tensor, variance: Tensor, eps: float, weight: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return a batch norm's scale and shift, (channels,) each: it computes x · scale + shift."""
    deviation = (variance + eps).sqrt()
    scale = deviation.reciprocal() if weight is None else weight / deviation
    return scale, -mean * scale if bias is None else bias - mean * scale


def find_batch_norms(graph: fx.Graph, inputs: Mapping[str, str]) -> Iterator[BatchNorm]:
    """Yield the batch norms of a graph in order of execution.

    Parameters
    ----------
    inputs
        Paths of parameters and buffers by the names of their placeholders.
    """
    for node in graph.nodes:
        if op_of(node) is BATCH_NORM:
            given = named_arguments(node)
            tensors = (given[name] for name in ("weight", "bias", "running_mean", "running_var"))
            paths = (inputs.get(tensor.name) if isinstance(tensor, fx.Node) else None for tensor in tensors)
            yield BatchNorm(node, *paths, eps=float(given["eps"]))


def _rewrite_groups(mask: CutReader, node: fx.Node) -> CallEdit:
    """Group norms keep the size of their groups and lose some of the groups."""
    a = named_arguments(node)
    flags = mask.along(source_of(node).name)[1]
    a["num_groups"] = max(1, int(flags.sum()) * a["num_groups"] // len(flags))
    return CallEdit(node.target, tuple(a.values()), {})


def _rewrite_shape(mask: CutReader, node: fx.Node) -> CallEdit:
    """A norm over the channels is one over those that stay."""
    shape, count = mask.shape(node.name), len(named_arguments(node)["normalized_shape"])
    args = (node.args[0], list(shape[len(shape) - count :]), *node.args[2:])
    return CallEdit(node.target, args, dict(node.kwargs))


def _resize(owner: nn.Module, edit: CallEdit) -> dict[str, Any]:
    """Also layers without weights, and the user's own norms, mention the shape."""
    return {"normalized_shape": tuple(edit.args[1])} if hasattr(owner, "normalized_shape") else {}


def _features(_layer: Any, weight: tuple[int, ...], _depthwise: bool) -> dict[str, Any]:
    return {"num_features": weight[0]}


def _feature_shapes(layer: Any) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (layer.num_features,))


def _groups(layer: Any, weight: tuple[int, ...], _depthwise: bool) -> dict[str, Any]:
    per_group = layer.num_channels // layer.num_groups
    return {"num_channels": weight[0], "num_groups": 1 if layer.num_groups == 1 else weight[0] // per_group}


def _group_shapes(layer: Any) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(("weight", "bias"), (layer.num_channels,))


def _normalized(_layer: Any, weight: tuple[int, ...], _depthwise: bool) -> dict[str, Any]:
    return {"normalized_shape": weight}


def _normalized_shapes(layer: Any) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(("weight", "bias"), tuple(layer.normalized_shape))


BATCH_NORM = Op(
    labels=batch_norm,
    parameters=STORED_ARGUMENTS,
    kernels=True,
    stored=_stored,
    cost=free,
    modules=(LayerShapes((nn.modules.batchnorm._NormBase,), _features, _feature_shapes),),
)
GROUP_NORM = Op(
    labels=group_norm,
    parameters=STORED_ARGUMENTS,
    rewrite=_rewrite_groups,
    cost=free,
    modules=(LayerShapes((nn.GroupNorm,), _groups, _group_shapes),),
)
LAYER_NORM = Op(
    labels=layer_norm,
    parameters=STORED_ARGUMENTS,
    keeps_places=True,
    stored=_stored,
    rewrite=_rewrite_shape,
    cost=free,
    resize=_resize,
    modules=(LayerShapes((nn.LayerNorm, nn.RMSNorm), _normalized, _normalized_shapes),),
)
WEIGHT_NORM = Op(stored=_stored_direction)
register_op("batch_norm", BATCH_NORM)
register_op("instance_norm _native_batch_norm_legit_no_training", replace(BATCH_NORM))
register_op("group_norm", GROUP_NORM)
register_op("layer_norm rms_norm", LAYER_NORM)
register_op("_weight_norm", WEIGHT_NORM)
