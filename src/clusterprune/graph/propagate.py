"""How labels go through a graph: node by node, each by what its operator says of itself."""

import operator
from collections.abc import MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from clusterprune.graph.constants import settle, settle_all
from clusterprune.graph.export import Exported
from clusterprune.graph.labels import varying_dims
from clusterprune.graph.movement import move
from clusterprune.graph.nest import is_sequence, leaves, map_leaves
from clusterprune.graph.ops import named_arguments, op_of, op_of_target
from clusterprune.graph.ops.attention import dims_of_heads
from clusterprune.graph.ops.creation import Uniform, expanded
from clusterprune.graph.ops.norm import WEIGHT_NORM, take_up_length
from clusterprune.graph.ops.parts import SECTIONS
from clusterprune.graph.ops.pointwise import pointwise
from clusterprune.graph.stored import Axis, Stored
from clusterprune.graph.walk import EqualBlocks, Parameter, TraceState

aten = torch.ops.aten


def propagate(walk: TraceState, exported: Exported) -> dict[str, Any]:
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
            for labels in _tensors(outputs):
                walk.space.freeze(labels, "it reaches the network's output")
            for leaf in leaves(outputs):
                if isinstance(leaf, (Parameter, Stored)):
                    value = Stored.of(leaf.path, leaf.shape) if isinstance(leaf, Parameter) else leaf
                    walk.pin(value.places, "it reaches the network's output")
        else:
            values[node.name] = walk.opaque_like(node.meta.get("val"), f"{node.name}: {node.op}")
    settle_all(walk, values)
    return values


def _applies_layer(node: fx.Node, values: MutableMapping[str, Any]) -> bool:
    """Tell whether a layer reads what the model holds (a table of coordinates): what it makes are activations."""
    op = op_of(node)
    if op is None or not op.layer:
        return False
    weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    return isinstance(weight, fx.Node) and isinstance(values[weight.name], Parameter)


def _is_written_to(node: fx.Node) -> bool:
    """Tell whether a part of something is taken for no other reason than to write into it."""
    op = op_of(node)
    return (
        op is not None
        and op.shifts
        and all(
            not user.users and str(getattr(user.target, "overloadpacket", "")).endswith("_") and user.args[0] is node
            for user in node.users
        )
    )


def _part(walk: TraceState, node: fx.Node, values: MutableMapping[str, Any]) -> Any:
    """Follow the numbers of a part of what the model holds."""
    arguments: Any = fx.map_arg((tuple(node.args), dict(node.kwargs)), lambda n: values[n.name])
    args, kwargs = arguments
    if isinstance(args[0], (Parameter, Stored)):
        dim = named_arguments(node)["dim"] % len(args[0].shape)
        args = (walk.labels_of(args[0], [dim], node.name), *args[1:])
    return _move(walk, node, args, kwargs)


def _call(walk: TraceState, node: fx.Node, values: MutableMapping[str, Any]) -> Any:
    """Propagate labels through one operation."""
    arguments: Any = fx.map_arg((tuple(node.args), dict(node.kwargs)), lambda n: values[n.name])
    args, kwargs = settle(walk, node, arguments, values)
    target: Any = node.target
    if target is operator.getitem:
        return args[0][args[1]]
    op = op_of(node)
    tensors = _tensors((args, kwargs))
    if op is not None and op.passes and args and isinstance(args[0], (Parameter, Stored)):
        return args[0]
    if op is not None and op.labels is not None:
        named = named_arguments(node, args, kwargs)
        channels = _channels(walk, tensors)
        for name, value in named.items():
            if name not in op.parameters:
                named[name] = _as_labels(walk, value, channels, node.name)
            elif isinstance(value, Stored) and not op.kernels:
                reason = f"{node.name}: a scale or kernel of it is computed, not stored"
                walk.pin(value.places, reason)
                return walk.opaque(node, tensors, reason)
        return op.labels(walk, node, named)
    # Outside the layer rules a parameter is plain data, which meets the channels of the activations beside it.
    args, kwargs = _as_labels(walk, (args, kwargs), _channels(walk, tensors), node.name)
    tensors = _tensors((args, kwargs))
    if not tensors or "val" not in node.meta:
        return walk.opaque_like(node.meta.get("val"), f"{node.name}: a constant")
    if op is not None and op.passes:
        return tensors[0]
    if op is not None and op.moves:
        return _move(walk, node, args, kwargs)
    if op is not None and op.elementwise and isinstance(node.meta["val"], Tensor):
        return pointwise(walk, node, tensors)
    if all(walk.space.all_opaque(labels) for labels in tensors):
        return walk.opaque_like(node.meta["val"], f"{node.name}: it has no channels")
    name = str(getattr(target, "overloadpacket", target))
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


def _compute(walk: TraceState, node: fx.Node, values: MutableMapping[str, Any]) -> Any:
    """Follow an operation that reads parameters and no activation; return None if it is no such operation."""
    arguments: Any = fx.map_arg((tuple(node.args), dict(node.kwargs)), lambda n: values[n.name])
    args, kwargs = arguments
    stored = [leaf for leaf in leaves(arguments) if isinstance(leaf, (Parameter, Stored))]
    if not stored or not isinstance(node.meta.get("val"), (Tensor, tuple, list)):
        return None
    if node.target is operator.getitem:
        return args[0][args[1]]
    if not isinstance(node.target, OpOverload):
        return None
    op = op_of(node)
    if op is not None and op.passes and isinstance(args[0], (Parameter, Stored)):
        return args[0]
    if op is WEIGHT_NORM and (made := take_up_length(walk, node, args, kwargs)) is not None:
        return made

    def as_stored(value: Any) -> Any:
        if isinstance(value, Parameter):
            return Stored.of(value.path, value.shape)
        if isinstance(value, Uniform):
            return Stored(tuple((Axis(n, flat=True),) if n > 1 else () for n in value.shape))
        return Stored.lost(tuple(value.shape)) if isinstance(value, Tensor) else value

    named = map_leaves(as_stored, named_arguments(node, args, kwargs))
    return _combined(node, [leaf for leaf in leaves(named) if isinstance(leaf, Stored)], named)


def _combined(node: fx.Node, operands: Sequence[Stored], arguments: dict[str, Any]) -> Any:
    """Return what an operation on stored values makes: one value, or one for each output.

    Parameters
    ----------
    operands
        The tensors that the operation reads, in order.
    arguments
        All its arguments by name, tensors being stored values.
    """
    target: Any = node.target
    name = target.overloadpacket.__name__.removesuffix("_")
    made = node.meta.get("val")
    outputs = [made] if isinstance(made, Tensor) else [m for m in made or () if isinstance(m, Tensor)]
    shapes = [tuple(int(n) for n in output.shape) for output in outputs]
    # What works in place makes the same as its twin that does not.
    op = op_of(node) or op_of_target(getattr(getattr(aten, name, None), target._overloadname, None))
    rule = None if op is None else op.stored
    # A scale can be made good only right where it comes from.
    operands = [replace(one, mixed=one.mixed | one.scaled, scaled=frozenset()) for one in operands]
    values = rule(name, operands, arguments, shapes) if rule and shapes else None
    if values is None:
        everything = frozenset[tuple[str, int]]().union(*(operand.places for operand in operands))
        values = [Stored.lost(shape, everything) for shape in shapes]
    if isinstance(made, Tensor):
        return values[0]
    found = iter(values)
    return type(made)(next(found) if isinstance(m, Tensor) else m for m in made) if made is not None else None


def _channels(walk: TraceState, tensors: list[Tensor]) -> tuple[int, ...]:
    """Return the dimensions, counted from the end, along which the activations that an operation reads have channels.

    Counted from the end as element by element operations align what they read; others read tensors of equal rank.
    """
    found = {dim - t.ndim for t in tensors for dim in varying_dims(walk.space.root_tensor(t))}
    return tuple(found)


def _as_labels(walk: TraceState, nest: Any, channels: tuple[int, ...], where: str) -> Any:
    def convert(value: Parameter | Stored) -> Tensor | None:
        count = len(value.shape)
        return walk.labels_of(value, [dim + count for dim in channels if dim + count >= 0], where)

    return map_leaves(lambda leaf: convert(leaf) if isinstance(leaf, (Parameter, Stored)) else leaf, nest)


def _move(walk: TraceState, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Execute a movement on labels; what cannot be executed freezes what it reads."""
    target: Any = node.target
    if (uniform := expanded(walk, node, args[0])) is not None:
        return uniform
    if target.overloadpacket in (aten.index, aten.index_select):
        picked = [n for n in node.all_input_nodes if n is not node.args[0]]
        labels = _tensors(args[1:])
        if not isinstance(args[0], Tensor) or not (
            all(_is_stored(walk, n) for n in picked) or all(walk.space.all_opaque(t) for t in labels if t.numel())
        ):
            return walk.opaque(node, _tensors((args, kwargs)), f"{node.name}: it indexes with an activation")
    try:
        result = move(walk.space, target, args, kwargs, lambda: dims_of_heads(node))
    except NotImplementedError as error:
        return walk.opaque(node, _tensors((args, kwargs)), f"{node.name}: {error}")
    except (RuntimeError, IndexError, ValueError):
        name = str(target.overloadpacket)
        walk.unknown.setdefault(name, []).append(node.name)
        return walk.opaque(node, _tensors((args, kwargs)), f"{node.name}: {name} could not follow its channels")
    if op_of(node) is SECTIONS and is_sequence(result):
        _note_chunks(walk, node, args, kwargs)
    return result


def _is_stored(walk: TraceState, node: fx.Node) -> bool:
    """Tell whether a value follows from what the model holds alone, whatever its input."""
    waiting, seen = [node], {node}
    while waiting:
        current = waiting.pop()
        if current.name in walk.user_inputs:
            return False
        waiting += [source for source in current.all_input_nodes if source not in seen]
        seen.update(current.all_input_nodes)
    return True


def _note_chunks(walk: TraceState, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
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
    walk.partitions.append(EqualBlocks(vector.reshape(-1), parts, reason, hard=False))


def _tensors(nest: Any) -> list[Tensor]:
    return [leaf for leaf in leaves(nest) if isinstance(leaf, Tensor)]
