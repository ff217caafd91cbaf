"""In which order a graph runs: as it was traced, or so that all calls of a layer stand side by side.

A head that reads every level of a pyramid runs level by level, and a network that looks at two images runs one after
the other. Nothing keeps the calls of one layer apart there, and who wants to see at once what all of them read can have
it, as long as none of them waits for another.
"""

import heapq
from collections.abc import Mapping
from typing import Any

from torch import fx
from torch._ops import OpOverload

from clusterprune.graph.channels import ChannelGraph
from clusterprune.graph.nest import schema_of
from clusterprune.graph.program import is_private, is_random, written_placeholders


def side_by_side(graph: ChannelGraph, layers: Mapping[str, tuple[str, ...]]) -> tuple[list[str], frozenset[str]]:
    """Return an order of all nodes in which the calls of each layer follow one another, as they were traced.

    Parameters
    ----------
    layers
        Node names of each layer's calls.

    Returns
    -------
    tuple
        The names of all nodes, each behind what it reads, and otherwise as early as in the traced graph; and the layers
        whose calls are side by side. Those are left out of which one call waits for another; where a value is written
        into that others read too, or dice are thrown, all are, and the order is the traced one.
    """
    nodes = [*graph.fx.nodes]
    traced = [node.name for node in nodes]
    layer_of = {call: layer for layer, calls in layers.items() for call in calls}
    if not layer_of or any(_bound_to_its_place(node) for node in nodes) or written_placeholders(graph.fx):
        return traced, frozenset()
    number = {node: position for position, node in enumerate(nodes)}
    missing = {node: len(node.all_input_nodes) for node in nodes}
    ready = [number[node] for node in nodes if not missing[node]]
    waiting: dict[str, list[fx.Node]] = {}
    together = set(layers)
    order: list[str] = []
    while len(order) < len(nodes):
        if not ready:
            # Everything waits for calls that wait for one another: the earliest goes alone.
            alone = min(waiting, key=lambda layer: number[waiting[layer][0]])
            together.discard(alone)
            ready = [number[node] for node in waiting.pop(alone)]
            heapq.heapify(ready)
        node = nodes[heapq.heappop(ready)]
        run, layer = [node], layer_of.get(node.name)
        if layer in together:
            run = waiting.setdefault(layer, [])
            run.append(node)
            if len(run) < len(layers[layer]):
                continue
            run = sorted(waiting.pop(layer), key=number.__getitem__)
        for done in run:
            order.append(done.name)
            for user in done.users:
                missing[user] -= 1
                if not missing[user]:
                    heapq.heappush(ready, number[user])
    return (order, frozenset(together)) if together else (traced, frozenset())


def _bound_to_its_place(node: fx.Node) -> bool:
    """Tell whether it matters when a node runs, beyond what it reads."""
    target: Any = node.target
    if not isinstance(target, OpOverload):
        return False
    return is_random(node) or (schema_of(target).is_mutable and not is_private(node))
