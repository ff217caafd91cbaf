# pyright: reportUnknownMemberType=false
"""From measured moments to what each consumer reads of a group, and back from a path to real kernels."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from clusterprune.graph import ChannelGraph, Group, LayerCall, ParameterSlice
from clusterprune.merge._base import Moments
from clusterprune.merge.assign import drop
from clusterprune.merge.elimination import LayerInput
from clusterprune.merge.least_squares import mixing_matrix, positive_factor
from clusterprune.merge.patches import PatchExtractor


@dataclass(frozen=True, eq=False)
class Consumer:
    """One layer call that reads a group, and how its moments were measured."""

    use: ParameterSlice
    call: LayerCall
    reader: PatchExtractor
    whole_kernel: bool
    folded: bool = False


def consumers(graph: ChannelGraph, group: Group, whole_kernel: Mapping[str, bool]) -> list[Consumer]:
    """Return every call that reads the group, one entry per call and parameter dimension."""
    flattened = folds(graph)
    return [one for use in group.consumers for one in consumers_of(graph, use, whole_kernel, flattened)]


def consumers_of(
    graph: ChannelGraph, use: ParameterSlice, whole_kernel: Mapping[str, bool], flattened: Mapping[str, ParameterSlice]
) -> list[Consumer]:
    """Return every measured call that reads a group by one parameter dimension."""
    return [
        Consumer(use, call, PatchExtractor.of(graph, call), whole_kernel[call.node], call.node in flattened)
        for call in graph.calls
        if call.weight == use.path and call.node in whole_kernel
    ]


def folds(graph: ChannelGraph) -> dict[str, ParameterSlice]:
    """Return the linear layers that read whole flattened maps too large for one matrix of second moments.

    Their moments are measured by channel, all places of the maps together, as if the layer were a convolution with a
    kernel as large as the map. By node name of the call, of which a layer may have several: where the group sits in
    its inputs.
    """
    linear = [call for call in graph.calls if call.by_row and call.row_dim == 0]
    return {
        call.node: use
        for group in graph.groups
        for use in group.consumers
        for call in linear
        if call.weight == use.path and use.positions.shape[1] > 1 and _inputs(graph, use) == use.positions.size > _FOLD
    }


def _inputs(graph: ChannelGraph, use: ParameterSlice) -> int:
    return int(graph.model.get_parameter(use.path).shape[use.dim])


_FOLD = 4096
"""Inputs of a linear layer up to which second moments of all of them are kept."""


def by_channel(use: ParameterSlice) -> ParameterSlice:
    """Return where the group sits in moments that are kept by channel."""
    return replace(use, positions=np.arange(len(use.positions))[:, None])


def kernel_rows(weight: Tensor, consumer: Consumer) -> Tensor:
    """Return a weight as (outputs, inputs, taps); grouped convolutions get zeros for inputs they do not see."""
    rows = weight.movedim(consumer.call.row_dim, 0)
    rows = rows.flatten(2) if rows.ndim > 2 else rows.unsqueeze(-1)
    groups = consumer.use.groups
    if groups == 1:
        return rows
    outputs, size, taps = rows.shape
    whole = rows.new_zeros(outputs, size * groups, taps)
    for block in range(groups):
        part = slice(block * outputs // groups, (block + 1) * outputs // groups)
        whole[part, block * size : (block + 1) * size] = rows[part]
    return whole


def layer_input(
    consumer: Consumer, weight: Tensor, moments: Tensor, importance: Tensor, rows: int | None = None
) -> LayerInput:
    """Return what a consumer reads of a group, with the mean taken out (the bias makes it good).

    Parameters
    ----------
    weight
        The consumer's weight as stored.
    moments
        As :func:`clusterprune.merge.statistics.input_moments` measured them.
    importance
        How much each output matters, shape (outputs,).
    rows
        From how many rows the moments were estimated.
    """
    mean = moments[:-1, -1]
    centred = moments[:-1, :-1] - torch.outer(mean, mean)
    if not consumer.use.mixable:
        # Nothing can be handed over, not even a constant: every channel is worth its own power.
        centred = torch.diag(moments.diagonal()[:-1])
    positions = torch.from_numpy(consumer.use.positions)
    multiplicity = positions.shape[1]
    taps = consumer.reader.taps
    scale = importance.clamp_min(1e-6 * float(importance.max()) + 1e-30).sqrt()
    if consumer.folded:
        # Only B Bᵀ matters, and B has a column for every output and place: its factor is enough.
        product = torch.zeros_like(centred)
        for place in positions.T:
            part = weight[:, place].double() * scale[:, None]
            product += part.T @ part
        ridge = 1e-9 * product.diagonal().mean().clamp_min(1e-12)
        return LayerInput(centred, positive_factor(product, ridge.expand(len(product))), 1, rows)
    kernel = kernel_rows(weight, consumer)[:, positions.reshape(-1)].double() * scale[:, None, None]
    if consumer.whole_kernel:
        index = (positions[:, :, None] * taps + torch.arange(taps)).reshape(-1)
        return LayerInput(centred[index][:, index], kernel.flatten(1).T.contiguous(), taps * multiplicity, rows)
    index = positions.reshape(-1)
    by_channel_ = kernel.permute(1, 0, 2).flatten(1)
    return LayerInput(centred[index][:, index], by_channel_.contiguous(), multiplicity, rows)


def kernel_change(
    consumer: Consumer, weight: Tensor, refitted: Tensor, moments: Tensor, importance: Tensor
) -> tuple[Tensor, Tensor]:
    """Return how a snapshot's weights differ from the stored kernel, and the bias that keeps the mean output.

    Returns
    -------
    tuple
        Change of the weight, in its stored shape, and of the bias (outputs,), both float32.
    """
    if consumer.folded:
        return _folded_change(consumer, weight, refitted, moments)
    positions = torch.from_numpy(consumer.use.positions).reshape(-1)
    scale = importance.clamp_min(1e-6 * float(importance.max()) + 1e-30).sqrt()
    kernel = kernel_rows(weight, consumer).double()
    outputs, _, taps = kernel.shape
    if consumer.whole_kernel:
        new = (refitted / scale).T.reshape(outputs, len(positions), taps)
    else:
        new = refitted.reshape(len(positions), outputs, taps).permute(1, 0, 2) / scale[:, None, None]
    change = torch.zeros_like(kernel)
    change[:, positions] = new - kernel[:, positions]
    mean = moments[:-1, -1] if consumer.use.mixable else torch.zeros_like(moments[:-1, -1])
    bias = -(change.flatten(1) @ mean) if consumer.whole_kernel else -(change.sum(2) @ mean)
    return _stored(change, consumer, weight).float(), bias.float()


def _folded_change(consumer: Consumer, weight: Tensor, refitted: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
    """Return the change for a layer of which only a factor was kept: its kernel is mixed at every place alike."""
    kept = refitted.abs().sum(1).nonzero().squeeze(1).numpy()
    mixing, offset = mixing_matrix(moments, by_channel(consumer.use), kept, offset=True)
    if not consumer.use.mixable:
        mixing, offset = drop(len(mixing), kept), torch.zeros_like(offset)
    places = torch.from_numpy(consumer.use.positions)
    kernel = weight[:, places]  # (outputs, channels, places)
    change = -weight
    change[:, places[kept]] += torch.einsum("ocp,ck->okp", kernel, mixing.to(weight))
    bias = kernel.sum(2) @ offset.to(weight)
    return change.float(), bias.float()


def _stored(kernel: Tensor, consumer: Consumer, weight: Tensor) -> Tensor:
    groups = consumer.use.groups
    moved = weight.movedim(consumer.call.row_dim, 0)
    if groups > 1:
        outputs, size = moved.shape[:2]
        parts = [
            kernel[block * outputs // groups : (block + 1) * outputs // groups, block * size : (block + 1) * size]
            for block in range(groups)
        ]
        kernel = torch.cat(parts)
    return kernel.reshape(moved.shape).movedim(0, consumer.call.row_dim).contiguous()


def channel_moments_of(consumer: Consumer, moments: Tensor) -> tuple[Tensor, ParameterSlice]:
    """Return a consumer's moments by channel, from those that were measured, and where the group sits in them."""
    if consumer.whole_kernel:
        moments = channel_moments(moments, consumer.reader.taps)
    return moments, by_channel(consumer.use) if consumer.folded else consumer.use


def reading(
    graph: ChannelGraph, whole_kernel: Mapping[str, bool], moments: Mapping[str, Tensor], rows: Mapping[str, int]
) -> Moments:
    """Return what says of every consumer what it reads, by channel.

    A layer that is applied several times, such as a detector's head to every level of a pyramid, has one kernel for
    all that it reads: it gets the mean over all rows of all its calls.

    Parameters
    ----------
    whole_kernel, moments, rows
        By node name of the layer calls: what :func:`clusterprune.merge.statistics.input_moments` was asked for and
        found, and over how many rows.
    """
    flattened = folds(graph)

    def find(use: ParameterSlice) -> tuple[Tensor, ParameterSlice] | None:
        calls = consumers_of(graph, use, whole_kernel, flattened) if use.mixable else []
        if not calls:
            return None
        found, where = channel_moments_of(calls[0], moments[calls[0].call.node])
        if len(calls) > 1:
            every = sum(rows[one.call.node] for one in calls)
            found = found * (rows[calls[0].call.node] / every)
            for one in calls[1:]:
                more, _ = channel_moments_of(one, moments[one.call.node])
                found = found.add(more, alpha=rows[one.call.node] / every)
        return found, where

    return find


def channel_moments(moments: Tensor, taps: int) -> Tensor:
    """Average kernel moments over taps, giving moments of the channels alone (and the constant)."""
    size = len(moments) - 1
    channels = size // taps
    blocks = moments[:size, :size].view(channels, taps, channels, taps)
    result = torch.zeros(channels + 1, channels + 1, dtype=moments.dtype)
    result[:-1, :-1] = blocks.diagonal(dim1=1, dim2=3).mean(-1)
    result[:-1, -1] = result[-1, :-1] = moments[:size, -1].view(channels, taps).mean(1)
    result[-1, -1] = moments[-1, -1]
    return result
