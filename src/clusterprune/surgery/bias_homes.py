"""Where a constant that is added to a layer's output can be taken up."""

import weakref
from collections.abc import Mapping

from torch import Tensor, nn

from clusterprune.graph import ChannelGraph, LayerCall
from clusterprune.graph.ops import CallEdit
from clusterprune.graph.program import Ref
from clusterprune.surgery.resize import owner_of

_HOMES: weakref.WeakKeyDictionary[ChannelGraph, dict[str, tuple[str, str] | None]] = weakref.WeakKeyDictionary()


def bias_home(graph: ChannelGraph, weight: str) -> tuple[str, str] | None:
    """Say where a layer can take up a constant added to its output.

    Returns
    -------
    ("add", path) for its own bias, ("subtract", path) for the running mean of the batch norm that alone
    follows it, ("new", path) for a bias that its module can be given, or None where there is no place.
    """
    homes = _HOMES.get(graph)
    if homes is None:
        homes = _HOMES[graph] = _find_homes(graph)
    return homes.get(weight)  # a layer that only training applies has none


def _find_homes(graph: ChannelGraph) -> dict[str, tuple[str, str] | None]:
    """Return the home of a constant for every layer, by the path of its weight."""
    calls: dict[str, list[LayerCall]] = {}
    for call in graph.calls:
        calls.setdefault(call.weight, []).append(call)
    users: dict[str, set[str]] = {}
    for name, path in graph.inputs.items():
        users.setdefault(path, set()).update(user.name for user in graph.nodes[name].users)
    owners: dict[str, set[str]] = {}
    for path, canonical in _names(graph).items():
        owners.setdefault(canonical, set()).add(path.rpartition(".")[0])
    return {weight: _find_home(graph, found, users, owners) for weight, found in calls.items()}


def _find_home(
    graph: ChannelGraph,
    calls: list[LayerCall],
    users: Mapping[str, set[str]],
    owners: Mapping[str, set[str]],
) -> tuple[str, str] | None:
    call = calls[0]
    if any(other.computed for other in calls):
        return None  # what a constant gives is told by the kernel, which is not stored
    if call.overlaps:
        return None  # the overlap of its kernels makes the gain vary in space
    if any(other.bias != call.bias for other in calls):
        return None  # tied weights with different biases
    if call.bias is not None:
        # A bias that somebody else adds too would carry the constant there.
        return ("add", call.bias) if users[call.bias] == {other.node for other in calls} else None
    norm = graph.norm_behind.get(call.node)
    if len(calls) == 1 and norm is not None:
        return ("subtract", norm.mean) if norm.mean is not None and users[norm.mean] == {norm.name} else None
    owner = call.weight.rpartition(".")[0]
    if len(owners.get(call.weight, ())) > 1:
        return None  # tied weights: a bias on one of the modules is none on the others
    module = graph.model.get_submodule(owner) if owner else graph.model
    if any(owner_of(graph.nodes[other.node]) != owner for other in calls):
        return None  # the weight is borrowed: whoever uses it does not ask its module for a bias
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    return ("new", f"{owner}.bias" if owner else "bias") if isinstance(module, kinds) else None


def _names(graph: ChannelGraph) -> dict[str, str]:
    """Map every path of every parameter to the first path of the same tensor."""
    first: dict[int, str] = {}
    named = graph.model.named_parameters(remove_duplicate=False)
    return {path: first.setdefault(id(tensor), path) for path, tensor in named}


def with_new_biases(
    graph: ChannelGraph, state: Mapping[str, Tensor], changes: dict[str, CallEdit]
) -> dict[str, CallEdit]:
    """Give the calls of layers that got a bias that bias."""
    changes = dict(changes)
    for call in graph.calls:
        home = bias_home(graph, call.weight) if call.bias is None else None
        if home is None or home[0] != "new" or home[1] not in state:
            continue
        node = graph.nodes[call.node]
        change = changes.get(call.node, CallEdit(node.target, tuple(node.args), dict(node.kwargs)))
        # Input, weight and bias come first in every convolution and linear layer.
        args = (*change.args[:2], Ref(home[1]), *change.args[3:])
        changes[call.node] = CallEdit(change.target, args, change.kwargs)
    return changes
