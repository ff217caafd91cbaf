"""Rebuild a model from its graph, for models whose own code does not fit the cut any more."""

from collections.abc import Mapping
from itertools import count
from typing import Any

from torch import fx, nn
from torch.utils import _pytree as pytree

from clusterprune.graph import ChannelGraph
from clusterprune.graph.batch import call_with_batch, follow_batch
from clusterprune.graph.program import Ref
from clusterprune.graph.rewrite import Change
from clusterprune.resize import owner_of

_LAYERS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
    nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.PReLU,
)  # fmt: skip
_FORWARDS = frozenset(
    layer.forward for layer in (*_LAYERS, nn.BatchNorm2d, nn.InstanceNorm2d) if layer.forward is not nn.Module.forward
)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def graph_module(module: nn.Module, graph: ChannelGraph, changes: Mapping[str, Change]) -> fx.GraphModule:
    """Return a `GraphModule` over the (already resized) layers of `module`.

    Layers are called as modules, so batch norm and dropout train as they did, and parameters keep their
    names. Views are tied to the traced image size, and to the batch size only where the
    graph could not be followed to another one (see :mod:`clusterprune.graph.batch`).
    """
    rebuilt = fx.Graph()
    values: dict[str, Any] = {}
    constants: dict[str, str] = {}
    for node in graph.fx.nodes:
        if node.op == "placeholder":
            if node.name in graph.inputs:
                continue  # fetched where it is used, and not at all where a module uses it
            if node.name in graph.constants:
                constants[node.name] = next(n for i in count() if not hasattr(module, n := f"_constant_{i}"))
                module.register_buffer(constants[node.name], graph.constants[node.name], persistent=False)
                continue
            values[node.name] = rebuilt.placeholder(node.name)
        elif node.op == "output":
            rebuilt.output(_output(graph, node, values))
        else:
            values[node.name] = _call(rebuilt, module, graph, node, changes, values, constants)
    root = fx.GraphModule(module, rebuilt, class_name=type(module).__name__)
    root.train(module.training)
    return root


def _call(
    rebuilt: fx.Graph,
    module: nn.Module,
    graph: ChannelGraph,
    node: fx.Node,
    changes: Mapping[str, Change],
    values: dict[str, Any],
    constants: dict[str, str],
) -> fx.Node:
    def fetch(source: fx.Node) -> Any:
        if source.name in values:
            return values[source.name]
        if source.name in graph.inputs:
            return rebuilt.get_attr(graph.inputs[source.name])
        return rebuilt.get_attr(constants[source.name])

    if (path := _layer_of(module, graph, node)) is not None:
        return rebuilt.call_module(path, (values[node.args[0].name],))  # type: ignore[union-attr]
    if "dropout" in str(node.target) and (path := owner_of(node)) is not None:
        owner = module.get_submodule(path)
        if isinstance(owner, _DROPOUTS):
            return rebuilt.call_module(path, (values[node.args[0].name],))  # type: ignore[union-attr]
    target: Any = node.target
    if node.name in changes:
        change = changes[node.name]
        target, args, kwargs = change.target, change.args, change.kwargs
    else:
        args, kwargs = tuple(node.args), dict(node.kwargs)
    args = follow_batch(args, graph.batch_size.arguments.get(node.name))
    args = call_with_batch(rebuilt, next(n for n in rebuilt.nodes if n.op == "placeholder"), args)
    args, kwargs = fx.map_arg((args, kwargs), lambda n: n if n.graph is rebuilt else fetch(n))
    args = tuple(rebuilt.get_attr(a.name) if isinstance(a, Ref) else a for a in args)
    return rebuilt.call_function(target, args, kwargs)


def _layer_of(module: nn.Module, graph: ChannelGraph, node: fx.Node) -> str | None:
    """Return the path of the layer whose forward is this node: its own parameters, in one operation."""
    path = owner_of(node)
    if path is None or not isinstance(owner := module.get_submodule(path), _LAYERS):
        return None
    # A subclass may do more than its base (a norm that permutes first), and so may a padding mode.
    if type(owner).forward not in _FORWARDS or getattr(owner, "padding_mode", "zeros") != "zeros":
        return None
    first: dict[int, str] = {}
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    canonical = {name: first.setdefault(id(tensor), name) for name, tensor in named}
    prefix = f"{path}." if path else ""
    own = {canonical[prefix + name] for name, _ in [*owner.named_parameters(), *owner.named_buffers()]}
    stored = {graph.inputs[n.name] for n in node.all_input_nodes if n.name in graph.inputs}
    return path if stored and stored <= own else None


def _output(graph: ChannelGraph, node: fx.Node, values: Mapping[str, Any]) -> Any:
    flat = [values[leaf.name] if isinstance(leaf, fx.Node) else leaf for leaf in node.args[0]]  # type: ignore[union-attr]
    return pytree.tree_unflatten(flat, graph.out_spec)
