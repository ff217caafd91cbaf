"""Give a module's layers the shapes of a cut: new parameters, and the attributes that mention widths."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from clusterprune.graph import ChannelGraph
from clusterprune.graph.ops import CallEdit, layer_shapes, op_of

Attributes = dict[str, dict[str, Any]]


def resize_module(
    module: nn.Module, graph: ChannelGraph, state: Mapping[str, Tensor], changes: Mapping[str, CallEdit]
) -> Attributes:
    """Resize `module` in place to the tensors in `state`; return every attribute that was set, by module path."""
    attributes: Attributes = {}
    state = {**state, **_other_names(module, state)}
    depthwise = {path for path, owner in module.named_modules() if _is_depthwise(owner)}
    for path, owner in module.named_modules():
        shapes = {name.rpartition(".")[2]: t for name, t in state.items() if name.rpartition(".")[0] == path}
        if shapes:
            widths = layer_widths(owner, {n: tuple(t.shape) for n, t in shapes.items()}, depthwise=path in depthwise)
            changed = {name: value for name, value in widths.items() if getattr(owner, name, None) != value}
            if changed:
                attributes[path] = changed
    for name, change in changes.items():
        node = graph.nodes[name]
        op, path = op_of(node), owner_of(node)
        resize = None if op is None or path is None else op.resize
        if path is not None and resize is not None and (found := resize(module.get_submodule(path), change)):
            attributes.setdefault(path, {}).update(found)
    set_attributes(module, attributes)
    set_tensors(module, state)
    for path, owner in module.named_modules():
        # What a parametrization computes fits the cut as soon as what it computes from does.
        if not isinstance(parametrized := getattr(owner, "parametrizations", None), nn.ModuleDict):
            continue
        shapes = {name: tuple(getattr(owner, name).shape) for name in ("weight", "bias") if name in parametrized}
        widths = layer_widths(owner, shapes, depthwise=path in depthwise)
        changed = {name: value for name, value in widths.items() if getattr(owner, name, None) != value}
        if changed:
            attributes[path] = {**attributes.get(path, {}), **changed}
            set_attributes(module, {path: changed})
    return attributes


def _is_depthwise(layer: nn.Module) -> bool:
    """Tell whether every input channel of a (whole) layer is a group of its own."""
    groups = getattr(layer, "groups", 1)
    return isinstance(layer, nn.modules.conv._ConvNd) and groups > 1 and groups == layer.in_channels


def layer_widths(layer: nn.Module, shapes: Mapping[str, tuple[int, ...]], *, depthwise: bool) -> dict[str, Any]:
    """Return the width attributes that fit a layer's tensors."""
    weight, known = shapes.get("weight") or shapes.get("running_mean"), layer_shapes(layer)
    return {} if weight is None or known is None else known.widths(layer, tuple(weight), depthwise)


def fitting_shapes(layer: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes that a layer's own attributes ask of its tensors (nothing for layers not known)."""
    known = layer_shapes(layer)
    return {} if known is None else known.shapes(layer)


def _other_names(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of `state` that the module has under further paths, by those paths."""
    first: dict[int, str] = {}
    others = {}
    for path, tensor in module.named_parameters(remove_duplicate=False):
        source = first.setdefault(id(tensor), path)
        if source != path and source in state:
            others[path] = state[source]
    return others


def owner_of(node: Any) -> str | None:
    """Return the path of the innermost module whose forward ran a node."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return None
    path = list(stack.values())[-1][0]
    return path if isinstance(path, str) else None


def set_attributes(module: nn.Module, attributes: Mapping[str, Mapping[str, Any]]) -> None:
    """Set plain attributes of submodules by path."""
    for path, values in attributes.items():
        owner = module.get_submodule(path)
        for name, value in values.items():
            setattr(owner, name, tuple(value) if isinstance(value, list) else value)


def set_tensors(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Replace parameters and buffers by path; tensors that were shared stay shared."""
    named = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    first: dict[int, str] = {}
    new: dict[str, Tensor] = {}
    for path, old in named.items():
        source = first.setdefault(id(old), path)
        if source not in new and source in state:
            value = state[source].detach().clone()
            new[source] = (
                nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
            )
        if source in new:
            _set(module, path, new[source])
    for path in state.keys() - named.keys():
        _set(module, path, nn.Parameter(state[path].detach().clone()))


def _set(module: nn.Module, path: str, value: Tensor) -> None:
    owner, _, name = path.rpartition(".")
    target = module.get_submodule(owner) if owner else module
    if isinstance(value, nn.Parameter):
        target.register_parameter(name, value)
    else:
        target._buffers[name] = value
