"""The layers that the papers cut: the convolutions inside a block, whose channels nobody else depends on.

VGG: every convolution. ResNet: in a basic block the first convolution, in a bottleneck the first two. GoogLeNet:
the convolutions of the branches of two and three that do not end in the concatenation.

One rule finds them all, in any network: a channel is *inner* if one convolution makes it, one layer reads it, and it
meets no addition and no concatenation on the way.

ICP and ACP give a block one width, as ACP's paper says: in a bottleneck the middle convolution is clustered, and the
first follows it. CP, whose filters are clustered layer by layer, and criteria give each its own.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
from torch import Tensor, fx

from clusterprune.graph import ChannelGraph, Group
from clusterprune.graph.arguments import check_graph
from clusterprune.graph.ops.pointwise import is_addition
from clusterprune.graph.program import named_tensors


def inner_groups(graph: ChannelGraph) -> list[str]:
    """Return the names of the groups that the papers cut, in the order in which their channels are made.

    Groups are named after the layer that makes them, so these are names of convolutions. Frozen groups are left out.
    """
    check_graph(graph)
    convolutions = {call.weight for call in graph.calls if call.slides}
    added = _added(graph)
    lengths = {path: tuple(tensor.shape) for path, tensor in named_tensors(graph).items()}

    def inner(group: Group) -> bool:
        if len(group.producers) != 1 or len(group.consumers) != 1 or group.producers[0].path not in convolutions:
            return False
        reader = group.consumers[0]
        # A layer behind a concatenation reads other channels too.
        alone = reader.positions.size == lengths[reader.path][reader.dim] * reader.groups
        return alone and not np.isin(group.labels, added).any()

    return [group.name for group in graph.prunable if inner(group)]


def published_layers(graph: ChannelGraph) -> ChannelGraph:
    """Return the graph as ICP and ACP cut it: :func:`inner_groups` alone, and one width for a bottleneck.

    A bottleneck is a 1×1 convolution, a larger one and a 1×1 one in turn, of which the first two are inner and equally
    wide, and the last is added to something else.

    Raises
    ------
    ArgumentError
        If there is no inner group.
    """
    names = inner_groups(graph)
    return replace(graph.only(names), bound=_bottlenecks(graph, names))


def with_followers(graph: ChannelGraph, widths: Mapping[str, int]) -> dict[str, int]:
    """Return widths by group in which every follower has its leader's, as far as that has one."""
    return {**widths, **{name: widths[leader] for name, leader in graph.leaders.items() if leader in widths}}


def _bottlenecks(graph: ChannelGraph, names: Collection[str]) -> tuple[tuple[str, str], ...]:
    """Return the middle and the first convolution of every bottleneck, both of which are among the names."""
    added = _added(graph)
    kernels = {path: tuple(tensor.shape[2:]) for path, tensor in named_tensors(graph).items()}
    made = {use.path: group for group in graph.groups for use in group.producers}

    def point(path: str) -> bool:
        return bool(kernels[path]) and set(kernels[path]) == {1}

    found: list[tuple[str, str]] = []
    for first in (graph.by_name[name] for name in names):
        middle = made.get(first.consumers[0].path)
        if middle is None or middle.name not in names:
            continue
        last = middle.consumers[0].path
        points = [point(path) for path in (first.producers[0].path, middle.producers[0].path, last)]
        joins = last in made and np.isin(made[last].labels, added).any()
        alike = (first.width, first.n_blocks) == (middle.width, middle.n_blocks)
        if points == [True, False, True] and joins and alike:
            found.append((middle.name, first.name))
    return tuple(found)


def _added(graph: ChannelGraph) -> np.ndarray:
    """Return the root labels of all channels that two activations are added in."""
    space = graph.walk.space
    found: list[np.ndarray] = []
    for node in graph.fx.nodes:
        if not is_addition(node):
            continue
        labels = [graph.values[n.name] for n in node.args if isinstance(n, fx.Node)]
        activations = [value for value in labels if isinstance(value, Tensor) and not space.all_opaque(value)]
        if len(activations) > 1:
            found += [np.unique(space.roots(value)) for value in activations]
    return np.unique(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)
