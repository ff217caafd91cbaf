# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Channel addition: remove channels that repeat others, at no loss (CP Eq. 8, and its scaled form).

Two channels that are made and carried by equal parameters are equal for every input. One of them is enough, if the
next layers read it with the sum of both columns: W′[:, m] = W[:, m] + W[:, n].
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, fx, nn

from clusterprune.errors import PlanError
from clusterprune.graph import ChannelGraph, Group, ParameterSlice
from clusterprune.graph.ops import op_of
from clusterprune.graph.program import Program, named_tensors
from clusterprune.merge.assign import add
from clusterprune.plan import Merge, Plan

aten = torch.ops.aten

_PROPORTIONAL = 1e-6
"""Largest distance of two directions (unit vectors) that count as one: a few roundings of float32."""

_EQUAL = 1e-4
"""Largest difference, relative to the largest value, of two activations that count as equal."""


def channel_addition(model: nn.Module, graph: ChannelGraph, *, scaled: bool = False) -> Plan:
    """Plan the removal of every channel that repeats another, at no loss.

    Channels are equal if their filters, biases and batch norms are, bit for bit, and they are read alike.

    Parameters
    ----------
    model, graph
        A network and its graph.
    scaled
        Also merge a channel that is a > 0 times another, after folding its batch norm: W′[:, m] += a · W[:, n].
        Exact where only ReLU and pooling stand between it and the layers that read it; others stay.

    Raises
    ------
    PlanError
        If the graph is that of another network.
    """
    if graph.model is not model:
        raise PlanError("graph belongs to another network than model; trace the model again")
    tensors = named_tensors(graph)
    found: list[_Repeats] = []
    for group in graph.prunable:
        repeats = _identical(tensors, group)
        if scaled and (folded := _folded(graph, tensors, group)) is not None:
            repeats = _proportional(repeats, folded)
        if (repeats.representative != np.arange(group.width)).any():
            found.append(repeats)
    found = _confirmed(graph, found)
    merges = tuple(merge for repeats in found if (merge := _merge(repeats)) is not None)
    return replace(Plan.of(graph, merges), notes={"method": "channel addition", "scaled": scaled})


class _Repeats:
    """For each channel of a group the channel that it repeats (itself if none), and how many times as strong it is."""

    def __init__(self, group: Group, representative: np.ndarray, factor: Tensor) -> None:
        self.group = group
        self.representative = representative
        self.factor = factor

    def without(self, wrong: np.ndarray) -> "_Repeats":
        """Return the same with some channels standing for themselves."""
        own = np.arange(self.group.width)
        factor = torch.where(torch.from_numpy(wrong), torch.ones_like(self.factor), self.factor)
        return _Repeats(self.group, np.where(wrong, own, self.representative), factor)


def rows_of(tensors: dict[str, Tensor], use: ParameterSlice) -> Tensor:
    """Return what a use of a group holds for each channel, flattened: (channels, values) float64 on the CPU."""
    stored = tensors[use.path].detach().movedim(use.dim, 0)
    return stored[torch.from_numpy(use.positions).to(stored.device)].flatten(1).to("cpu", torch.float64)


def _identical(tensors: dict[str, Tensor], group: Group) -> _Repeats:
    """Find for each channel the first one that all producers and carriers make the same."""
    values = torch.cat([rows_of(tensors, use) for use in (*group.producers, *group.carriers)], 1)
    # A block must keep its own channels: its number is a further value to agree in.
    values = torch.cat([values, torch.from_numpy(group.blocks)[:, None].double()], 1).numpy()
    _, first, which = np.unique(values, axis=0, return_index=True, return_inverse=True)
    return _Repeats(group, first[which.reshape(-1)], torch.ones(group.width, dtype=torch.float64))


def _folded(graph: ChannelGraph, tensors: dict[str, Tensor], group: Group) -> Tensor | None:
    """Return filters with bias and batch norm folded in, (channels, values); None where factors do not pass."""
    use = group.producers[0]
    calls = [call for call in graph.calls if call.weight == use.path]
    if len(group.producers) > 1 or len(calls) > 1 or group.n_blocks > 1 or use.positions.shape[1] > 1:
        return None
    call = calls[0]
    made = graph.nodes[call.node]
    rows = rows_of(tensors, use)
    bias = torch.zeros(len(rows), dtype=torch.float64)
    order = torch.from_numpy(use.positions[:, 0])
    known = {call.weight}
    if call.bias is not None:
        known.add(call.bias)
        bias = tensors[call.bias].detach().to("cpu", torch.float64)[order]
    norms = graph.norms_of(group)
    if norms:
        norm = graph.norm_behind.get(call.node)
        if norm is None or norms != [norm]:
            return None
        known.update(norm.paths)
        own = {path: tensors[path].detach().to("cpu", torch.float64)[order] for path in norm.paths}
        if (folding := norm.folding(own)) is None:
            return None
        scale, shift = folding
        rows, bias = rows * scale[:, None], bias * scale + shift
        made = norm.node
    if {carrier.path for carrier in group.carriers} - known:
        return None  # slopes, scales, depthwise filters
    readers = {call.node for call in graph.calls}
    return torch.cat([rows, bias[:, None]], 1) if _passes_factors(made, readers) else None


def _passes_factors(node: fx.Node, readers: set[str]) -> bool:
    """Tell whether a positive factor on a node's value arrives unchanged at the layers that read it."""
    for user in node.users:
        if user.name in readers:
            continue
        op = op_of(user)
        passes = op is not None and (op.homogeneous or op.keeps_elements)
        if user.op != "call_function" or not passes or not _passes_factors(user, readers):
            return False
    return True


def _proportional(repeats: _Repeats, folded: Tensor) -> _Repeats:
    """Let channels also stand for those that are a positive multiple of them."""
    length = folded.norm(dim=1)
    direction = folded / length.clamp_min(1e-300)[:, None]
    representative, factor = repeats.representative.copy(), repeats.factor.clone()
    free = (length > 0).numpy() & (representative == np.arange(len(folded)))
    for channel in np.flatnonzero(free):
        if representative[channel] != channel:
            continue
        near = (direction - direction[channel]).norm(dim=1).numpy() <= _PROPORTIONAL
        for other in np.flatnonzero(near & free & (representative == np.arange(len(folded)))):
            representative[other] = channel
            factor[other] = length[other] / length[channel]
    # Copies of a channel that now has a representative follow it.
    return _Repeats(repeats.group, representative[representative], factor[torch.from_numpy(repeats.representative)])


def _confirmed(graph: ChannelGraph, found: list[_Repeats]) -> list[_Repeats]:
    """Keep what holds where the channels are read: code may treat equal channels differently.

    One forward pass on noise, in the place of a proof for every operation that slices channels.
    """
    by_input: dict[str, list[tuple[int, ParameterSlice, int]]] = {}
    for index, repeats in enumerate(found):
        for use in repeats.group.consumers:
            for call in graph.calls:
                if call.weight == use.path:
                    by_input.setdefault(call.input, []).append((index, use, call.channel_dim))
    wrong = [np.zeros(repeats.group.width, dtype=bool) for repeats in found]
    program = Program(graph, any_batch=False)
    generator = torch.Generator().manual_seed(0)
    inputs = [_noise(value, generator) for value in graph.example_tensors]
    with torch.no_grad():
        values = program.bind(inputs) | program.weights(named_tensors(graph))
        for name, value in program.visit(values, by_input.keys() & program.index.keys()):
            for index, use, dim in by_input[name]:
                channels = value.cpu().movedim(dim, 0)
                read = channels[torch.from_numpy(use.positions)].flatten(1)
                factor = found[index].factor.to(read.dtype)[:, None]
                lost = (read - factor * read[torch.from_numpy(found[index].representative)]).abs().amax(1)
                wrong[index] |= (lost > _EQUAL * read.abs().max()).numpy()
    return [repeats.without(failed) for repeats, failed in zip(found, wrong, strict=True)]


def _noise(value: Tensor, generator: torch.Generator) -> Tensor:
    if not value.is_floating_point():
        return value
    return torch.randn(value.shape, generator=generator).to(value.device, value.dtype)


def _merge(repeats: _Repeats) -> Merge | None:
    """Return channel addition for a group; None where every channel is one of its kind."""
    group = repeats.group
    if not all(use.mixable for use in group.consumers):
        return None  # a kernel that is computed from what is stored cannot take anything over
    own = repeats.representative == np.arange(group.width)
    widths = np.bincount(group.blocks[own], minlength=group.n_blocks)
    for block in np.flatnonzero(widths < widths.max()):  # every block keeps as many channels as the fullest
        spare = np.flatnonzero(~own & (group.blocks == block))[: widths.max() - widths[block]]
        repeats = repeats.without(np.isin(np.arange(group.width), spare))
        own[spare] = True
    kept = np.flatnonzero(own)
    if len(kept) == group.width:
        return None
    mixing = add(repeats.representative, kept).double() * repeats.factor[:, None]
    return Merge(group.name, kept, {use.path: mixing for use in group.consumers})
