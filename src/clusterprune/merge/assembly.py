"""The one way from kept channels to a plan: kept → moments → merges → the finished plan."""

from collections.abc import Mapping, Sequence

import torch

from clusterprune.errors import ArgumentError
from clusterprune.graph import ChannelGraph, Group
from clusterprune.graph.images import Images, Progress, batch_size_for
from clusterprune.graph.program import named_tensors
from clusterprune.merge._base import Kept, Merging, Moments
from clusterprune.merge.layer_inputs import folds, reading
from clusterprune.merge.statistics import consumer_calls, input_moments
from clusterprune.plan import Plan

MOMENT_ROWS = 32768
"""Rows from which second moments are estimated."""


def assemble(
    graph: ChannelGraph,
    kept: Mapping[str, Kept],
    merging: Merging,
    images: Images | None,
    *,
    generator: torch.Generator,
    moments: Moments | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Return the plan that keeps the given channels, and gives them the work of the others.

    Parameters
    ----------
    kept
        What stays, by name of group; groups that keep all their channels, or are not named, stay whole.
    merging
        What the kept channels take over.
    images
        Unlabelled, normalised inputs, of which the merging may know.
    moments
        What consumers read, where that was measured already.

    Raises
    ------
    ArgumentError
        If the merging needs images, and there are none.
    """
    check_merging(merging, images, clusters=True)
    named = [group for group in graph.prunable if group.name in kept]
    if moments is None and merging.needs_images and named and images is not None:
        moments = channel_moments(graph, named, images, generator, progress)
    plan = merged(graph, kept, merging, moments)
    if images is None or not plan.merges:
        return plan
    return merging.finish(graph, plan, images, generator=generator, progress=progress)


def merged(graph: ChannelGraph, kept: Mapping[str, Kept], merging: Merging, moments: Moments | None = None) -> Plan:
    """Return the plan of all merges, not finished yet; see :func:`assemble`."""
    merges = [
        merging.merge(graph, group, kept[group.name], moments or (lambda _: None))
        for group in graph.prunable
        if group.name in kept and len(kept[group.name].channels) < group.width
    ]
    return Plan.of(graph, tuple(merges))


def check_merging(merging: Merging, images: Images | None, *, clusters: bool) -> None:
    """Check that there is what a merging goes by.

    Raises
    ------
    ArgumentError
        If there are no images, or no clusters, and it needs them.
    """
    if merging.needs_images and images is None:
        raise ArgumentError(
            f"merging={merging.name!r} looks at feature maps, but images=None; give images or use merging='drop'"
        )
    if merging.by_cluster and not clusters:
        raise ArgumentError(
            f"merging={merging.name!r} hands each channel to the one that stands for its cluster, but channels are not "
            "kept by clusters here; use merging='drop' or 'least_squares'"
        )


def channel_moments(
    graph: ChannelGraph,
    groups: Sequence[Group],
    images: Images,
    generator: torch.Generator,
    progress: Progress | None = None,
) -> Moments:
    """Measure the second moments of the channels that each consumer of the groups reads.

    They are on the CPU, where plans are made.
    """
    calls = consumer_calls(graph, {use.path for group in groups for use in group.consumers})
    by_position = {node: False for nodes in calls.values() for node in nodes}
    rows: dict[str, int] = {}
    found = input_moments(
        graph,
        named_tensors(graph),
        images,
        by_position,
        folded=folds(graph),
        rows=MOMENT_ROWS,
        batch_size=batch_size_for(graph),
        generator=generator,
        progress=progress,
        seen=rows,
    )
    # A layer that only training applies has no call: it drops what is removed.
    return reading(graph, by_position, {node: moment.cpu() for node, moment in found.items()}, rows)
