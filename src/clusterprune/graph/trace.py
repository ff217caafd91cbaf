"""From a model to the groups of channels that can be cut together."""

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from clusterprune.errors import ArgumentError, ModelError
from clusterprune.graph.channels import ChannelGraph
from clusterprune.graph.export import export, named_arguments
from clusterprune.graph.groups import find_groups
from clusterprune.graph.movement import IDENTITY, MOVEMENT, move
from clusterprune.graph.rules import RULES, pointwise
from clusterprune.graph.walk import Parameter, Partition, Walk

aten = torch.ops.aten
Example = Tensor | tuple[Any, ...] | Mapping[str, Any]


def trace(model: nn.Module, example: Example, *, ignore: Iterable[str] = ()) -> ChannelGraph:
    """Find which channels of a model belong together.

    The model is exported in evaluation mode with `torch.export` and walked once; every activation carries
    the labels of the channels that its elements belong to.

    Parameters
    ----------
    model
        Any module that `torch.export` can export. It is not changed.
    example
        One input: a tensor, a tuple of positional inputs, or a mapping of keyword inputs. Batch 1 is
        fastest. Only shapes, dtypes and devices matter.
    ignore
        Globs of group or layer names that must stay as they are, such as `"layer1.*"`.

    Raises
    ------
    TraceError
        If the model does not run on the example, or cannot be exported.
    ModelError
        If a weight holds NaN or infinity.

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
    args, kwargs = _inputs(example)
    _check_weights(model)
    exported = export(model, args, kwargs)
    inputs: dict[str, str] = {}
    constants: dict[str, Any] = {}
    named = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    shared = _shared_paths(named)
    for spec in exported.graph_signature.input_specs:
        target = spec.target
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and target in named:
            inputs[spec.arg.name] = shared[target]
        elif target is not None:
            constants[spec.arg.name] = exported.constants.get(target, exported.state_dict.get(target))
    walk, values = _walk(exported.graph, inputs, constants)
    groups = tuple(find_groups(walk, walk.calls))
    used = {path for node in exported.graph.nodes if node.users for path in [inputs.get(node.name)] if path}
    unused = tuple(name for name, _ in model.named_parameters() if name not in used)
    graph = ChannelGraph(
        model,
        args,
        kwargs,
        exported.graph,
        inputs,
        constants,
        groups,
        tuple(walk.calls),
        walk,
        values,
        walk.unknown,
        unused,
        exported.call_spec.out_spec,
    )
    return graph.freeze(ignore)


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


def _check_weights(model: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"the weight {name!r} holds NaN or infinity; clustering it would spread them. Load sound weights."
            )


def _shared_paths(named: Mapping[str, Tensor]) -> dict[str, str]:
    """Map every path to the first path of the same tensor (a module registered under two names)."""
    first: dict[int, str] = {}
    return {path: first.setdefault(id(tensor), path) for path, tensor in named.items()}


def _walk(graph: fx.Graph, inputs: Mapping[str, str], constants: Mapping[str, Any]) -> tuple[Walk, dict[str, Any]]:
    walk = Walk()
    values: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            value = node.meta.get("val")
            if node.name in inputs:
                values[node.name] = Parameter(inputs[node.name], tuple(value.shape))
            elif node.name in constants:
                values[node.name] = walk.opaque_like(value, f"{node.name}: a constant of the model")
            else:
                values[node.name] = walk.opaque_like(value, "the network's input")
        elif node.op == "call_function":
            values[node.name] = _call(walk, node, values)
        elif node.op == "output":
            for value in _tensors(fx.map_arg(node.args, lambda n: values[n.name])):
                walk.space.freeze(value, "it reaches the network's output")
        else:
            values[node.name] = walk.opaque_like(node.meta.get("val"), f"{node.name}: {node.op}")
    _attach_elements(walk)
    return walk, values


def _call(walk: Walk, node: fx.Node, values: Mapping[str, Any]) -> Any:
    """Propagate labels through one operation."""
    arguments: Any = fx.map_arg((tuple(node.args), dict(node.kwargs)), lambda n: values[n.name])
    args, kwargs = arguments
    target: Any = node.target
    if target is operator.getitem:
        return args[0][args[1]]
    packet = getattr(target, "overloadpacket", None)
    if packet in RULES:
        return RULES[packet](walk, node, named_arguments(node, args, kwargs))
    # Outside the layer rules a parameter is plain data, and its elements carry labels of their own.
    args, kwargs = _as_data(walk, (args, kwargs))
    tensors = _tensors((args, kwargs))
    if not tensors or "val" not in node.meta:
        return walk.opaque_like(node.meta.get("val"), f"{node.name}: a constant")
    if packet in IDENTITY:
        return tensors[0]
    if packet in MOVEMENT:
        return _move(walk, node, args, kwargs)
    if isinstance(node.meta["val"], Tensor) and _is_pointwise(target):
        return pointwise(walk, node, tensors)
    if all(walk.space.all_opaque(labels) for labels in tensors):
        return walk.opaque_like(node.meta["val"], f"{node.name}: it has no channels")
    name = str(packet or target)
    walk.unknown.setdefault(name, []).append(node.name)
    return walk.opaque(node, tensors, f"{node.name}: {name} has no rule")


UNTAGGED: frozenset[Any] = frozenset(
    packet
    for name in ["hardswish", "hardswish_", "rrelu_", "rsub", "log_sigmoid", "special_expit", "floor_divide"]
    if (packet := getattr(aten, name, None)) is not None
)
"""Operators that work element by element although PyTorch does not tag them so."""


def _is_pointwise(target: Any) -> bool:
    """Tell whether an operator works element by element (in-place twins do not always carry the tag)."""
    if torch.Tag.pointwise in target.tags or target.overloadpacket in UNTAGGED:
        return True
    twin = getattr(aten, target.overloadpacket.__name__.removesuffix("_"), None)
    return twin is not None and any(torch.Tag.pointwise in getattr(twin, o).tags for o in twin.overloads())


def _move(walk: Walk, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Execute a movement on labels; what cannot be executed freezes what it reads."""
    target: Any = node.target
    if target.overloadpacket is aten.index and not isinstance(args[0], Tensor):
        return walk.opaque(node, _tensors((args, kwargs)), f"{node.name}: it indexes with an activation")
    if any(
        t.numel() and not walk.space.all_opaque(t) for t in _tensors((args[1:], kwargs))
    ) and target.overloadpacket in (
        aten.index,
        aten.index_select,
    ):
        return walk.opaque(node, _tensors((args, kwargs)), f"{node.name}: it indexes with an activation")
    try:
        result = move(walk.space, target, args, kwargs)
    except (RuntimeError, IndexError, NotImplementedError, ValueError):
        name = str(target.overloadpacket)
        walk.unknown.setdefault(name, []).append(node.name)
        return walk.opaque(node, _tensors((args, kwargs)), f"{node.name}: {name} could not follow its channels")
    if target.overloadpacket in (aten.chunk, aten.split, aten.split_with_sizes) and isinstance(result, (list, tuple)):
        _note_chunks(walk, node, args, kwargs)
    return result


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


def _attach_elements(walk: Walk) -> None:
    """Bind the parameters that were used as plain data to the channels they met."""
    for path, labels in walk.elements.items():
        roots = torch.from_numpy(walk.space.roots(labels))
        varying = [d for d in range(roots.ndim) if roots.shape[d] > 1 and bool((roots != roots.narrow(d, 0, 1)).any())]
        if len(varying) != 1:
            walk.space.freeze(labels, f"{path} is used as data along more than one dimension")
            continue
        index = tuple(slice(None) if d == varying[0] else 0 for d in range(labels.ndim))
        walk.bind(Parameter(path, tuple(labels.shape)), varying[0], labels[index])


def _as_data(walk: Walk, nest: Any) -> Any:
    if isinstance(nest, Parameter):
        return walk.parameter_elements(nest)
    if isinstance(nest, (tuple, list)):
        return type(nest)(_as_data(walk, part) for part in nest)
    if isinstance(nest, dict):
        return {key: _as_data(walk, part) for key, part in nest.items()}
    return nest


def _tensors(nest: Any) -> list[Tensor]:
    if isinstance(nest, Tensor):
        return [nest]
    if isinstance(nest, (tuple, list)):
        return [t for part in nest for t in _tensors(part)]
    if isinstance(nest, dict):
        return [t for part in nest.values() for t in _tensors(part)]
    return []
