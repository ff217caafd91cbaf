"""HDBSCAN: DBSCAN over every radius at once."""

from dataclasses import dataclass
from typing import ClassVar

from sklearn import cluster
from torch import Tensor

from clusterprune.clustering._base import Clusters, Reads
from clusterprune.clustering._check import check_bool, check_integer
from clusterprune.clustering._points import distance_points, labels_of


@dataclass(frozen=True)
class HDBSCAN:
    """Hierarchical density-based clustering: clusters of different density, without a radius.

    Parameters
    ----------
    min_cluster_size
        The smallest cluster, at least 2. With fewer channels than this, all are noise.
    min_samples
        Neighbours, itself counted, that make a channel a core; None means ``min_cluster_size``.
    allow_single_cluster
        Whether all channels may form one cluster. scikit-learn's default is False, which finds
        nothing in a group whose channels are all alike: the very group that has the most to give.

    References
    ----------
    Campello et al., "Density-based clustering based on hierarchical density estimates", PAKDD 2013.
    """

    min_cluster_size: int = 5
    min_samples: int | None = None
    allow_single_cluster: bool = True

    name: ClassVar[str] = "hdbscan"

    def __post_init__(self) -> None:
        check_integer("min_cluster_size", self.min_cluster_size, 2)
        if self.min_samples is not None:
            check_integer("min_samples", self.min_samples, 1)
        check_bool("allow_single_cluster", self.allow_single_cluster)

    @property
    def reads(self) -> Reads:
        """The input that it needs."""
        return "distances"

    def fit(self, *, vectors: Tensor | None = None, distances: Tensor | None = None) -> Clusters:
        """Cluster by ``distances`` (c, c); see :class:`Clustering`."""
        points = distance_points(self.name, vectors, distances)
        if points.n_points < max(self.min_cluster_size, self.min_samples or 0):
            return points.all_noise()
        labels = labels_of(
            cluster.HDBSCAN,
            points.values,
            min_cluster_size=self.min_cluster_size,
            min_samples=self.min_samples,
            allow_single_cluster=self.allow_single_cluster,
            metric="precomputed",
            copy=True,
        )
        return points.clusters(labels)
