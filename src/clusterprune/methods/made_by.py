"""Gathering all that makes a channel, for :class:`clusterprune.similarity.Filters` to compare.

Two channels with equal filters are not equal if their biases, depthwise filters or slopes differ, and a layer that is
used twice makes its channels twice, maybe with another bias each time.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from clusterprune.graph import ChannelGraph, Group
from clusterprune.graph.ops.norm import BatchNorm
from clusterprune.similarity import BatchNormTensors, Filters


def filter_vectors(graph: ChannelGraph, group: Group, tensors: Mapping[str, Tensor], similarity: Filters) -> Tensor:
    """Return a vector for every channel of a group: (channels, values), float64.

    The layers that make the group stand side by side, each as :meth:`Filters.vectors` has it, a depthwise layer
    that follows like those. Behind them comes every other parameter along the channels, such as the slopes of a PReLU.
    Batch norms count where the similarity folds them: into the layer that they alone read, or else as scale and shift.
    """
    in_norms = {path for norm in graph.batch_norms for path in norm.paths}
    folded: set[str] = set()
    used: set[str | None] = set()
    parts: list[Tensor] = []
    for use in (*group.producers, *group.carriers):
        calls = [call for call in graph.calls if call.weight == use.path]
        weight = tensors[use.path].movedim(use.dim, 0)
        # Once for every way in which the layer is used.
        ways = dict.fromkeys((call.bias, graph.norm_behind.get(call.node)) for call in calls)
        if not ways and use in group.producers:
            ways = {(None, None): None}  # a layer that only training applies
        for bias, norm in ways:
            own = None if bias is None or len(tensors[bias]) != len(weight) else tensors[bias]
            batch_norm = _tensors_of(norm, tensors) if norm is not None and similarity.fold_batch_norm else None
            if norm is not None and batch_norm is not None:
                folded.add(norm.name)
            rows = similarity.vectors(weight, bias=own, batch_norm=batch_norm)
            parts.append(rows[_on(use.positions, rows)].flatten(1))
            used |= {use.path, bias if own is not None else None}
    if similarity.fold_batch_norm:
        for norm in (norm for norm in graph.batch_norms if norm.name not in folded):
            uses = [use for use in group.carriers if use.path in norm.paths]
            batch_norm = _tensors_of(norm, tensors)
            if uses and batch_norm is not None:
                scale_and_shift = torch.stack(batch_norm.folding(len(batch_norm.mean)), 1)
                parts.append(scale_and_shift[_on(uses[0].positions, scale_and_shift)].flatten(1))
    for use in group.carriers:
        if use.path not in used | in_norms:
            values = tensors[use.path].movedim(use.dim, 0).double()
            parts.append(values[_on(use.positions, values)].flatten(1))
    return torch.cat([part.to(parts[0].device) for part in parts], 1)


def _tensors_of(norm: BatchNorm, tensors: Mapping[str, Tensor]) -> BatchNormTensors | None:
    """Return a batch norm's tensors, or None if it has no running statistics."""
    paths = (norm.weight, norm.bias, norm.mean, norm.variance)
    gamma, beta, mean, variance = (tensors[path] if path else None for path in paths)
    if mean is None or variance is None:
        return None
    return BatchNormTensors(mean, variance, gamma, beta, norm.eps)


def _on(positions: object, tensor: Tensor) -> Tensor:
    return torch.as_tensor(positions, device=tensor.device)
