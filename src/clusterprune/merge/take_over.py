"""What kept channels take over from the others by least squares: from moments to merges."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from clusterprune.graph import ChannelGraph, Group
from clusterprune.merge.least_squares import mixing_matrix
from clusterprune.merge.statistics import Images, Progress, batch_size_for, consumer_calls, input_moments
from clusterprune.plan import Merge
from clusterprune.surgery.apply import bias_home, named_tensors

MOMENT_ROWS = 32768
"""Rows from which second moments are estimated."""


def channel_moments(
    graph: ChannelGraph,
    groups: Sequence[Group],
    images: Images,
    generator: torch.Generator,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Return the second moments of the channels that each consumer of the groups reads, by the consumer's weight.

    They are on the CPU, where plans are made.
    """
    calls = consumer_calls(graph, {use.path for group in groups for use in group.consumers})
    found = input_moments(
        graph,
        named_tensors(graph),
        images,
        {node: False for nodes in calls.values() for node in nodes},
        rows=MOMENT_ROWS,
        batch_size=batch_size_for(graph),
        generator=generator,
        progress=progress,
    )
    return {path: found[nodes[0]].cpu() for path, nodes in calls.items()}


def take_over(graph: ChannelGraph, group: Group, kept: np.ndarray, moments: Mapping[str, Tensor]) -> Merge:
    """Return the merge in which each consumer rebuilds all channels from the kept ones as well as it can.

    Parameters
    ----------
    kept
        Indices of the channels that stay, ascending: shape (k,).
    moments
        What :func:`channel_moments` returned.
    """
    mixing: dict[str, Tensor] = {}
    offset: dict[str, Tensor] = {}
    for use in group.consumers:
        if use.path not in moments:
            continue  # only training applies the layer: it drops what is removed
        home = bias_home(graph, use.path)
        mixing[use.path], constant = mixing_matrix(moments[use.path], use, kept, offset=home is not None)
        if home is not None:
            offset[use.path] = constant
    return Merge(group.name, kept, mixing, offset)
