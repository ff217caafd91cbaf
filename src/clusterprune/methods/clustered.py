"""Plans from clusters: compare channels, cluster them, keep one of each kind, merge or drop the others.

This is the step that ICP, ACP and CP share, with every choice open: similarity, clustering, budget, which
channel of a cluster survives, and what the survivors take over.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from clusterprune.budget import CostModel, Limits, check_fraction, solve
from clusterprune.clustering import DBSCAN, Clustering
from clusterprune.errors import ArgumentError, BudgetError
from clusterprune.graph import ChannelGraph, Group
from clusterprune.graph.program import Program
from clusterprune.merge.assign import add, drop, scaled_add
from clusterprune.merge.least_squares import mixing_matrix
from clusterprune.merge.refit import refit
from clusterprune.merge.statistics import (
    Images,
    Progress,
    as_inputs,
    batch_size_for,
    batches,
    consumer_calls,
    input_moments,
    whole_batches,
)
from clusterprune.plans import Merge, Plan
from clusterprune.similarity import FeatureMaps, Filters, pairwise_distances
from clusterprune.surgery import bias_home, named_tensors

MergeKind = Literal["drop", "add", "scaled_add", "least_squares", "refit"]


@dataclass(frozen=True, eq=False)
class _Compared:
    """A group's channels as points: vectors for clustering, distances, and ℓ1 norms of their filters."""

    group: Group
    vectors: Tensor
    distances: Tensor
    norms: np.ndarray


def plan(
    graph: ChannelGraph,
    images: Images | None = None,
    *,
    similarity: FeatureMaps | Filters | None = None,
    clustering: Clustering | None = None,
    merge: MergeKind = "least_squares",
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
    merge
        What the survivors take over.
    survivors
        "medoid": one channel per cluster, the most central. "l1": only the *number* of clusters is used
        and the filters of largest ℓ1 norm stay, as in the released code of ICP and ACP.
    keep_channels, keep_macs, keep_params
        At most one. Without any, the clustering itself decides: clusters plus noise points (its ε, or its
        number of clusters). With one, the widths are solved for: ε by bisection for clusterings that have
        one, otherwise cluster counts from the heights of an average-linkage tree, over all groups together.

    Raises
    ------
    ArgumentError
        For options that contradict each other, or missing images.
    BudgetError
        If a target cannot be reached.
    """
    similarity = similarity or FeatureMaps()
    clustering = clustering or DBSCAN(eps=0.02)
    _check(images, similarity, merge, survivors)
    limits = Limits(round_to, min_width)
    graph = graph.freeze(ignore)
    groups = list(graph.prunable)
    generator = torch.Generator().manual_seed(seed)
    images = None if images is None else whole_batches(graph, images)
    compared = _compare(graph, groups, images, similarity)
    given = {
        k: v for k, v in (("channels", keep_channels), ("macs", keep_macs), ("params", keep_params)) if v is not None
    }
    if len(given) > 1:
        raise ArgumentError(f"give at most one of keep_channels, keep_macs and keep_params, but got {sorted(given)}")
    labels = _cluster_to_budget(graph, compared, clustering, given, limits)
    moments = (
        _moments(graph, groups, images, generator, progress)
        if merge in ("scaled_add", "least_squares", "refit")
        else {}
    )
    merges = tuple(
        made
        for c in compared
        if (made := _merge(graph, c, labels[c.group.name], merge, survivors, moments)) is not None
    )
    result = Plan.of(graph, merges)
    if merge == "refit" and merges and images is not None:
        result = refit(graph, result, images, batch_size=batch_size_for(graph), generator=generator, progress=progress)
    notes = {
        "method": "clustering",
        "similarity": repr(similarity),
        "clustering": repr(clustering),
        "merge": merge,
        "survivors": survivors,
        "seed": seed,
        **{f"keep_{k}": v for k, v in given.items()},
    }
    return replace(result, notes=notes)


def _check(images: Images | None, similarity: object, merge: str, survivors: str) -> None:
    kinds = ("drop", "add", "scaled_add", "least_squares", "refit")
    if merge not in kinds:
        raise ArgumentError(f"merge must be one of {', '.join(kinds)}, but got merge={merge!r}")
    if survivors not in ("medoid", "l1"):
        raise ArgumentError(f"survivors must be 'medoid' or 'l1', but got survivors={survivors!r}")
    if survivors == "l1" and merge in ("add", "scaled_add"):
        raise ArgumentError(
            f"merge={merge!r} hands each channel to the survivor of its cluster, but survivors='l1' keeps channels "
            "regardless of clusters; use survivors='medoid', or merge='drop' or 'least_squares'"
        )
    needs = isinstance(similarity, FeatureMaps) or merge in ("scaled_add", "least_squares", "refit")
    if images is None and needs:
        raise ArgumentError(
            f"images=None does not go with similarity={type(similarity).__name__} and merge={merge!r}, which look at "
            "feature maps; give images, or use Filters with merge='drop' or 'add'"
        )


def _compare(
    graph: ChannelGraph, groups: list[Group], images: Images | None, similarity: FeatureMaps | Filters
) -> list[_Compared]:
    """Turn every group's channels into points; a channel that several layers make is one long point."""
    tensors = {path: tensor.detach() for path, tensor in named_tensors(graph).items()}
    if isinstance(similarity, FeatureMaps) and images is not None:
        points = _mean_maps(graph, groups, images, similarity)
    else:
        fold = isinstance(similarity, Filters) and similarity.fold_batch_norm
        points = {group.name: _filters(graph, group, tensors, fold=fold) for group in groups}
    compared = []
    for group in groups:
        vectors = points[group.name]
        norms = sum(
            tensors[use.path].movedim(use.dim, 0)[torch.from_numpy(use.positions)].abs().flatten(1).sum(1).double()
            for use in group.producers
        )
        distances = pairwise_distances(vectors, similarity.metric)
        compared.append(_Compared(group, vectors, distances, torch.as_tensor(norms).cpu().numpy()))
    return compared


def _mean_maps(graph: ChannelGraph, groups: list[Group], images: Images, similarity: FeatureMaps) -> dict[str, Tensor]:
    """Average feature maps over the images (ACP Eq. 1), at conv outputs or at what consumers read."""
    program = Program(graph)
    weights = program.weights(named_tensors(graph))
    places: dict[str, list[tuple[str, np.ndarray, str]]] = {}
    for group in groups:
        uses = group.producers if similarity.at == "conv_output" else group.consumers
        found = []
        for use in uses:
            for call in graph.calls:
                if call.weight == use.path:
                    name = call.node if similarity.at == "conv_output" else call.input
                    found.append((name, use.positions, call.kind))
        places[group.name] = found
    wanted = {name: kind for found in places.values() for name, _, kind in found}
    last = max(program.index.get(name, 0) for name in wanted)
    sums: dict[str, Tensor] = {}
    with torch.no_grad():
        for batch in batches(images, batch_size_for(graph)):
            values: dict[str, Any] = program.bind(batch) | weights
            seen: set[str] = set()
            for position in range(last + 1):
                program.advance(values, position, position + 1)
                name = program.steps[position].name
                if name in wanted and name not in seen:
                    seen.add(name)
                    value = values[name]
                    dim = 1 if wanted[name].startswith("conv") else value.ndim - 1
                    total = value.movedim(dim, 1).sum(0).double()
                    total = total.reshape(len(total), -1)
                    sums[name] = sums.get(name, 0) + total
    count = len(as_inputs(images)[0])
    return {
        group: torch.cat([(sums[name] / count)[torch.from_numpy(p)].flatten(1) for name, p, _ in found], 1)
        for group, found in places.items()
    }


def _filters(graph: ChannelGraph, group: Group, tensors: dict[str, Tensor], *, fold: bool) -> Tensor:
    """Flatten the filters that make each channel; optionally with the batch norm behind them folded in."""
    parts = []
    nodes = {node.name: node for node in graph.fx.nodes}
    for use in group.producers:
        rows = tensors[use.path].movedim(use.dim, 0).flatten(1).double()
        call = next(c for c in graph.calls if c.weight == use.path)
        users = list(nodes[call.node].users)
        if fold and len(users) == 1 and "batch_norm" in str(users[0].target):
            stored = [graph.inputs.get(getattr(a, "name", "")) for a in users[0].args[1:5]]
            gamma, beta, mean, var = (tensors[p].double() if p else None for p in stored)
            if mean is not None and var is not None:
                scale = (var + float(users[0].args[7])).rsqrt()  # type: ignore[arg-type]
                scale = scale if gamma is None else scale * gamma
                shift = -mean * scale if beta is None else beta - mean * scale
                rows = torch.cat([rows * scale[:, None], shift[:, None]], 1)
        parts.append(rows[torch.from_numpy(use.positions)].flatten(1))
    return torch.cat(parts, 1)


def _cluster_to_budget(
    graph: ChannelGraph, compared: list[_Compared], clustering: Clustering, given: dict[str, float], limits: Limits
) -> dict[str, np.ndarray]:
    """Return a partition (labels from 0, no noise) of every group's channels."""
    names = {f.name for f in fields(clustering)}  # type: ignore[arg-type]
    if not given:
        return {c.group.name: _partition(c, clustering, limits) for c in compared}
    ((quantity, keep),) = given.items()
    check_fraction(f"keep_{quantity}", keep)
    if quantity == "channels":
        widths = {c.group.name: max(1, round(keep * c.group.width)) for c in compared}
    else:
        cost = CostModel(graph)
        if "eps" in names:
            return _bisect_eps(cost, compared, clustering, quantity, keep, limits)
        losses = {c.group.name: _linkage_heights(c.distances) for c in compared}
        widths = solve(cost, losses, quantity, keep, limits)  # type: ignore[arg-type]
    if "n_clusters" not in names:
        raise ArgumentError(
            f"{type(clustering).__name__} cannot make a given number of clusters; use keep_macs with DBSCAN, "
            "or a clustering with n_clusters (KMeans, Agglomerative, Spectral, Birch)"
        )
    labels = {}
    for c in compared:
        count = widths[c.group.name] // c.group.n_blocks
        fitted = replace(clustering, n_clusters=max(1, count))  # type: ignore[type-var]
        labels[c.group.name] = _partition(c, fitted, limits)
    return labels


def _partition(compared: _Compared, clustering: Clustering, limits: Limits) -> np.ndarray:
    """Cluster each block of a group on its own; then split the largest clusters until widths are allowed."""
    group = compared.group
    labels = np.empty(group.width, dtype=np.int64)
    per_block = []
    for block in range(group.n_blocks):
        members = np.flatnonzero(group.blocks == block)
        index = torch.from_numpy(members)
        capped = clustering
        if getattr(clustering, "n_clusters", None) is not None and clustering.n_clusters > len(members):  # type: ignore[attr-defined]
            capped = replace(clustering, n_clusters=len(members))  # type: ignore[type-var]
        fitted = capped.fit(vectors=compared.vectors[index], distances=compared.distances[index][:, index])
        per_block.append((members, fitted.as_partition().labels))
    most = max(int(part.max()) + 1 for _, part in per_block)
    allowed = [k for k in limits.choices(group.width, group.n_blocks) if k >= most * group.n_blocks]
    count = allowed[-1] // group.n_blocks
    start = 0
    for members, part in per_block:
        full = _split_until(part.copy(), compared.distances[members][:, members].cpu().numpy(), count)
        labels[members] = full + start
        start += count
    return labels


def _split_until(part: np.ndarray, distances: np.ndarray, count: int) -> np.ndarray:
    """Split off the channel that is farthest from its cluster's centre until there are `count` clusters."""
    while part.max() + 1 < count:
        same = part[:, None] == part[None]
        spread = np.where(same, distances, 0).sum(1) / same.sum(1)
        spread[same.sum(1) == 1] = -1
        part[int(spread.argmax())] = part.max() + 1
    return part


def _bisect_eps(
    cost: CostModel, compared: list[_Compared], clustering: Clustering, quantity: str, keep: float, limits: Limits
) -> dict[str, np.ndarray]:
    """Find the smallest ε, the same for all groups, at which the target is met."""
    index = {group.name: i for i, group in enumerate(cost.graph.groups)}

    def at(eps: float) -> tuple[float, dict[str, np.ndarray]]:
        labels = {c.group.name: _partition(c, replace(clustering, eps=eps), limits) for c in compared}  # type: ignore[type-var]
        widths = cost.widths.copy()
        for name, part in labels.items():
            widths[index[name]] = part.max() + 1
        return cost.total(quantity, widths) / cost.total(quantity), labels  # type: ignore[arg-type]

    low, high = 0.0, max(float(c.distances.max()) for c in compared) * 1.01 + 1e-12
    share, best = at(high)
    if share > keep * (1 + 1e-9):
        raise BudgetError(
            f"keep_{quantity}={keep:g} is below what clustering can reach: with every group in one cluster {share:.4g} "
            f"remain. Ask for keep_{quantity}>={np.ceil(share * 1e4) / 1e4:g}, or lower min_samples or min_width."
        )
    for _ in range(30):
        middle = (low + high) / 2
        share, labels = at(middle)
        if share <= keep:
            high, best = middle, labels
        else:
            low = middle
    return best


def _linkage_heights(distances: Tensor) -> np.ndarray:
    """Return the cumulative heights of an average-linkage tree: the price of 0, 1, 2, … merges."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    heights = linkage(squareform(distances.cpu().numpy(), checks=False), method="average")[:, 2]
    return np.concatenate([[0.0], np.cumsum(np.maximum.accumulate(heights))])


def _moments(
    graph: ChannelGraph,
    groups: list[Group],
    images: Images | None,
    generator: torch.Generator,
    progress: Progress | None,
) -> dict[str, Tensor]:
    if images is None:
        return {}
    calls = consumer_calls(graph, {use.path for group in groups for use in group.consumers})
    every = {node: False for nodes in calls.values() for node in nodes}
    return input_moments(
        graph,
        named_tensors(graph),
        images,
        every,
        rows=32768,
        batch_size=batch_size_for(graph),
        generator=generator,
        progress=progress,
    )


def _merge(
    graph: ChannelGraph, compared: _Compared, labels: np.ndarray, kind: str, survivors: str, moments: dict[str, Tensor]
) -> Merge | None:
    """Choose the survivors of one group and what they take over at each consumer."""
    group = compared.group
    count = int(labels.max()) + 1
    if count == group.width:
        return None
    if survivors == "l1":
        per_block = count // group.n_blocks
        order = np.argsort(-compared.norms, kind="stable")
        kept = np.sort(np.concatenate([order[group.blocks[order] == b][:per_block] for b in range(group.n_blocks)]))
        representative = kept
    else:
        distances = compared.distances.cpu().numpy()
        medoid = np.empty(count, dtype=np.int64)
        for cluster in range(count):
            members = np.flatnonzero(labels == cluster)
            medoid[cluster] = members[distances[members][:, members].sum(1).argmin()]
        kept, representative = np.sort(medoid), medoid[labels]
    mixing: dict[str, Tensor] = {}
    offset: dict[str, Tensor] = {}
    for use in group.consumers:
        node = next(call.node for call in graph.calls if call.weight == use.path)
        if kind == "drop":
            mixing[use.path] = drop(group.width, kept)
        elif kind == "add":
            mixing[use.path] = add(representative, kept)
        elif kind == "scaled_add":
            index = torch.from_numpy(use.positions[:, 0])
            mixing[use.path] = scaled_add(representative, kept, moments[node][index][:, index])
        else:
            home = bias_home(graph, use.path)
            mixing[use.path], constant = mixing_matrix(moments[node], use, kept, offset=home is not None)
            if home is not None:
                offset[use.path] = constant
    return Merge(group.name, kept, mixing, offset)
