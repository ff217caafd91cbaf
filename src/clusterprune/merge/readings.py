"""From measured moments to what each consumer reads of a group, and back from a path to real kernels."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from clusterprune.graph import ChannelGraph, Group, LayerCall, Use
from clusterprune.merge.elimination import Reading
from clusterprune.merge.patches import Reader


@dataclass(frozen=True, eq=False)
class Consumer:
    """One layer call that reads a group, and how its moments were measured."""

    use: Use
    call: LayerCall
    reader: Reader
    whole_kernel: bool

    @property
    def row_dim(self) -> int:
        """Dimension of the weight that holds the outputs."""
        return 1 if self.call.kind in ("conv_transpose", "matmul") else 0


def consumers(graph: ChannelGraph, group: Group, whole_kernel: Mapping[str, bool]) -> list[Consumer]:
    """Return every call that reads the group, one entry per call and parameter dimension."""
    found = []
    for use in group.consumers:
        found += [
            Consumer(use, call, Reader.of(graph, call), whole_kernel[call.node])
            for call in graph.calls
            if call.weight == use.path and call.node in whole_kernel
        ]
    return found


def kernel_rows(weight: Tensor, consumer: Consumer) -> Tensor:
    """Return a weight as (outputs, inputs, taps); grouped convolutions get zeros for inputs they do not see."""
    rows = weight.movedim(consumer.row_dim, 0)
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


def reading(consumer: Consumer, weight: Tensor, moments: Tensor, importance: Tensor) -> Reading:
    """Return what a consumer reads of a group, with the mean taken out (the bias makes it good).

    Parameters
    ----------
    weight
        The consumer's weight as stored.
    moments
        As :func:`clusterprune.merge.statistics.input_moments` measured them.
    importance
        How much each output matters, shape (outputs,).
    """
    mean = moments[:-1, -1]
    centred = moments[:-1, :-1] - torch.outer(mean, mean)
    positions = torch.from_numpy(consumer.use.positions)
    multiplicity = positions.shape[1]
    taps = consumer.reader.taps
    scale = importance.clamp_min(1e-6 * float(importance.max()) + 1e-30).sqrt()
    kernel = kernel_rows(weight, consumer)[:, positions.reshape(-1)].double() * scale[:, None, None]
    if consumer.whole_kernel:
        index = (positions[:, :, None] * taps + torch.arange(taps)).reshape(-1)
        return Reading(centred[index][:, index], kernel.flatten(1).T.contiguous(), taps * multiplicity)
    index = positions.reshape(-1)
    rows = kernel.permute(1, 0, 2).flatten(1)
    return Reading(centred[index][:, index], rows.contiguous(), multiplicity)


def kernel_change(
    consumer: Consumer, weight: Tensor, refitted: Tensor, moments: Tensor, importance: Tensor
) -> tuple[Tensor, Tensor]:
    """Return how a snapshot's weights differ from the stored kernel, and the bias that keeps the mean output.

    Returns
    -------
    tuple
        Change of the weight, in its stored shape, and of the bias (outputs,), both float32.
    """
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
    mean = moments[:-1, -1]
    bias = -(change.flatten(1) @ mean) if consumer.whole_kernel else -(change.sum(2) @ mean)
    return _stored(change, consumer, weight).float(), bias.float()


def _stored(kernel: Tensor, consumer: Consumer, weight: Tensor) -> Tensor:
    groups = consumer.use.groups
    moved = weight.movedim(consumer.row_dim, 0)
    if groups > 1:
        outputs, size = moved.shape[:2]
        parts = [
            kernel[block * outputs // groups : (block + 1) * outputs // groups, block * size : (block + 1) * size]
            for block in range(groups)
        ]
        kernel = torch.cat(parts)
    return kernel.reshape(moved.shape).movedim(0, consumer.row_dim).contiguous()


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
