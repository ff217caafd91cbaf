"""Plans from clusters: compare channels, cluster them, keep one of each kind, merge or drop the others.

This is the step that ICP, ACP and CP share, with every choice open: similarity, clustering, budget, which
channel of a cluster survives, and what the survivors take over.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from clusterprune.arguments import check_graph, check_progress, check_seed, has_methods, renamed, shown
from clusterprune.budget.allocation import CostModel, Limits, check_fraction
from clusterprune.clustering import DBSCAN, Clustering
from clusterprune.errors import ArgumentError
from clusterprune.graph import ChannelGraph, Group
from clusterprune.graph.images import Images, Progress, as_inputs, batch_size_for, batches, inputs_of, whole_batches
from clusterprune.graph.program import Program, named_tensors
from clusterprune.merge import Kept, Merging, MergingName, assemble, check_merging, read_merging
from clusterprune.methods.made_by import filter_vectors
from clusterprune.methods.partitions import ChannelPoints, partition
from clusterprune.methods.targets import check_plan
from clusterprune.plan import Plan
from clusterprune.similarity import FeatureMaps, Filters, pairwise_distances


@renamed(merge="merging")
def cluster(
    graph: ChannelGraph,
    images: Images | None = None,
    *,
    similarity: FeatureMaps | Filters | None = None,
    clustering: Clustering | None = None,
    merging: Merging | MergingName = "least_squares",
    survivors: Literal["medoid", "l1"] = "medoid",
    keep_channels: float | None = None,
    keep_macs: float | None = None,
    keep_params: float | None = None,
    round_to: int = 1,
    min_width: int = 1,
    ignore: Sequence[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """Plan a compression by clustering channels.

    Parameters
    ----------
    graph
        A traced model.
    images
        Unlabelled, normalised inputs; needed for feature maps, for scaled addition, least squares and refit.
    similarity
        How channels are compared: `FeatureMaps` (ACP Eq. 1) or `Filters` (CP). Default: cosine feature maps.
    clustering
        Who belongs with whom. Default: the papers' `DBSCAN(eps=0.02, min_samples=5)`.
    merging
        What the survivors take over: a :class:`clusterprune.merge.Merging`, or its name.
    survivors
        "medoid": one channel per cluster, the most central. "l1": only the *number* of clusters is used
        and the filters of largest ℓ1 norm stay, as in the released code of ICP and ACP.
    keep_channels, keep_macs, keep_params
        At most one. Without any, the clustering itself decides: clusters plus noise points (its ε, or its
        number of clusters). With one, the widths are solved for by the clustering's knob: a length (ε of DBSCAN,
        HDBSCAN and OPTICS, a bandwidth, a threshold) is the same for all groups and found by bisection; numbers of
        clusters come from the heights of an average-linkage tree, over all groups together.
    round_to, min_width, ignore, seed, progress
        As in :func:`clusterprune.oneshot`.

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
    targets = (("channels", keep_channels), ("macs", keep_macs), ("params", keep_params))
    given = {name: value for name, value in targets if value is not None}
    if len(given) > 1:
        raise ArgumentError(
            "give at most one of keep_channels, keep_macs and keep_params, but got "
            f"{', '.join(f'keep_{name}={value!r}' for name, value in given.items())}"
        )
    for name, value in given.items():
        check_fraction(f"keep_{name}", value)
    similarity = similarity or FeatureMaps()
    clustering = clustering or DBSCAN(eps=0.02)
    if not has_methods(clustering, "fit", "with_knob", "coarsest", "at_most"):
        raise ArgumentError(
            f"clustering must be an object such as DBSCAN(eps=0.02), but got clustering={shown(clustering)}; "
            "clusterprune.clustering.create(name) makes one by its name, and one of your own has the methods of "
            "clusterprune.clustering.Clustering"
        )
    merging = read_merging(merging)
    _check(images, similarity, merging, survivors)
    limits = Limits(round_to, min_width)
    graph = graph.freeze(ignore)
    groups = list(graph.prunable)
    generator = torch.Generator().manual_seed(seed)
    if images is not None:
        images = whole_batches(graph, inputs_of(graph, images, seed))
    compared = _compare(graph, groups, images, similarity, progress)
    labels = partition(graph, compared, clustering, given, limits)
    kept = {c.group.name: _kept(c, labels[c.group.name], survivors) for c in compared}
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
    }
    return replace(result, notes=notes)


def _check(images: Images | None, similarity: object, merging: Merging, survivors: str) -> None:
    if not isinstance(similarity, FeatureMaps | Filters):
        raise ArgumentError(f"similarity must be FeatureMaps() or Filters(), but got similarity={shown(similarity)}")
    if survivors not in ("medoid", "l1"):
        raise ArgumentError(f"survivors must be 'medoid' or 'l1', but got survivors={survivors!r}")
    if survivors == "l1" and merging.by_cluster:
        raise ArgumentError(
            f"merging={merging.name!r} hands each channel to the survivor of its cluster, but survivors='l1' keeps "
            "channels regardless of clusters; use survivors='medoid', or merging='drop' or 'least_squares'"
        )
    if images is None and isinstance(similarity, FeatureMaps):
        raise ArgumentError(
            "images=None does not go with similarity=FeatureMaps, which looks at feature maps; give images, or use "
            "Filters with merging='drop' or 'add'"
        )
    check_merging(merging, images, clusters=True)


def _compare(
    graph: ChannelGraph,
    groups: list[Group],
    images: Images | None,
    similarity: FeatureMaps | Filters,
    progress: Progress | None,
) -> list[ChannelPoints]:
    """Turn every group's channels into points; a channel that several layers make is one long point."""
    tensors = {path: tensor.detach() for path, tensor in named_tensors(graph).items()}
    if isinstance(similarity, Filters):
        points = {group.name: filter_vectors(graph, group, tensors, similarity) for group in groups}
    else:
        points = _mean_maps(graph, groups, images, similarity, progress)
    compared = []
    for group in groups:
        vectors = points[group.name].cpu()
        norms = sum(
            tensors[use.path].movedim(use.dim, 0)[torch.from_numpy(use.positions)].abs().flatten(1).sum(1).double()
            for use in group.producers
        )
        distances = pairwise_distances(vectors, similarity.metric)
        compared.append(ChannelPoints(group, vectors, distances, torch.as_tensor(norms).cpu().numpy()))
    return compared


def _mean_maps(
    graph: ChannelGraph, groups: list[Group], images: Images | None, similarity: FeatureMaps, progress: Progress | None
) -> dict[str, Tensor]:
    """Average feature maps over the images (ACP Eq. 1), at conv outputs or at what consumers read."""
    if images is None:
        return {}
    program = Program(graph)
    weights = program.weights(named_tensors(graph))
    places: dict[str, list[tuple[str, np.ndarray, int]]] = {}
    for group in groups:
        uses = group.producers if similarity.at == "conv_output" else group.consumers
        found = []
        for use in uses:
            for call in graph.calls:
                if call.weight == use.path:
                    name = call.node if similarity.at == "conv_output" else call.input
                    found.append((name, use.positions, call.channel_dim))
        places[group.name] = found
    wanted = {name: dim for found in places.values() for name, _, dim in found}
    made = [name for name in wanted if name in program.index]
    sums: dict[str, Tensor] = {}
    count, done = len(as_inputs(images)[0]), 0
    with torch.no_grad():
        for batch in batches(images, batch_size_for(graph)):
            values: dict[str, Any] = program.bind(batch) | weights
            for name, value in program.visit(values, made):
                total = value.movedim(wanted[name], 1).sum(0).double()
                sums[name] = sums.get(name, 0) + total.reshape(len(total), -1)
            done += len(batch[0])
            if progress:
                progress("mean feature maps", done, count)
    return {
        group: torch.cat([(sums[name] / count)[torch.from_numpy(p)].flatten(1) for name, p, _ in found], 1)
        for group, found in places.items()
    }


def _kept(points: ChannelPoints, labels: np.ndarray, survivors: str) -> Kept:
    """Choose the survivors of one group."""
    group = points.group
    count = int(labels.max()) + 1
    if survivors == "l1":
        per_block = count // group.n_blocks
        order = np.argsort(-points.norms, kind="stable")
        largest = [order[group.blocks[order] == block][:per_block] for block in range(group.n_blocks)]
        return Kept(np.sort(np.concatenate(largest)))
    distances = points.distances.cpu().numpy()
    medoid = np.empty(count, dtype=np.int64)
    for cluster in range(count):
        members = np.flatnonzero(labels == cluster)
        medoid[cluster] = members[distances[members][:, members].sum(1).argmin()]
    return Kept(np.sort(medoid), medoid[labels])
