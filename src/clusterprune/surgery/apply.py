"""Apply a plan to a model: the only code that changes a network, and it changes a copy.

One rule: *producers keep the rows in `kept`; consumers' input weights become W · mixing, and their bias gains
W · offset.* :func:`masked_state` carries the rule out without cutting (removed columns are zero), and
:func:`compact_state` cuts what it returns. That the two agree is the library's central law.
"""

import functools
import warnings
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clusterprune.arguments import check_apply
from clusterprune.errors import PlanError, UntrainableWarning
from clusterprune.graph import ChannelGraph, Group, LayerCall, Use, trace
from clusterprune.graph.ops import CallEdit
from clusterprune.graph.program import Program, Ref, moved, named_tensors
from clusterprune.graph.rewrite import masked_norms, rewrite
from clusterprune.graph.throwaway import duplicate
from clusterprune.plan import Merge, Plan, describe_example, rebuild_example
from clusterprune.surgery.equivalence import Equivalence, State, random_state, turned
from clusterprune.surgery.history import Stage, add_stage
from clusterprune.surgery.rebuild import rebuild
from clusterprune.surgery.resize import owner_of, resize_module


def apply(model: nn.Module, plan: Plan, *, graph: ChannelGraph | None = None) -> nn.Module:
    """Return a smaller copy of a model.

    The copy is of the model's own class, with its layers resized, wherever the model's code still fits
    them. Code with sizes written into it (a padded shortcut with a fixed number of channels, a split into
    fixed parts) does not: then the copy is a `torch.fx.GraphModule` over the same, resized layers, with the
    same parameter names. Both train, export and save. Which one it became is in
    :func:`clusterprune.surgery.history.describe`.

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
    cut = cutter(graph, plan)
    state = cut.all(masked_state(graph, plan))
    removed = removed_labels(graph, plan)
    changes = with_new_biases(graph, state, rewrite(graph, removed))
    equivalence = _equivalence(graph, plan, state, cut)
    small = duplicate(model)
    attributes = resize_module(small, graph, state, changes)
    different = equivalence.differs(small, ("traced", "size and batch")) or equivalence.differs(small, ("training",))
    # A head that only training uses, and that no trace could follow, says nothing against the code of evaluation.
    rewired = bool(different) and not ("training" in different and graph.training_unknown is not None)
    untrainable = None
    if rewired:
        small, untrainable = rebuild(small, graph, changes, equivalence)
    elif different:
        untrainable = (
            f"{graph.training_unknown}. Leave the layers that it reads alone with ignore=, or take such heads out of "
            "the model"
        )
    if untrainable is not None:
        warnings.warn(f"{type(model).__name__} cannot be trained after this cut: {untrainable}", UntrainableWarning, 2)
    kept = {merge.group: [int(i) for i in merge.kept] for merge in plan.merges}
    added = sorted(state.keys() - named_tensors(graph).keys())
    listed = model.state_dict().keys()
    stage = Stage(
        rewired,
        attributes,
        kept,
        list(describe_example(graph)),
        added,
        approximate=graph.walk.allow_approximate,
        buffers=[p for p, buffer in model.named_buffers() if p not in listed and state[p].shape != buffer.shape],
        untrainable=untrainable,
    )
    return add_stage(small, model, stage)


def _equivalence(graph: ChannelGraph, plan: Plan, state: State, cut: "Cutter") -> Equivalence:
    """Prepare to compare cut modules with the masked original, on tensors that hide nothing."""
    bare = replace(plan, merges=tuple(Merge(merge.group, merge.kept) for merge in plan.merges), replaced={})
    named = named_tensors(graph)

    @functools.lru_cache(maxsize=1)  # of the largest models there is room for no more
    def first(dtype: torch.dtype | None, gain: float) -> tuple[State, State]:
        masked = random_state(named, dtype, gain)
        _mask(graph, bare, masked, masked)
        for path, bias in random_state({p: nn.Parameter(state[p]) for p in state.keys() - named.keys()}, dtype).items():
            _embed(graph, bare, masked, path, bias)
        return masked, cut.all(masked)

    def drawn(dtype: torch.dtype | None, draw: int, gain: float = 1.0) -> tuple[State, State]:
        masked, small = first(dtype, gain)
        return (turned(masked, named), turned(small, named)) if draw else (masked, small)

    def damped(dtype: torch.dtype | None, draw: int) -> tuple[State, State]:
        return drawn(dtype, draw, _DAMPED)

    def own(dtype: torch.dtype | None, draw: int) -> tuple[State, State]:  # noqa: ARG001 (there is one such)
        pair = masked_state(graph, plan), state
        masked, small = ({k: t.to(dtype) if dtype and t.is_floating_point() else t for k, t in s.items()} for s in pair)
        return masked, small

    norms = masked_norms(graph, removed_labels(graph, plan))
    if not norms:
        return Equivalence(graph, (drawn, damped, own), cut.all)

    def program(masked: State, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # The original's own norms cannot leave channels out of their statistics; those of its graph can.
        changed = with_new_biases(graph, masked, dict(norms))
        return Program(graph, changed, any_batch=False).run(masked, args, kwargs)

    return Equivalence(graph, (drawn, damped, own), cut.all, program)


_DAMPED = 0.6
"""Gain of kernels in networks so deep that with a gain of one they are chaotic."""


def masked_state(graph: ChannelGraph, plan: Plan) -> dict[str, Tensor]:
    """Return the model's tensors at full size, with the plan's effect: kernels mixed, removed columns zero.

    A bias that the plan makes necessary and the model lacks appears under its future path.
    """
    originals = named_tensors(graph)
    state = {path: t.detach().clone(memory_format=torch.contiguous_format) for path, t in originals.items()}
    _mask(graph, plan, state, {path: tensor.detach() for path, tensor in originals.items()})
    return state


def _mask(graph: ChannelGraph, plan: Plan, state: dict[str, Tensor], originals: State) -> None:
    """Carry a plan out on full-size tensors, in place. The originals may be the same tensors if nothing is mixed."""
    for merge in plan.merges:
        group = graph.by_name[merge.group]
        for use in group.consumers:
            if use.path in merge.mixing:
                _mix(state[use.path], originals[use.path], use, group, merge)
            else:
                _zero(state[use.path], use, np.delete(np.arange(group.width), merge.kept))
        for use in group.consumers:
            if use.path in merge.offset:
                gain = _gain(originals[use.path], use, merge.offset[use.path])
                _add_gain(graph, state, use.path, gain)
    for path, (length, dim) in graph.walk.gains.items():
        if path in originals:
            _keep_scale(state, originals[path], path, length, dim)
    for path, value in plan.replaced.items():
        _embed(graph, plan, state, path, value)


def _keep_scale(state: dict[str, Tensor], original: Tensor, path: str, length: str, dim: int) -> None:
    """Let the length of a normalised direction take up what its norm has lost, so that the kernel stays what it was."""

    def norm(direction: Tensor) -> Tensor:
        kept = direction.to(torch.promote_types(direction.dtype, torch.float32)).movedim(dim, 0).flatten(1).norm(dim=1)
        return kept.view([-1 if d == dim else 1 for d in range(direction.ndim)])

    ratio = norm(state[path]) / norm(original)
    state[length] = (state[length] * ratio.to(state[length].dtype)).contiguous()


def compact_state(graph: ChannelGraph, plan: Plan) -> dict[str, Tensor]:
    """Return the tensors of the smaller model, by path."""
    return cutter(graph, plan).all(masked_state(graph, plan))


def removed_labels(graph: ChannelGraph, plan: Plan) -> np.ndarray:
    """Return the root labels of all channels that a plan removes."""
    parts = [np.delete(graph.by_name[m.group].labels, m.kept) for m in plan.merges]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


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


def _zero(target: Tensor, use: Use, removed: np.ndarray) -> None:
    """Write zero into the columns of removed channels."""
    if use.groups == 1:
        target.movedim(use.dim, -1)[..., use.positions[removed].ravel()] = 0
        return
    rows, size = target.shape[0] // use.groups, target.shape[1]
    gone = use.positions[removed].ravel()
    for block in range(use.groups):
        target[block * rows : (block + 1) * rows, gone[gone // size == block] % size] = 0


def _mix(target: Tensor, original: Tensor, use: Use, group: Group, merge: Merge) -> None:
    """Write W · mixing into the kept columns of `target`, and zero into the removed ones."""
    mixing = merge.mixing[use.path].to(original.device, torch.promote_types(original.dtype, torch.float32))
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


class Cutter:
    """Cuts full-size tensors, by the path of each."""

    def __init__(
        self, removed: dict[tuple[str, int], np.ndarray], grouped: dict[str, Use], rows: dict[str, str]
    ) -> None:
        self._removed, self._grouped, self._rows = removed, grouped, rows
        self._kept: dict[tuple[str, int, torch.device], Tensor] = {}

    def __call__(self, path: str, tensor: Tensor) -> Tensor:
        """Return a tensor without what the plan removes from it."""
        # Columns of a grouped convolution must be cut while all its rows are there.
        grouped = self._grouped.get(path)
        if grouped is not None:
            tensor = _cut_grouped(tensor, self._removed[path, grouped.dim], grouped.groups)
        for dim in range(tensor.ndim):
            key = (path, dim) if path not in self._rows else (self._rows[path], 0)
            if key in self._removed and not (grouped is not None and dim == grouped.dim):
                tensor = tensor.index_select(dim, self._keep(key, tensor.shape[dim], tensor.device))
        return tensor.contiguous()

    def all(self, state: State) -> dict[str, Tensor]:
        """Return all tensors of a model without what the plan removes from them."""
        return {path: self(path, tensor) for path, tensor in state.items()}

    def _keep(self, key: tuple[str, int], width: int, device: torch.device) -> Tensor:
        place = (*key, device)
        if place not in self._kept:
            stays = np.ones(width, dtype=bool)
            stays[self._removed[key]] = False
            self._kept[place] = torch.from_numpy(np.flatnonzero(stays)).to(device)
        return self._kept[place]


def cutter(graph: ChannelGraph, plan: Plan) -> Cutter:
    """Return what cuts full-size tensors as a plan says."""
    removed: dict[tuple[str, int], list[np.ndarray]] = {}
    grouped: dict[str, Use] = {}
    for merge in plan.merges:
        group = graph.by_name[merge.group]
        gone = np.delete(np.arange(group.width), merge.kept)
        for use in group.uses:
            removed.setdefault((use.path, use.dim), []).append(use.positions[gone].ravel())
            if use.groups > 1:
                grouped[use.path] = use
    # A bias that did not exist is cut like the rows of its weight, and so is one that nobody adds (of a layer whose
    # weight alone is borrowed).
    rows = {
        home[1]: call.weight for call in graph.calls if (home := bias_home(graph, call.weight)) and home[0] == "new"
    }
    rows |= _unused_biases(graph)
    return Cutter({key: np.concatenate(parts) for key, parts in removed.items()}, grouped, rows)


def _unused_biases(graph: ChannelGraph) -> dict[str, str]:
    """Return the biases that neither evaluation nor training adds, each with the weight beside it."""
    layers = dict(graph.model.named_modules())
    found = {}
    for path in graph.unused:
        owner, _, name = path.rpartition(".")
        if name == "bias" and isinstance(layers.get(owner), (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            found[path] = f"{owner}.weight" if owner else "weight"
    return found


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
