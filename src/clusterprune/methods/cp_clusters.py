# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""What CP does after every epoch: cluster the filters of each layer, and replace some by their centroids."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from clusterprune.clustering import NOISE, Clusters, KMeans
from clusterprune.errors import ArgumentError
from clusterprune.graph import ChannelGraph, ParameterSlice
from clusterprune.methods.cp_addition import rows_of
from clusterprune.methods.cp_layers import target_groups
from clusterprune.methods.cp_rates import pruning_rate, replaced_count

if TYPE_CHECKING:
    from clusterprune.methods.cp import CP


class ClusterPruning:
    """Lines 3-7 of Algorithm 1, after every epoch of :func:`clusterprune.train.fit`.

    Parameters
    ----------
    graph
        The network that is going to be trained.
    config
        The method's settings.
    seed
        Of the first k-means.

    Raises
    ------
    ArgumentError
        If a layer is no group that may be cut, or has a batch norm although `batch_norm="removed"`.
    """

    def __init__(self, graph: ChannelGraph, config: "CP", *, seed: int = 0) -> None:
        self.config, self.seed = config, seed
        self.groups = target_groups(graph, config.layers)
        self._counts: dict[str, int] = {}
        self._centroids: dict[str, Tensor] = {}
        left = [group.name for group in self.groups if graph.norms_of(group)]
        if config.batch_norm == "removed" and left:
            raise ArgumentError(
                f"batch_norm='removed', but {left[0]} has a batch norm; train the copy that "
                "without_batch_norm(model, graph) returns, or pass batch_norm='tied'"
            )

    @torch.no_grad()
    def after_epoch(self, model: nn.Module, epoch: int, epochs: int) -> None:
        """Replace filters by their centroids, in place; `epoch` counts from 1."""
        config = self.config
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        rate = pruning_rate(config.schedule, config.goal, epoch, epochs, config.curvature)
        for layer, group in enumerate(self.groups, 1):
            filters = torch.cat([rows_of(tensors, use) for use in group.producers], 1)
            self._counts[group.name] = config.clusters.of(filters, layer, len(self.groups), config.goal)
            clusters = self._cluster(group.name, filters)
            centroids = clusters.centroids(filters)
            distances = (filters - centroids[torch.tensor(clusters.labels)]).norm(dim=1)
            # A filter alone in its cluster is at distance 0 and counts among them, as it does in Eq. 9.
            order = distances.argsort(stable=True)
            count = replaced_count(group.width, rate)
            if config.widths is not None:
                surplus = group.width - config.widths[layer - 1]
                # Rounded, not cut off: the last filter shall not go in the last epoch, after which nothing recovers.
                count = _fewest(clusters.labels[order.numpy()], group.width - round(surplus * rate / config.goal))
            closest = order[:count]
            averaged = clusters if config.mean_of == "cluster" else _among(clusters, closest)
            for use in (*group.producers, *group.carriers):
                _replace(tensors, use, averaged, closest)
            self._centroids[group.name] = centroids.to(tensors[group.producers[0].path].dtype)

    def _cluster(self, name: str, filters: Tensor) -> Clusters:
        """Put filters (N, d) into clusters (Eq. 3)."""
        count, clustering = self._counts[name], self.config.clustering
        if clustering is None:
            start = self._centroids.get(name)
            if start is not None and len(start) > count:  # only Silhouette changes its mind
                start = None
            # One start is enough: the next epoch clusters again.
            return KMeans(count, seed=self.seed, n_init=1).fit(vectors=filters, init_centroids=start)
        if getattr(clustering, "n_clusters", None) is not None:
            clustering = replace(clustering, n_clusters=count)  # type: ignore[type-var]
        distances = torch.cdist(filters, filters).fill_diagonal_(0) if clustering.reads == "distances" else None
        return clustering.fit(vectors=filters, distances=distances).as_partition()

    def tensors(self) -> dict[str, Tensor]:
        """Return what the next epoch starts from, centroids and numbers of clusters, and the settings as text."""
        found = {"settings": torch.tensor(list(repr(self.config).encode()), dtype=torch.uint8)}
        found |= {f"clusters.{name}": torch.tensor(count) for name, count in self._counts.items()}
        return found | {f"centroids.{name}": centroids.clone() for name, centroids in self._centroids.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`tensors` returned.

        Raises
        ------
        ArgumentError
            If that was under other settings.
        """
        settings = bytes(tensors["settings"].tolist()).decode()
        if settings != repr(self.config):
            raise ArgumentError(
                f"config={self.config!r} differs from that of the run being resumed, {settings}; "
                "resume with the same settings, or start in another folder"
            )
        parts = [(key.partition(".")[0], key.partition(".")[2], value) for key, value in tensors.items()]
        self._counts = {name: int(value) for kind, name, value in parts if kind == "clusters"}
        self._centroids = {name: value.cpu().clone() for kind, name, value in parts if kind == "centroids"}


def _fewest(labels: np.ndarray, width: int) -> int:
    """Return how many of the first filters must be replaced so that `width` different ones are left.

    Parameters
    ----------
    labels
        Cluster of each filter, in the order in which they are replaced: shape (N,).
    """
    # A cluster's first replaced filter becomes its centroid and stays; every further one goes.
    first = np.zeros(len(labels), dtype=bool)
    first[np.unique(labels, return_index=True)[1]] = True
    left = len(labels) - np.cumsum(~first)
    enough = np.flatnonzero(left <= width)
    return 0 if width >= len(labels) else int(enough[0]) + 1 if len(enough) else len(labels)


def _among(clusters: Clusters, chosen: Tensor) -> Clusters:
    """Return the clusters of the chosen filters; the others are noise."""
    labels = np.full(clusters.n_points, NOISE)
    labels[chosen.numpy()] = clusters.labels[chosen.numpy()]
    return Clusters.from_labels(labels)


def _replace(tensors: dict[str, Tensor], use: ParameterSlice, clusters: Clusters, closest: Tensor) -> None:
    """Set what a parameter holds for the closest channels to the mean over their clusters."""
    stored = tensors[use.path].detach().movedim(use.dim, 0)
    positions = torch.from_numpy(use.positions)[closest].to(stored.device)
    means = clusters.centroids(rows_of(tensors, use))[torch.tensor(clusters.labels)[closest]]
    stored[positions] = means.view(*positions.shape, *stored.shape[1:]).to(stored.device, stored.dtype)
