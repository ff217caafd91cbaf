"""Apply a plan to a model: the only code that changes a network, and it changes a copy.

One rule: *producers keep the rows in `kept`; consumers' input weights become W · mixing, and their bias gains
W · offset.* :func:`masked_state` carries the rule out without cutting (removed columns are zero), and
:func:`compact_state` cuts what it returns. That the two agree is the library's central law.
"""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from clusterprune.arguments import check_apply
from clusterprune.errors import PlanError
from clusterprune.graph import ChannelGraph, Group, Use, trace
from clusterprune.graph.program import Program, Ref, moved
from clusterprune.graph.rewrite import Change, masked_norms, rewrite
from clusterprune.plans import Merge, Plan, describe_example, rebuild_example
from clusterprune.rebuild import graph_module
from clusterprune.record import Stage, add_stage
from clusterprune.resize import owner_of, resize_module

_TOLERANCE = 1e-3
"""Largest difference, relative to the largest output, at which a model's own code counts as still fitting."""


def apply(model: nn.Module, plan: Plan, *, graph: ChannelGraph | None = None) -> nn.Module:
    """Return a smaller copy of a model.

    The copy is of the model's own class, with its layers resized, wherever the model's code still fits
    them. Code with sizes written into it (a padded shortcut with a fixed number of channels, a split into
    fixed parts) does not: then the copy is a `torch.fx.GraphModule` over the same, resized layers, with the
    same parameter names. Both train, export and save. Which one it became is in
    :func:`clusterprune.record.describe`.

    Parameters
    ----------
    model
        The model that the plan was made for; never changed.
    plan
        What to keep and what to hand over.
    graph
        The model's graph, if it is at hand; otherwise, or if the model has moved to another device since, it is
        traced again.

    Raises
    ------
    PlanError
        If the plan belongs to another model or asks for an impossible cut.
    ArgumentError, ModelError
        If an argument is of another type, or two are swapped.
    """
    check_apply(model, plan, graph)
    if graph is None or graph.model is not model or moved(graph) is not None:
        graph = trace(model, rebuild_example(plan.example), approximate=plan.approximate)
    plan.check(graph)
    masked = masked_state(graph, plan)
    state = _cut_state(graph, plan, masked)
    removed = removed_labels(graph, plan)
    changes = with_new_biases(graph, state, rewrite(graph, removed))
    # The whole network with its channels masked is the truth that the cut one has to meet.
    whole = Program(graph, with_new_biases(graph, masked, masked_norms(graph, removed)), any_batch=False)
    expected = _leaves(_run_program(whole, masked, graph))
    small = copy.deepcopy(model)
    attributes = resize_module(small, graph, state, changes)
    rewired = not _fits(small, graph, expected)
    if rewired:
        small = graph_module(small, graph, changes)
        if not _fits(small, graph, expected):
            raise PlanError(
                f"{type(model).__name__} cannot be rebuilt after this cut; leave groups alone with ignore= until it "
                f"can, starting with {', '.join(merge.group for merge in plan.merges[:3])}"
            )
    kept = {merge.group: [int(i) for i in merge.kept] for merge in plan.merges}
    added = sorted(state.keys() - named_tensors(graph).keys())
    stage = Stage(
        rewired, attributes, kept, list(describe_example(graph)), added, approximate=graph.walk.allow_approximate
    )
    return add_stage(small, model, stage)


def masked_state(graph: ChannelGraph, plan: Plan) -> dict[str, Tensor]:
    """Return the model's tensors at full size, with the plan's effect: kernels mixed, removed columns zero.

    A bias that the plan makes necessary and the model lacks appears under its future path.
    """
    state = {
        path: tensor.detach().clone(memory_format=torch.contiguous_format)
        for path, tensor in named_tensors(graph).items()
    }
    originals = {path: state[path].clone() for path in {use.path for g in graph.groups for use in g.consumers}}
    for merge in plan.merges:
        group = graph.by_name[merge.group]
        for use in group.consumers:
            _mix(state[use.path], originals[use.path], use, group, merge)
        for use in group.consumers:
            if use.path in merge.offset:
                gain = _gain(originals[use.path], use, merge.offset[use.path])
                _add_gain(graph, state, use.path, gain)
    for path, value in plan.replaced.items():
        _embed(graph, plan, state, path, value)
    return state


def compact_state(graph: ChannelGraph, plan: Plan) -> dict[str, Tensor]:
    """Return the tensors of the smaller model, by path."""
    return _cut_state(graph, plan, masked_state(graph, plan))


def _cut_state(graph: ChannelGraph, plan: Plan, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    cut = cutter(graph, plan)
    return {path: cut(path, tensor) for path, tensor in state.items()}


def removed_labels(graph: ChannelGraph, plan: Plan) -> np.ndarray:
    """Return the root labels of all channels that a plan removes."""
    parts = [np.delete(graph.by_name[m.group].labels, m.kept) for m in plan.merges]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def named_tensors(graph: ChannelGraph) -> dict[str, Tensor]:
    """Return every parameter and buffer of the traced model by path (each tensor under its first path)."""
    return {**dict(graph.model.named_parameters()), **dict(graph.model.named_buffers())}


def bias_home(graph: ChannelGraph, weight: str) -> tuple[str, str] | None:
    """Say where a layer can take up a constant added to its output.

    Returns
    -------
    ("add", path) for its own bias, ("subtract", path) for the running mean of the batch norm that alone
    follows it, ("new", path) for a bias that its module can be given, or None where there is no place.
    """
    calls = [call for call in graph.calls if call.weight == weight]
    if not calls:
        return None  # only training applies the layer
    call = calls[0]
    if call.kind == "conv_transpose":
        return None  # the overlap of its kernels makes the gain vary in space
    if any(other.bias != call.bias for other in calls):
        return None  # tied weights with different biases
    if call.bias is not None:
        # A bias that somebody else adds too would carry the constant there.
        return ("add", call.bias) if _users(graph, call.bias) == {other.node for other in calls} else None
    node = next(node for node in graph.fx.nodes if node.name == call.node)
    users = list(node.users)
    if len(calls) == 1 and len(users) == 1 and "batch_norm" in str(users[0].target):
        mean = users[0].args[3] if len(users[0].args) > 3 else users[0].kwargs.get("running_mean")
        if mean is None or mean.name not in graph.inputs:
            return None
        path = graph.inputs[mean.name]
        return ("subtract", path) if _users(graph, path) == {users[0].name} else None
    owner = call.weight.rpartition(".")[0]
    if len({path.rpartition(".")[0] for path, canonical in _names(graph).items() if canonical == call.weight}) > 1:
        return None  # tied weights: a bias on one of the modules is none on the others
    module = graph.model.get_submodule(owner) if owner else graph.model
    made = {other.node for other in calls}
    if any(owner_of(node) != owner for node in graph.fx.nodes if node.name in made):
        return None  # the weight is borrowed: whoever uses it does not ask its module for a bias
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    return ("new", f"{owner}.bias" if owner else "bias") if isinstance(module, kinds) else None


def _users(graph: ChannelGraph, path: str) -> set[str]:
    """Return the nodes that read a parameter or buffer."""
    return {user.name for node in graph.fx.nodes if graph.inputs.get(node.name) == path for user in node.users}


def _names(graph: ChannelGraph) -> dict[str, str]:
    """Map every path of every parameter to the first path of the same tensor."""
    first: dict[int, str] = {}
    named = graph.model.named_parameters(remove_duplicate=False)
    return {path: first.setdefault(id(tensor), path) for path, tensor in named}


def with_new_biases(graph: ChannelGraph, state: Mapping[str, Tensor], changes: dict[str, Change]) -> dict[str, Change]:
    """Give the calls of layers that got a bias that bias."""
    nodes = {node.name: node for node in graph.fx.nodes}
    changes = dict(changes)
    for call in graph.calls:
        home = bias_home(graph, call.weight) if call.bias is None else None
        if home is None or home[0] != "new" or home[1] not in state:
            continue
        node = nodes[call.node]
        change = changes.get(call.node, Change(node.target, tuple(node.args), dict(node.kwargs)))
        # Input, weight and bias come first in every convolution and linear layer.
        args = (*change.args[:2], Ref(home[1]), *change.args[3:])
        changes[call.node] = Change(change.target, args, change.kwargs)
    return changes


def _blocks_of(use: Use, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each block of a grouped convolution: the channels it reads, and their columns (channels, times)."""
    where, column = use.positions // size, use.positions % size
    blocks = []
    for block in range(use.groups):
        inside = where == block
        channels = np.flatnonzero(inside.any(axis=1))
        times = inside[channels].sum(axis=1)
        if len(set(times.tolist())) > 1:
            raise PlanError(
                f"{use.path}: its groups read some channels more often than others; leave their group alone"
            )
        blocks.append((channels, column[channels][inside[channels]].reshape(len(channels), -1)))
    return blocks


def _mixing(use: Use, group: Group, merge: Merge, like: Tensor) -> Tensor:
    mixing = merge.mixing.get(use.path)
    if mixing is None:
        mixing = torch.zeros(group.width, len(merge.kept))
        mixing[torch.from_numpy(merge.kept), torch.arange(len(merge.kept))] = 1
    return mixing.to(like.device, torch.promote_types(like.dtype, torch.float32))


def _mix(target: Tensor, original: Tensor, use: Use, group: Group, merge: Merge) -> None:
    """Write W · mixing into the kept columns of `target`, and zero into the removed ones."""
    mixing = _mixing(use, group, merge, original)
    removed = np.delete(np.arange(group.width), merge.kept)
    if use.groups == 1:
        source, sink = original.movedim(use.dim, -1), target.movedim(use.dim, -1)
        mixed = [
            (source[..., use.positions[:, t]].to(mixing.dtype) @ mixing).to(target.dtype)
            for t in range(use.positions.shape[1])
        ]
        sink[..., use.positions[removed].ravel()] = 0
        for t, part in enumerate(mixed):
            sink[..., use.positions[merge.kept, t]] = part
        return
    size = original.shape[1]
    rows = original.shape[0] // use.groups
    kept_set = np.zeros(group.width, dtype=bool)
    kept_set[merge.kept] = True
    for block, (channels, columns) in enumerate(_blocks_of(use, size)):
        keep = kept_set[channels]
        inside = torch.from_numpy(np.isin(merge.kept, channels))
        if bool(mixing[channels][:, ~inside].any()):
            raise PlanError(f"mixing of {merge.group!r} for {use.path} joins channels of different convolution groups")
        part = slice(block * rows, (block + 1) * rows)
        source = original[part].movedim(1, -1).to(mixing.dtype)
        sink = target[part].movedim(1, -1)
        sink[..., columns.ravel()] = 0
        for place in columns.T:
            sink[..., place[keep]] = (source[..., place] @ mixing[channels][:, inside]).to(target.dtype)


def _gain(original: Tensor, use: Use, offset: Tensor) -> Tensor:
    """Return what a constant input `offset` adds to every output: W · offset, summed over the kernel."""
    dtype = torch.promote_types(original.dtype, torch.float32)
    offset = offset.to(original.device, dtype)
    if use.groups == 1:
        weight = original.movedim(use.dim, -1).to(dtype)
        total = torch.stack([weight[..., place] @ offset for place in use.positions.T]).sum(0)
        return total.flatten(1).sum(1) if total.ndim > 1 else total
    rows = original.shape[0] // use.groups
    gains = []
    for block, (channels, columns) in enumerate(_blocks_of(use, original.shape[1])):
        weight = original[block * rows : (block + 1) * rows].movedim(1, -1).to(dtype)
        read = weight[..., columns.ravel()].unflatten(-1, columns.shape).sum(-1)
        gains.append((read @ offset[channels]).flatten(1).sum(1))
    return torch.cat(gains)


def _add_gain(graph: ChannelGraph, state: dict[str, Tensor], weight: str, gain: Tensor) -> None:
    home = bias_home(graph, weight)
    if home is None:
        raise PlanError(f"{weight.removesuffix('.weight')} has no bias that could take up an offset; give it no offset")
    kind, path = home
    if kind == "new" and path not in state:
        state[path] = torch.zeros_like(gain, dtype=state[weight].dtype)
    state[path] += (-gain if kind == "subtract" else gain).to(state[path].dtype)


def cutter(graph: ChannelGraph, plan: Plan) -> Any:
    """Return a function that cuts a full-size tensor, given its path."""
    removed: dict[tuple[str, int], list[np.ndarray]] = {}
    grouped: dict[str, Use] = {}
    for merge in plan.merges:
        group = graph.by_name[merge.group]
        gone = np.delete(np.arange(group.width), merge.kept)
        for use in group.uses:
            removed.setdefault((use.path, use.dim), []).append(use.positions[gone].ravel())
            if use.groups > 1:
                grouped[use.path] = use
    added = {
        home[1]: call.weight for call in graph.calls if (home := bias_home(graph, call.weight)) and home[0] == "new"
    }

    def cut(path: str, tensor: Tensor) -> Tensor:
        for dim in range(tensor.ndim):
            # A bias that did not exist is cut like the rows of its weight.
            key = (path, dim) if path not in added else (added[path], 0)
            if key not in removed:
                continue
            gone = np.concatenate(removed[key])
            if path in grouped and dim == grouped[path].dim:
                tensor = _cut_grouped(tensor, gone, grouped[path].groups)
            else:
                keep = np.setdiff1d(np.arange(tensor.shape[dim]), gone)
                tensor = tensor.index_select(dim, torch.from_numpy(keep).to(tensor.device))
        return tensor.contiguous()

    # Columns of a grouped convolution must be cut while all its rows are there.
    def ordered(path: str, tensor: Tensor) -> Tensor:
        if path not in grouped:
            return cut(path, tensor)
        gone = np.concatenate(removed[path, 1])
        tensor = _cut_grouped(tensor, gone, grouped[path].groups)
        if (path, 0) in removed:
            keep = np.setdiff1d(np.arange(tensor.shape[0]), np.concatenate(removed[path, 0]))
            tensor = tensor.index_select(0, torch.from_numpy(keep).to(tensor.device))
        return tensor.contiguous()

    return ordered


def _cut_grouped(tensor: Tensor, gone: np.ndarray, groups: int) -> Tensor:
    size, rows = tensor.shape[1], tensor.shape[0] // groups
    parts = []
    for block in range(groups):
        columns = np.setdiff1d(np.arange(size), gone[gone // size == block] % size)
        parts.append(tensor[block * rows : (block + 1) * rows, torch.from_numpy(columns).to(tensor.device)])
    return torch.cat(parts)


def _embed(graph: ChannelGraph, plan: Plan, state: dict[str, Tensor], path: str, value: Tensor) -> None:
    """Write a refitted, already cut tensor into its places in the full-size one."""
    home = None
    if path not in state:
        homes = {h[1]: c.weight for c in graph.calls if (h := bias_home(graph, c.weight)) and h[0] == "new"}
        home = homes.get(path)
        if home is None:
            raise PlanError(f"the plan replaces {path!r}, which this model does not have")
        state[path] = torch.zeros(named_tensors(graph)[home].shape[0], dtype=value.dtype, device=state[home].device)
    full = state[path]
    origin = cutter(graph, plan)(path, torch.arange(full.numel()).view(full.shape))
    if origin.shape != value.shape:
        raise PlanError(f"the plan's {path} has shape {tuple(value.shape)}, but the cut leaves {tuple(origin.shape)}")
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise PlanError(f"the plan's {path} holds NaN or infinity")
    full.view(-1)[origin.view(-1).to(full.device)] = value.reshape(-1).to(full.device, full.dtype)


def _probe(graph: ChannelGraph) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the example with its floating-point tensors replaced by noise, so that errors cannot hide in zeros."""
    generator = torch.Generator().manual_seed(0)

    def noise(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return torch.randn(value.shape, generator=generator).to(value.device, value.dtype)
        return value

    return tuple(noise(a) for a in graph.args), {k: noise(v) for k, v in graph.kwargs.items()}


def _run_program(program: Program, state: Mapping[str, Tensor], graph: ChannelGraph) -> Any:
    args, kwargs = _probe(graph)
    with torch.no_grad():
        return program.run(state, args, kwargs)


def _leaves(nest: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(nest) if isinstance(leaf, Tensor)]


def _fits(small: nn.Module, graph: ChannelGraph, expected: list[Tensor]) -> bool:
    """Tell whether a module computes what the cut graph computes."""
    args, kwargs = _probe(graph)
    modes = {module: module.training for module in small.modules()}
    small.eval()
    try:
        with torch.no_grad():
            actual = _leaves(small(*args, **kwargs))
    except Exception:  # whatever the model's own code raises when its widths change
        return False
    finally:
        for module, mode in modes.items():
            module.training = mode
    if [a.shape for a in actual] != [e.shape for e in expected]:
        return False
    return all(_close(a, e) for a, e in zip(actual, expected, strict=True))


def _close(actual: Tensor, expected: Tensor) -> bool:
    if not actual.is_floating_point():
        return bool((actual == expected).all())
    scale = float(expected.abs().nan_to_num().max()) if expected.numel() else 0.0
    return torch.allclose(actual, expected, rtol=0, atol=_TOLERANCE * scale + 1e-12, equal_nan=True)
