"""A plan carried out on full-size tensors: kernels mixed, removed columns zero, what is refitted in its places."""

import numpy as np
import torch
from torch import Tensor

from clusterprune.errors import PlanError
from clusterprune.graph import ChannelGraph, Group, ParameterSlice
from clusterprune.graph.program import named_tensors
from clusterprune.plan import Merge, Plan
from clusterprune.surgery.bias_homes import bias_home
from clusterprune.surgery.cutting import cutter
from clusterprune.surgery.random_tensors import State


def masked_state(graph: ChannelGraph, plan: Plan) -> dict[str, Tensor]:
    """Return the model's tensors at full size, with the plan's effect: kernels mixed, removed columns zero.

    A bias that the plan makes necessary and the model lacks appears under its future path.
    """
    originals = named_tensors(graph)
    state = {path: t.detach().clone(memory_format=torch.contiguous_format) for path, t in originals.items()}
    mask(graph, plan, state, {path: tensor.detach() for path, tensor in originals.items()})
    return state


def compact_state(graph: ChannelGraph, plan: Plan) -> dict[str, Tensor]:
    """Return the tensors of the smaller model, by path."""
    return cutter(graph, plan).all(masked_state(graph, plan))


def mask(graph: ChannelGraph, plan: Plan, state: dict[str, Tensor], originals: State) -> None:
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
        embed(graph, plan, state, path, value)


def _keep_scale(state: dict[str, Tensor], original: Tensor, path: str, length: str, dim: int) -> None:
    """Let the length of a normalised direction take up what its norm has lost, so that the kernel stays what it was."""

    def norm(direction: Tensor) -> Tensor:
        kept = direction.to(torch.promote_types(direction.dtype, torch.float32)).movedim(dim, 0).flatten(1).norm(dim=1)
        return kept.view([-1 if d == dim else 1 for d in range(direction.ndim)])

    ratio = norm(state[path]) / norm(original)
    state[length] = (state[length] * ratio.to(state[length].dtype)).contiguous()


def _zero(target: Tensor, use: ParameterSlice, removed: np.ndarray) -> None:
    """Write zero into the columns of removed channels."""
    if use.groups == 1:
        target.movedim(use.dim, -1)[..., use.positions[removed].ravel()] = 0
        return
    rows, size = target.shape[0] // use.groups, target.shape[1]
    gone = use.positions[removed].ravel()
    for block in range(use.groups):
        target[block * rows : (block + 1) * rows, gone[gone // size == block] % size] = 0


def _mix(target: Tensor, original: Tensor, use: ParameterSlice, group: Group, merge: Merge) -> None:
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


def _gain(original: Tensor, use: ParameterSlice, offset: Tensor) -> Tensor:
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


def _blocks_of(use: ParameterSlice, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
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


def embed(graph: ChannelGraph, plan: Plan, state: dict[str, Tensor], path: str, value: Tensor) -> None:
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
