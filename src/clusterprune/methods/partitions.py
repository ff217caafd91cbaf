# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""From distances to a partition of every group's channels, as fine as a budget allows."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from clusterprune.budget.allocation import CLOSE, CostModel, Limits, check_fraction, linked, solve
from clusterprune.budget.limits import FINER
from clusterprune.budget.search import search, spend
from clusterprune.clustering import Agglomerative, Clustering
from clusterprune.errors import ArgumentError, BudgetError
from clusterprune.graph import ChannelGraph, Group
from clusterprune.similarity import ChannelPoints


@dataclass(frozen=True, eq=False)
class GroupPoints:
    """A group, and its channels as points."""

    group: Group
    points: ChannelPoints

    @property
    def distances(self) -> Tensor:
        """(channels, channels) float64."""
        return self.points.distances

    @property
    def vectors(self) -> Tensor | None:
        """(channels, values) float64; None where there are distances alone."""
        return self.points.vectors


def partition(
    graph: ChannelGraph, compared: list[GroupPoints], clustering: Clustering, given: dict[str, float], limits: Limits
) -> dict[str, np.ndarray]:
    """Return a partition (labels from 0, no noise) of every group's channels.

    Parameters
    ----------
    given
        The share to keep, by quantity; empty where the clustering itself decides.

    Raises
    ------
    ArgumentError
        If the clustering has no knob that a budget could turn, or makes no given number of clusters.
    BudgetError
        If the target cannot be reached.
    """
    if not given:
        return _Clustered(graph, compared, limits).by(clustering)
    ((quantity, keep),) = given.items()
    check_fraction(f"keep_{quantity}", keep)
    cost = CostModel(graph)
    if not clustering.counts:
        if quantity == "channels":
            raise ArgumentError(
                f"{type(clustering).__name__} cannot make a given number of clusters; use keep_macs, or a clustering "
                "with n_clusters (KMeans, Agglomerative, Spectral, Birch)"
            )
        return _by_length(cost, compared, clustering, quantity, keep, limits)
    if quantity == "channels":
        widths = {c.group.name: max(1, round(keep * c.group.width)) for c in compared}
    else:
        losses = {c.group.name: _linkage_heights(c.distances) for c in compared}
        widths = solve(cost, losses, quantity, keep, limits)  # type: ignore[arg-type]
    labels: dict[str, np.ndarray] = {}
    for c in compared:
        width, allowed = widths[c.group.name], limits.choices_of(graph, c.group)
        # A budget may have asked for a finer width than the limits would choose.
        allowed = allowed if quantity == "channels" else sorted({width, *allowed}, reverse=True)
        labels[c.group.name] = _partition(c, clustering.with_knob(width // c.group.n_blocks), allowed)
    return _even(graph, compared, labels, limits)


class _Clustered:
    """Partitions by a clustering that finds its own number: of leaders, whose followers take theirs."""

    def __init__(self, graph: ChannelGraph, compared: list[GroupPoints], limits: Limits) -> None:
        self.graph, self.compared, self.limits = graph, compared, limits
        self._followed: dict[tuple[str, int], np.ndarray] = {}

    def by(self, clustering: Clustering) -> dict[str, np.ndarray]:
        """Return a partition of every group's channels."""
        leaders = self.graph.leaders
        led = {
            c.group.name: _partition(c, clustering, self.limits.choices_of(self.graph, c.group))
            for c in self.compared
            if c.group.name not in leaders
        }
        led = _even(self.graph, self.compared, led, self.limits)
        followed = {
            c.group.name: self._into(c, int(led[leaders[c.group.name]].max()) + 1)
            for c in self.compared
            if c.group.name in leaders
        }
        # Channels that are equal to one another cannot be told apart by clustering, but split.
        return _even(self.graph, self.compared, led | followed, self.limits)

    def _into(self, compared: GroupPoints, count: int) -> np.ndarray:
        """Return a follower's channels in as many clusters as its leader has."""
        key = compared.group.name, count
        if key not in self._followed:
            tree = Agglomerative(n_clusters=count // compared.group.n_blocks, linkage="average")
            self._followed[key] = _partition(compared, tree, self.limits.choices_of(self.graph, compared.group))
        return self._followed[key]


def _even(
    graph: ChannelGraph, compared: list[GroupPoints], labels: dict[str, np.ndarray], limits: Limits
) -> dict[str, np.ndarray]:
    """Split clusters of groups with linked widths until all of these have as many as the one that has most."""
    by_name = {c.group.name: c for c in compared}
    labels = dict(labels)
    for names in linked(graph, labels):
        most = max(int(labels[name].max()) + 1 for name in names)
        choices = limits.choices_of(graph, *(by_name[name].group for name in names))
        for name in names:
            while labels[name].max() + 1 < most:
                finer = _widen(by_name[name], labels[name], choices)
                if finer is None:
                    break
                labels[name] = finer
    return labels


def _partition(compared: GroupPoints, clustering: Clustering, choices: list[int]) -> np.ndarray:
    """Cluster each block of a group on its own; then split the largest clusters until widths are allowed."""
    group = compared.group
    labels = np.empty(group.width, dtype=np.int64)
    per_block: list[tuple[np.ndarray, np.ndarray]] = []
    for block in range(group.n_blocks):
        members = np.flatnonzero(group.blocks == block)
        index = torch.from_numpy(members)
        capped = clustering.at_most(len(members))
        vectors = None if compared.vectors is None else compared.vectors[index]
        fitted = capped.fit(vectors=vectors, distances=compared.distances[index][:, index])
        per_block.append((members, fitted.as_partition().labels))
    most = max(int(part.max()) + 1 for _, part in per_block)
    allowed = [k for k in choices if k >= most * group.n_blocks]
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
        part[int(_spread(part, distances).argmax())] = part.max() + 1
    return part


def _spread(part: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Return each channel's mean distance to its cluster; -1 for one that is alone."""
    same = part[:, None] == part[None]
    size = same.sum(1)
    return np.where(size == 1, -1.0, np.where(same, distances, 0).sum(1) / size)


def _by_length(
    cost: CostModel, compared: list[GroupPoints], clustering: Clustering, quantity: str, keep: float, limits: Limits
) -> dict[str, np.ndarray]:
    """Find the smallest length, the same for all groups, at which the target is met; then use up what it leaves."""
    graph, by_name = cost.graph, {c.group.name: c for c in compared}

    def share_of(labels: dict[str, np.ndarray]) -> float:
        widths = cost.with_widths({name: int(part.max()) + 1 for name, part in labels.items()})
        return cost.total(quantity, widths) / cost.total(quantity)  # type: ignore[arg-type]

    def fits(labels: dict[str, np.ndarray]) -> bool:
        return share_of(labels) <= keep

    clustered = _Clustered(graph, compared, limits)

    def at(length: float) -> dict[str, np.ndarray]:
        return clustered.by(clustering.with_knob(length))

    most = max(clustering.coarsest(c.vectors, c.distances) for c in compared)
    coarsest = at(most)
    if (share := share_of(coarsest)) > keep * (1 + 1e-9):
        raise BudgetError(
            f"keep_{quantity}={keep:g} is below what clustering can reach: with every group in one cluster {share:.4g} "
            f"remain. Ask for keep_{quantity}>={np.ceil(share * 1e4) / 1e4:g}, or lower min_samples or min_width."
        )
    found = search(at, fits, tight=most, loose=0.0)

    def widened(labels: dict[str, np.ndarray], limits: Limits, enough: float) -> dict[str, np.ndarray]:
        """Split off the channel that is farthest from its cluster, over all groups, until that is enough."""

        def widen(labels: dict[str, np.ndarray], waiting: list[str]) -> tuple[str, dict[str, np.ndarray] | None]:
            name = max(waiting, key=lambda n: _spread(labels[n], by_name[n].distances.cpu().numpy()).max())
            finer = _widen(by_name[name], labels[name], limits.choices_of(graph, by_name[name].group))
            if finer is None or share_of(labels) >= enough:
                return name, None
            return name, _even(graph, compared, {**labels, name: finer}, limits)

        # A follower is split where its leader is.
        return spend(labels, [name for name in by_name if name not in graph.leaders], widen, fits)

    # A cluster of DBSCAN begins with as many channels as `min_samples`.
    found = widened(coarsest if found is None else found, limits, keep)
    for step in FINER if limits.aligned else ():
        found = widened(found, replace(limits, finest=step), keep * (1 - CLOSE))
    return found


def _widen(compared: GroupPoints, part: np.ndarray, choices: list[int]) -> np.ndarray | None:
    """Return a partition of the next allowed width, equally many clusters in each block."""
    group = compared.group
    wider = [k for k in choices if k > part.max() + 1]
    if not wider:
        return None
    count = min(wider) // group.n_blocks
    finer = np.empty_like(part)
    for block in range(group.n_blocks):
        members = np.flatnonzero(group.blocks == block)
        inside = np.unique(part[members], return_inverse=True)[1]
        distances = compared.distances[members][:, members].cpu().numpy()
        finer[members] = _split_until(inside, distances, count) + block * count
    return finer


def _linkage_heights(distances: Tensor) -> np.ndarray:
    """Return the cumulative heights of an average-linkage tree: the price of 0, 1, 2, … merges."""
    heights = linkage(squareform(distances.cpu().numpy(), checks=False), method="average")[:, 2]
    return np.concatenate([[0.0], np.cumsum(np.maximum.accumulate(heights))])
