# pyright: reportUnknownMemberType=false
"""Regions of another precision or gradient mode inside a forward, written out as plain operations.

`torch.export` keeps such a region as one operator that holds a graph of its own. What a region does to gradients is
no matter of channels. What it does to precision is a cast in front of some operations, and as such it is written down.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import HigherOrderOperator, OpOverload
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from clusterprune.errors import TraceError

aten = torch.ops.aten
_AUTOCAST = "wrap_with_autocast"
_GRADIENTS = "wrap_with_set_grad_enabled"


def flatten_regions(module: fx.GraphModule) -> fx.Graph:
    """Return the graph of an exported module with the operations of its regions in their place.

    Raises
    ------
    TraceError
        If the graph holds another operator that runs graphs, such as a branch or a loop.
    """
    higher = [node for node in module.graph.nodes if isinstance(node.target, HigherOrderOperator)]
    if not higher:
        return module.graph
    graph = fx.Graph()
    graph.output(_inline(graph, module, {}, None))
    return graph


def _inline(
    graph: fx.Graph,
    module: fx.GraphModule,
    values: dict[fx.Node, Any],
    cast: Callable[[fx.Node], dict[int, torch.dtype]] | None,
) -> Any:
    """Copy a module's operations into a graph; return its outputs. `values` holds the inputs of an inner one."""
    for node in module.graph.nodes:
        if node.op == "output":
            return fx.map_arg(node.args[0], values.__getitem__)
        if node in values:
            continue
        if node.op == "get_attr" and isinstance(getattr(module, str(node.target), None), fx.GraphModule):
            continue  # a region, which is written out where it is run
        if node.target is aten._assert_tensor_metadata.default:
            continue  # what it says is true of the trace, and in nobody's way
        if not isinstance(node.target, HigherOrderOperator):
            values[node] = graph.node_copy(node, values.__getitem__)
            if cast is not None and node.op == "call_function":
                _cast_arguments(graph, values[node], cast(node))
            continue
        kind = node.target.name()
        given = list(node.args)
        if kind == _AUTOCAST:
            device, dtype, enabled, _, region, *inputs = given
            inner = _casts_of(str(device), dtype) if enabled else None
        elif kind == _GRADIENTS:
            _, region, *inputs = given
            inner = cast
        else:
            raise TraceError(
                f"the forward runs {kind} ({node.name}), which holds graphs of its own (a branch or a loop over "
                "tensors): a cut cannot follow all of them. Move it out of forward, or trace the parts alone."
            )
        body = getattr(module, str(region.target))  # type: ignore[union-attr]
        places = [n for n in body.graph.nodes if n.op == "placeholder"]
        arguments = {place: values[source] for place, source in zip(places, inputs, strict=True)}  # type: ignore[index]
        made: Any = _inline(graph, body, arguments, inner)
        values |= {user: made[user.args[1]] for user in node.users}
    raise AssertionError("a graph has an output")


def _cast_arguments(graph: fx.Graph, node: fx.Node, dtypes: dict[int, torch.dtype]) -> None:
    """Put casts in front of an operation; `dtypes` says which of its arguments, flattened, become what."""
    leaves, structure = pytree.tree_flatten((node.args, node.kwargs))
    for index, dtype in dtypes.items():
        source = leaves[index]
        with graph.inserting_before(node):
            leaves[index] = graph.call_function(aten.to.dtype, (source, dtype))
        leaves[index].meta = {"val": source.meta["val"].to(dtype)}
        if "nn_module_stack" in node.meta:
            leaves[index].meta["nn_module_stack"] = node.meta["nn_module_stack"]
    if dtypes:
        node.args, node.kwargs = pytree.tree_unflatten(leaves, structure)


def _casts_of(device: str, dtype: torch.dtype) -> Callable[[fx.Node], dict[int, torch.dtype]]:
    """Return a function that tells which arguments of an operation autocast would cast, and to what."""

    def casts(node: fx.Node) -> dict[int, torch.dtype]:
        leaves, structure = pytree.tree_flatten((node.args, node.kwargs))
        given: list[Any] = [leaf.meta.get("val") if isinstance(leaf, fx.Node) else leaf for leaf in leaves]
        tensors = {i: t for i, t in enumerate(given) if isinstance(t, Tensor) and t.is_floating_point()}
        target: Any = node.target
        if not tensors or not isinstance(target, OpOverload):
            return {}
        mode = next(iter(tensors.values())).fake_mode  # type: ignore[attr-defined]

        def run(values: list[Any]) -> Any:
            args, kwargs = pytree.tree_unflatten(values, structure)
            return pytree.tree_leaves(target(*args, **kwargs))

        with mode, _Casts() as seen, torch.autocast(device, dtype, cache_enabled=False):
            wanted = [leaf.dtype for leaf in run(given) if isinstance(leaf, Tensor)]
        found = {i: seen.dtypes[id(t)] for i, t in tensors.items() if id(t) in seen.dtypes}
        # Where the operation is made of others, what is cast inside is not one of its arguments: then all are.
        for attempt in (found, dict.fromkeys(tensors, dtype)):
            with mode, torch.autocast(device, enabled=False):
                cast: list[Any] = [v.to(attempt[i]) if i in attempt else v for i, v in enumerate(given)]
                try:
                    got = [leaf.dtype for leaf in run(cast) if isinstance(leaf, Tensor)]
                except RuntimeError:
                    continue
            if got == wanted:
                return {i: to for i, to in attempt.items() if tensors[i].dtype != to}
        return found

    return casts


class _Casts(TorchDispatchMode):
    """Remembers which tensors are cast, and to what."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: dict[int, torch.dtype] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        kwargs = kwargs or {}
        if func is aten._to_copy.default and "dtype" in kwargs:
            self.dtypes.setdefault(id(args[0]), kwargs["dtype"])
        return func(*args, **kwargs)
