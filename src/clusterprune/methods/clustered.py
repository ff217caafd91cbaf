# pyright: reportUnknownMemberType=false
"""Plans from clusters: compare channels, cluster them, keep one of each kind, merge or drop the others.

This is the step that ICP, ACP and CP share, with every choice open: similarity, clustering, budget, which
channel of a cluster survives, and what the survivors take over.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Unpack

import numpy as np
import torch

from clusterprune.arguments import check_progress, check_seed, has_methods, renamed, shown
from clusterprune.budget.allocation import CostModel
from clusterprune.clustering import DBSCAN, Clustering
from clusterprune.errors import ArgumentError
from clusterprune.graph import ChannelGraph, Group
from clusterprune.graph.arguments import check_graph
from clusterprune.graph.images import Images, Progress, inputs_of, whole_batches
from clusterprune.graph.program import named_tensors
from clusterprune.merge import Kept, Merging, MergingName, assemble, check_merging, read_merging
from clusterprune.methods.budget import ClusterBudget, read_cluster_budget
from clusterprune.methods.partitions import GroupPoints, partition
from clusterprune.methods.targets import check_plan
from clusterprune.plan import Plan
from clusterprune.similarity import (
    FeatureMaps,
    Similarity,
    SimilarityName,
    checked_points,
    read_similarity,
)


@renamed(merge="merging")
def cluster(
    graph: ChannelGraph,
    images: Images | None = None,
    *,
    similarity: Similarity | SimilarityName | None = None,
    clustering: Clustering | None = None,
    merging: Merging | MergingName = "least_squares",
    survivors: Literal["medoid", "l1"] = "medoid",
    ignore: Sequence[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
    **budget: Unpack[ClusterBudget],
) -> Plan:
    """Plan a compression by clustering channels.

    Parameters
    ----------
    graph
        A traced model.
    images
        Unlabelled, normalised inputs; needed for feature maps, for scaled addition, least squares and refit.
    similarity
        How channels are compared: `FeatureMaps` (ACP Eq. 1), `Filters` (CP), their names, or an object of your own
        with the method `points` of :class:`clusterprune.similarity.Similarity`. Default: cosine feature maps.
    clustering
        Who belongs with whom. Default: the papers' `DBSCAN(eps=0.02, min_samples=5)`.
    merging
        What the survivors take over: a :class:`clusterprune.merge.Merging`, or its name.
    survivors
        "medoid": one channel per cluster, the most central. "l1": only the *number* of clusters is used
        and the filters of largest ℓ1 norm stay, as in the released code of ICP and ACP.
    ignore, seed, progress
        As in :func:`clusterprune.oneshot`.
    **budget
        How much to keep, such as ``keep_macs=0.5``; by default the clustering decides: see
        :class:`clusterprune.methods.budget.ClusterBudget`.

    Raises
    ------
    ArgumentError
        For options that contradict each other, or missing images.
    BudgetError
        If a target cannot be reached.
    """
    check_graph(graph)
    check_seed(seed)
    check_progress(progress)
    given, limits = read_cluster_budget(budget)
    similarity = FeatureMaps() if similarity is None else read_similarity(similarity)
    clustering = clustering or DBSCAN(eps=0.02)
    if not has_methods(clustering, "fit", "with_knob", "coarsest", "at_most"):
        raise ArgumentError(
            f"clustering must be an object such as DBSCAN(eps=0.02), but got clustering={shown(clustering)}; "
            "clusterprune.clustering.create(name) makes one by its name, and one of your own has the methods of "
            "clusterprune.clustering.Clustering"
        )
    merging = read_merging(merging)
    _check(images, merging, survivors)
    graph = graph.freeze(ignore)
    groups = list(graph.prunable)
    generator = torch.Generator().manual_seed(seed)
    if images is not None:
        images = whole_batches(graph, inputs_of(graph, images, seed))
    points = checked_points(similarity, graph, groups, images, progress)
    compared = [GroupPoints(group, points[group.name]) for group in groups]
    labels = partition(graph, compared, clustering, given, limits)
    kept = {c.group.name: _kept(graph, c, labels[c.group.name], survivors) for c in compared}
    result = assemble(graph, kept, merging, images, generator=generator, progress=progress)
    for quantity, keep in given.items():
        if quantity != "channels":
            check_plan(CostModel(graph), quantity, keep, result)  # type: ignore[arg-type]
    notes = {
        "method": "clustering",
        "similarity": repr(similarity),
        "clustering": repr(clustering),
        "merging": merging.name,
        "survivors": survivors,
        "seed": seed,
        **{f"keep_{k}": v for k, v in given.items()},
        **limits.facts(graph, result.widths),
    }
    return replace(result, notes=notes)


def _check(images: Images | None, merging: Merging, survivors: str) -> None:
    if survivors not in ("medoid", "l1"):
        raise ArgumentError(f"survivors must be 'medoid' or 'l1', but got survivors={survivors!r}")
    if survivors == "l1" and merging.by_cluster:
        raise ArgumentError(
            f"merging={merging.name!r} hands each channel to the survivor of its cluster, but survivors='l1' keeps "
            "channels regardless of clusters; use survivors='medoid', or merging='drop' or 'least_squares'"
        )
    check_merging(merging, images, clusters=True)


def _kept(graph: ChannelGraph, points: GroupPoints, labels: np.ndarray, survivors: str) -> Kept:
    """Choose the survivors of one group."""
    group = points.group
    count = int(labels.max()) + 1
    if survivors == "l1":
        per_block = count // group.n_blocks
        order = np.argsort(-_norms(graph, group), kind="stable")
        largest = [order[group.blocks[order] == block][:per_block] for block in range(group.n_blocks)]
        return Kept(np.sort(np.concatenate(largest)))
    distances = points.distances.cpu().numpy()
    medoid = np.empty(count, dtype=np.int64)
    for cluster in range(count):
        members = np.flatnonzero(labels == cluster)
        medoid[cluster] = members[distances[members][:, members].sum(1).argmin()]
    return Kept(np.sort(medoid), medoid[labels])


def _norms(graph: ChannelGraph, group: Group) -> np.ndarray:
    """Return the ℓ1 norms of the filters that make each channel, summed in the dtype of each layer: (channels,)."""
    tensors = named_tensors(graph)
    norms = sum(
        tensors[use.path].detach().movedim(use.dim, 0)[torch.from_numpy(use.positions)].abs().flatten(1).sum(1).double()
        for use in group.producers
    )
    return torch.as_tensor(norms).cpu().numpy()
