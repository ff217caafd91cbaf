"""From a model to the groups of channels that can be cut together."""

import operator
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils import _pytree as pytree

from clusterprune.errors import ArgumentError, ModelError, TraceError
from clusterprune.graph import along, norms, products, sampling  # noqa: F401 (they enter their rules)
from clusterprune.graph.channels import ChannelGraph
from clusterprune.graph.constants import EXPANSIONS, Uniform, expanded, settle, settle_all
from clusterprune.graph.export import Exported, export, named_arguments
from clusterprune.graph.groups import find_groups
from clusterprune.graph.labels import varying_dims
from clusterprune.graph.movement import IDENTITY, MOVEMENT, move
from clusterprune.graph.rules import pointwise, rule_for
from clusterprune.graph.stored import Axis, Stored, compute
from clusterprune.graph.walk import LayerCall, Parameter, Partition, Walk

aten = torch.ops.aten
Example = Tensor | tuple[Any, ...] | Mapping[str, Any]


def trace(model: nn.Module, example: Example, *, ignore: Iterable[str] = (), approximate: bool = False) -> ChannelGraph:
    """Find which channels of a model belong together.

    The model is exported in evaluation mode with `torch.export` and walked once; every activation carries
    the labels of the channels that its elements belong to.

    Parameters
    ----------
    model
        Any module that `torch.export` can export. It is not changed.
    example
        One input: a tensor, a tuple of positional inputs, or a mapping of keyword inputs. Batch 1 is
        fastest. Only shapes and dtypes matter: its tensors are taken to the model's device, if it has but one.
    ignore
        Globs of group or layer names that must stay as they are, such as `"layer1.*"`.
    approximate
        Whether channels may be cut that a norm takes its statistics over (layer norm over the channels, group norm with
        one group, L2 norm). The cut network's norm is then the norm over the kept channels, which is not what the
        original computed even where nothing reads the removed ones. Groups of which that is true say so:
        `group.approximate`.

    Raises
    ------
    TraceError
        If the model does not run on the example, or cannot be exported.
    ModelError
        If a weight holds NaN or infinity, has no numbers yet, or is set by a hook; if a module is TorchScript.

    Examples
    --------
    >>> import torch, clusterprune as cp
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
    >>> graph = cp.trace(net, torch.zeros(1, 3, 8, 8))
    >>> [(group.name, group.width, group.frozen is None) for group in graph.groups]
    [('0', 8, True), ('2', 4, False)]
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"model must be a torch.nn.Module, but got {type(model).__name__}; build it first")
    args, kwargs = _with_model(model, *_inputs(example))
    _check_model(model)
    _check_weights(model)
    exported = export(model, args, kwargs)
    walk = Walk(allow_approximate=approximate)
    values = _walk(walk, exported)
    names = [name for name, _ in model.named_parameters()]
    untouched = _untouched(names, exported)
    training, why_not = None, None
    if untouched:
        training, why_not = _export_training(model, args, kwargs, untouched)
    training_calls: list[LayerCall] = []
    if training is not None:
        untouched = _untouched(untouched, training)
        # The same labels and slices: a weight of both modes unites what it meets in either.
        second = replace(walk, calls=training_calls, unknown={}, norm_groups={}, approximate={})
        _walk(second, training)
        for name, nodes in second.unknown.items():
            walk.unknown.setdefault(name, [f"{node} (in training)" for node in nodes])
    walk.settle()
    graph = ChannelGraph(
        model,
        args,
        kwargs,
        exported.graph,
        exported.inputs,
        exported.constants,
        tuple(find_groups(walk, walk.calls, training_calls)),
        tuple(walk.calls),
        walk,
        values,
        walk.unknown,
        tuple(untouched),
        exported.out_spec,
        None if training is None else training.graph,
        why_not,
    )
    return graph.freeze(ignore)


def _untouched(names: list[str], exported: Exported) -> list[str]:
    """Return the parameters that no operation reads."""
    used = {exported.inputs.get(node.name) for node in exported.graph.nodes if node.users}
    return [name for name in names if name not in used]


def _export_training(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], untouched: list[str]
) -> tuple[Exported | None, str | None]:
    """Export the training mode too, if it touches what evaluation does not; otherwise say what stands in the way."""
    try:
        # Two images, because a batch norm cannot train on a single number per channel.
        training = export(model, *_two_images(args, kwargs), training=True)
    except TraceError as error:
        few = ", ".join(untouched[:3]) + (", …" if len(untouched) > 3 else "")
        return None, f"evaluation never touches {few}, and its forward in training mode cannot be exported: {error}"
    return (training, None) if len(_untouched(untouched, training)) < len(untouched) else (None, None)


def _two_images(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Double every input of one image."""
    leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim]
    if not leaves or len(leaves[0]) != 1:
        return args, kwargs
    return pytree.tree_map_only(
        Tensor, lambda leaf: torch.cat([leaf, leaf]) if leaf.ndim and len(leaf) == 1 else leaf, (args, kwargs)
    )


def _inputs(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, (tuple, list)):
        return tuple(example), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    raise ArgumentError(
        f"example={type(example).__name__} is not an input; give a tensor, a tuple of inputs, or a mapping of keywords"
    )


def _with_model(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Take the example's tensors to the device that all of a model's tensors are on."""
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if len(devices) != 1 or "meta" in {device.type for device in devices}:
        return args, kwargs
    (device,) = devices
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), (args, kwargs))


_HOOKS: dict[type, tuple[str, str]] = {
    WeightNorm: (
        "weight_norm",
        "call torch.nn.utils.remove_weight_norm on the layer, or use torch.nn.utils.parametrizations.weight_norm",
    ),
    SpectralNorm: (
        "spectral_norm",
        "call torch.nn.utils.remove_spectral_norm on the layer, or use torch.nn.utils.parametrizations.spectral_norm",
    ),
    BasePruningMethod: ("prune", "make the mask permanent with torch.nn.utils.prune.remove(layer, name)"),
}
"""Hooks that set a weight anew before every forward, where it cannot be cut: what they are called, and the remedy."""


def _check_model(model: nn.Module) -> None:
    """Refuse modules that cannot be followed, by name and with the remedy."""
    for path, module in model.named_modules():
        name = f"the module {path!r}" if path else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"{name} is a TorchScript module, which hides its layers; give the nn.Module it was made of"
            )
        for hook in module._forward_pre_hooks.values():
            for kind, (function, remedy) in _HOOKS.items():
                if isinstance(hook, kind):
                    raise ModelError(f"{name} sets its weight in a hook of torch.nn.utils.{function}; {remedy}")
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for tensor_name, tensor in own:
            if nn.parameter.is_lazy(tensor):
                raise ModelError(f"{name} is lazy and has no weights yet; run the model once on an example first")
            if tensor.is_meta:
                raise ModelError(
                    f"{name} holds no numbers: its {tensor_name} is on the meta device. Move the model with "
                    "to_empty(device='cpu'), and load its weights"
                )


def _check_weights(model: nn.Module) -> None:
    # What else a model keeps in buffers (a mask of -inf, bounds of a clamp that are not set) may be infinite.
    statistics = {n: b for n, b in model.named_buffers() if n.rpartition(".")[2].startswith("running_")}
    for name, tensor in {**dict(model.named_parameters()), **statistics}.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"the weight {name!r} holds NaN or infinity; clustering it would spread them. Load sound weights."
            )


def _walk(walk: Walk, exported: Exported) -> dict[str, Any]:
    """Propagate labels through a graph; return what every node's value carries."""
    values: dict[str, Any] = {}
    dependent: set[str] = set()
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            value = node.meta.get("val")
            if node.name in exported.inputs:
                values[node.name] = Parameter(exported.inputs[node.name], tuple(value.shape))
            elif node.name in exported.constants:
                values[node.name] = walk.opaque_like(value, f"{node.name}: a constant of the model")
            else:
                values[node.name] = walk.opaque_like(value, "the network's input")
                walk.user_inputs.add(node.name)
                dependent.add(node.name)
        elif node.op == "call_function":
            if any(source.name in dependent for source in node.all_input_nodes) or _applies_layer(node, values):
                dependent.add(node.name)
            elif _is_written_to(node):
                # What is zeroed is a part of a parameter: its numbers are channels of their own.
                dependent.add(node.name)
                values[node.name] = _part(walk, node, values)
                continue
            elif (computed := _compute(walk, node, values)) is not None:
                values[node.name] = computed
                if not node.users and isinstance(computed, Stored):
                    # It runs nevertheless, with sizes in its arguments that a cut may not find.
                    walk.pin(computed.mixed, f"{node.name}: it is computed from all of it")
                continue
            values[node.name] = _call(walk, node, values)
        elif node.op == "output":
            outputs = settle(walk, node, fx.map_arg(node.args, lambda n: values[n.name]), values)
            for value in _tensors(outputs):
                walk.space.freeze(value, "it reaches the network's output")
            for value in _leaves(outputs, (Parameter, Stored)):
                value = Stored.of(value.path, value.shape) if isinstance(value, Parameter) else value
                walk.pin(value.places, "it reaches the network's output")
        else:
            values[node.name] = walk.opaque_like(node.meta.get("val"), f"{node.name}: {node.op}")
    settle_all(walk, values)
    return values


def _applies_layer(node: fx.Node, values: MutableMapping[str, Any]) -> bool:
    """Tell whether a layer reads what the model holds (a table of coordinates): what it makes are activations."""
    packet = getattr(node.target, "overloadpacket", None)
    if packet not in _CONVOLUTIONS:
        return False
    weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    return isinstance(weight, fx.Node) and isinstance(values[weight.name], Parameter)


def _is_written_to(node: fx.Node) -> bool:
    """Tell whether a part of something is taken for no other reason than to write into it."""
    packet = getattr(node.target, "overloadpacket", None)
    return packet in (aten.slice, aten.narrow, aten.select) and all(
        not user.users and str(getattr(user.target, "overloadpacket", "")).endswith("_") and user.args[0] is node
        for user in node.users
    )


def _part(walk: Walk, node: fx.Node, values: MutableMapping[str, Any]) -> Any:
    """Follow the numbers of a part of what the model holds."""
    arguments: Any = fx.map_arg((tuple(node.args), dict(node.kwargs)), lambda n: values[n.name])
    args, kwargs = arguments
    if isinstance(args[0], (Parameter, Stored)):
        dim = named_arguments(node)["dim"] % len(args[0].shape)
        args = (walk.labels_of(args[0], [dim], node.name), *args[1:])
    return _move(walk, node, args, kwargs)


def _call(walk: Walk, node: fx.Node, values: MutableMapping[str, Any]) -> Any:
    """Propagate labels through one operation."""
    arguments: Any = fx.map_arg((tuple(node.args), dict(node.kwargs)), lambda n: values[n.name])
    args, kwargs = settle(walk, node, arguments, values)
    target: Any = node.target
    if target is operator.getitem:
        return args[0][args[1]]
    packet = getattr(target, "overloadpacket", None)
    tensors = _tensors((args, kwargs))
    if packet in IDENTITY and args and isinstance(args[0], (Parameter, Stored)):
        return args[0]
    if (found := rule_for(target)) is not None:
        named = named_arguments(node, args, kwargs)
        slots = LAYERS.get(packet, _SLOTS)
        channels = _channels(walk, tensors)
        for name, value in named.items():
            if name in slots and (packet in LAYERS or not isinstance(value, Stored)):
                continue
            if name in slots:
                reason = f"{node.name}: a scale or kernel of it is computed, not stored"
                walk.pin(value.places, reason)
                return walk.opaque(node, tensors, reason)
            named[name] = _as_labels(walk, value, channels, node.name)
        return found(walk, node, named)
    # Outside the layer rules a parameter is plain data, which meets the channels of the activations beside it.
    args, kwargs = _as_labels(walk, (args, kwargs), _channels(walk, tensors), node.name)
    tensors = _tensors((args, kwargs))
    if not tensors or "val" not in node.meta:
        return walk.opaque_like(node.meta.get("val"), f"{node.name}: a constant")
    if packet in IDENTITY:
        return tensors[0]
    if packet in EXPANSIONS and (uniform := expanded(walk, node, args[0])) is not None:
        return uniform
    if packet in MOVEMENT:
        return _move(walk, node, args, kwargs)
    if isinstance(node.meta["val"], Tensor) and _is_pointwise(target):
        return pointwise(walk, node, tensors)
    if all(walk.space.all_opaque(labels) for labels in tensors):
        return walk.opaque_like(node.meta["val"], f"{node.name}: it has no channels")
    name = str(packet or target)
    walk.unknown.setdefault(name, []).append(node.name)
    first = next(iter(_tensors(node.meta["val"])), None)
    stored = [values[source.name] for source in node.all_input_nodes]
    if (
        any(isinstance(v, (Parameter, Stored)) and len(v.shape) > 1 for v in stored)
        and first is not None
        and first.ndim
    ):
        width = int(first.shape[1 if first.ndim > 3 else -1])
        walk.without_labels(node, width, f"{name} has no rule")
    return walk.opaque(node, tensors, f"{node.name}: {name} has no rule")


_SLOTS = frozenset({"weight", "bias", "running_mean", "running_var"})
"""Arguments in which rules expect parameters, not labels."""

_CONVOLUTIONS = frozenset(
    packet
    for name in "conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d linear".split()
    if (packet := getattr(aten, name, None)) is not None
)

LAYERS: dict[Any, frozenset[str]] = {
    packet: _SLOTS | set(more.split())
    for names, more in (
        ("conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d linear", ""),
        ("batch_norm instance_norm _native_batch_norm_legit_no_training", ""),
        ("matmul mm", "other mat2"),
    )
    for name in names.split()
    if (packet := getattr(aten, name, None)) is not None
}
"""Operations whose rules know what to do with a kernel that is computed from parameters, by where it stands."""


def _compute(walk: Walk, node: fx.Node, values: MutableMapping[str, Any]) -> Any:
    """Follow an operation that reads parameters and no activation; return None if it is no such operation."""
    arguments: Any = fx.map_arg((tuple(node.args), dict(node.kwargs)), lambda n: values[n.name])
    args, kwargs = arguments
    stored = _leaves(arguments, (Parameter, Stored))
    if not stored or not isinstance(node.meta.get("val"), (Tensor, tuple, list)):
        return None
    if node.target is operator.getitem:
        return args[0][args[1]]
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    packet = node.target.overloadpacket
    if packet in IDENTITY and isinstance(args[0], (Parameter, Stored)):
        return args[0]
    if packet is aten._weight_norm and (made := _weight_norm(walk, node, args, kwargs)) is not None:
        return made

    def as_stored(value: Any) -> Any:
        if isinstance(value, Stored):
            return value
        if isinstance(value, Parameter):
            return Stored.of(value.path, value.shape)
        if isinstance(value, Uniform):
            return Stored(tuple((Axis(n, flat=True),) if n > 1 else () for n in value.shape))
        return Stored.lost(tuple(value.shape))

    named = _map(named_arguments(node, args, kwargs), as_stored, (Parameter, Stored, Uniform, Tensor))
    return compute(node, _leaves(named, Stored), named)


def _weight_norm(walk: Walk, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Stored | None:
    """Let the length of a normalised direction take up what its norm loses with its columns, where it can."""
    a = named_arguments(node, args, kwargs)
    direction, length, dim = a["v"], a["g"], a["dim"]
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
    return Stored(tuple(made), value.mixed, value.places - _places_of(value, dim))


def _places_of(value: Stored, dim: int) -> frozenset[tuple[str, int]]:
    return frozenset().union(*(axis.places for axis in value.dimensions[dim]))


def _channels(walk: Walk, tensors: list[Tensor]) -> tuple[int, ...]:
    """Return the dimensions, counted from the end, along which the activations that an operation reads have channels.

    Counted from the end as element by element operations align what they read; others read tensors of equal rank.
    """
    found = {dim - t.ndim for t in tensors for dim in varying_dims(walk.space.root_tensor(t))}
    return tuple(found)


def _as_labels(walk: Walk, nest: Any, channels: tuple[int, ...], where: str) -> Any:
    def convert(value: Parameter | Stored) -> Tensor | None:
        count = len(value.shape)
        return walk.labels_of(value, [dim + count for dim in channels if dim + count >= 0], where)

    return _map(nest, convert, (Parameter, Stored))


def _map(nest: Any, function: Any, kinds: Any) -> Any:
    if isinstance(nest, kinds):
        return function(nest)
    if isinstance(nest, (tuple, list)):
        return type(nest)(_map(part, function, kinds) for part in nest)
    if isinstance(nest, dict):
        return {key: _map(part, function, kinds) for key, part in nest.items()}
    return nest


UNTAGGED: frozenset[Any] = frozenset(
    packet
    for name in (
        "hardswish hardswish_ rrelu_ rsub log_sigmoid special_expit floor_divide isclose copy copy_ fill fill_ "
        "zero zero_ __and__ __or__ __xor__ __lshift__ __rshift__ __iand__ __ior__ __ixor__ bernoulli real imag"
    ).split()
    if (packet := getattr(aten, name, None)) is not None
)
"""Operators that work element by element although PyTorch does not tag them so."""


def _is_pointwise(target: Any) -> bool:
    """Tell whether an operator works element by element (in-place twins do not always carry the tag)."""
    if torch.Tag.pointwise in target.tags or target.overloadpacket in UNTAGGED:
        return True
    if any(argument.name == "dim" for argument in target._schema.arguments):
        return False  # an overload that works along a dimension: max(a, dim) beside max(a, b)
    twin = getattr(aten, target.overloadpacket.__name__.removesuffix("_"), None)
    return twin is not None and any(torch.Tag.pointwise in getattr(twin, o).tags for o in twin.overloads())


def _move(walk: Walk, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Execute a movement on labels; what cannot be executed freezes what it reads."""
    target: Any = node.target
    if target.overloadpacket in (aten.index, aten.index_select):
        picked = [n for n in node.all_input_nodes if n is not node.args[0]]
        labels = _tensors(args[1:])
        if not isinstance(args[0], Tensor) or not (
            all(_is_stored(walk, n) for n in picked) or all(walk.space.all_opaque(t) for t in labels if t.numel())
        ):
            return walk.opaque(node, _tensors((args, kwargs)), f"{node.name}: it indexes with an activation")
    try:
        result = move(walk.space, target, args, kwargs, lambda: products.dims_of_heads(node))
    except NotImplementedError as error:
        return walk.opaque(node, _tensors((args, kwargs)), f"{node.name}: {error}")
    except (RuntimeError, IndexError, ValueError):
        name = str(target.overloadpacket)
        walk.unknown.setdefault(name, []).append(node.name)
        return walk.opaque(node, _tensors((args, kwargs)), f"{node.name}: {name} could not follow its channels")
    if target.overloadpacket in (aten.chunk, aten.split, aten.split_with_sizes) and isinstance(result, (list, tuple)):
        _note_chunks(walk, node, args, kwargs)
    return result


def _is_stored(walk: Walk, node: fx.Node) -> bool:
    """Tell whether a value follows from what the model holds alone, whatever its input."""
    waiting, seen = [node], {node}
    while waiting:
        current = waiting.pop()
        if current.name in walk.user_inputs:
            return False
        waiting += [source for source in current.all_input_nodes if source not in seen]
        seen.update(current.all_input_nodes)
    return True


def _note_chunks(walk: Walk, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """An even chunk of the channels prefers to stay even, so that the model's own code still fits."""
    a = named_arguments(node, args, kwargs)
    labels, dim = args[0], a.get("dim", 0) % args[0].ndim
    parts = a.get("chunks")
    if not parts or labels.stride(dim) == 0 or labels.shape[dim] % parts:
        return
    vector = labels
    for other in range(labels.ndim):
        if other != dim:
            vector = vector.narrow(other, 0, 1)
    reason = f"{node.name}: {parts} equal parts"
    walk.partitions.append(Partition(vector.reshape(-1), parts, reason, hard=False))


def _tensors(nest: Any) -> list[Tensor]:
    return _leaves(nest, Tensor)


def _leaves(nest: Any, kinds: Any) -> list[Any]:
    if isinstance(nest, kinds):
        return [nest]
    if isinstance(nest, (tuple, list)):
        return [leaf for part in nest for leaf in _leaves(part, kinds)]
    if isinstance(nest, dict):
        return [leaf for part in nest.values() for leaf in _leaves(part, kinds)]
    return []
