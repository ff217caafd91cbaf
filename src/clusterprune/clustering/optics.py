"""OPTICS: clusters as valleys of the reachability plot."""

import math
from dataclasses import dataclass
from typing import ClassVar

from sklearn import cluster
from torch import Tensor

from clusterprune.clustering._base import Clusters, Reads
from clusterprune.clustering._check import check_integer, check_positive
from clusterprune.clustering._points import distance_points, labels_of
from clusterprune.errors import ArgumentError


@dataclass(frozen=True)
class OPTICS:
    """Ordering points to identify the clustering structure, with the ξ rule for the clusters.

    Parameters
    ----------
    min_samples
        Neighbours, itself counted, that make a channel a core, at least 2; also the smallest
        cluster unless ``min_cluster_size`` is given. With fewer channels than this, all are noise.
    max_eps
        The largest radius looked at, above 0; infinite by default.
    xi
        The relative drop of reachability that starts a cluster, between 0 and 1, both excluded.
    min_cluster_size
        The smallest cluster, at least 2; None means ``min_samples``.

    References
    ----------
    Ankerst et al., "OPTICS: ordering points to identify the clustering structure", SIGMOD 1999.
    """

    min_samples: int = 5
    max_eps: float = math.inf
    xi: float = 0.05
    min_cluster_size: int | None = None

    name: ClassVar[str] = "optics"

    def __post_init__(self) -> None:
        check_integer("min_samples", self.min_samples, 2)
        check_positive("max_eps", self.max_eps, infinite=True)
        check_positive("xi", self.xi)
        if self.xi >= 1:
            raise ArgumentError(f"xi must be below 1, but got xi={self.xi!r}.")
        if self.min_cluster_size is not None:
            check_integer("min_cluster_size", self.min_cluster_size, 2)

    @property
    def reads(self) -> Reads:
        """The input that it needs."""
        return "distances"

    def fit(self, *, vectors: Tensor | None = None, distances: Tensor | None = None) -> Clusters:
        """Cluster by ``distances`` (c, c); see :class:`Clustering`."""
        points = distance_points(self.name, vectors, distances)
        if points.n_points < max(self.min_samples, self.min_cluster_size or 0):
            return points.all_noise()
        labels = labels_of(
            cluster.OPTICS,
            points.values,
            min_samples=self.min_samples,
            max_eps=float(self.max_eps),
            xi=float(self.xi),
            min_cluster_size=self.min_cluster_size,
            metric="precomputed",
        )
        return points.clusters(labels)
