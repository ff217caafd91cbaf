"""BIRCH: a tree of subclusters, built in one pass, then clustered."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from sklearn import cluster
from sklearn.metrics import pairwise_distances
from torch import Tensor

from clusterprune.clustering._base import Clusters, CountKnob, Reads
from clusterprune.clustering._check import check_integer, check_n_clusters, check_positive
from clusterprune.clustering._points import Points, labels_of, vector_points


@dataclass(frozen=True)
class Birch(CountKnob):
    """Balanced iterative reducing and clustering using hierarchies.

    Channels are first gathered into subclusters no wider than ``threshold``; those are clustered
    agglomeratively (ward) into ``n_clusters``. The result has fewer clusters when there are fewer
    subclusters.

    Parameters
    ----------
    n_clusters
        At least 1, at most the number of channels; None takes the subclusters as they are.
    threshold
        Largest radius of a subcluster, above 0, Euclidean. None means half the median distance of a
        channel to the nearest distinct one: a fixed length would not fit filters of every scale.
    branching_factor
        Children per node of the tree at most, at least 2.

    References
    ----------
    Zhang et al., "BIRCH: an efficient data clustering method for very large databases", SIGMOD
    1996.
    """

    n_clusters: int | None = None
    threshold: float | None = None
    branching_factor: int = 50

    name: ClassVar[str] = "birch"

    def __post_init__(self) -> None:
        if self.n_clusters is not None:
            check_integer("n_clusters", self.n_clusters, 1)
        if self.threshold is not None:
            check_positive("threshold", self.threshold)
        check_integer("branching_factor", self.branching_factor, 2)

    @property
    def reads(self) -> Reads:
        """The input that it needs."""
        return "vectors"

    def fit(self, *, vectors: Tensor | None = None, distances: Tensor | None = None) -> Clusters:
        """Cluster ``vectors`` (c, d); see :class:`Clustering`."""
        points = vector_points(self.name, vectors, distances)
        if self.n_clusters is not None:
            check_n_clusters(self.n_clusters, points.n_points)
        if points.n_distinct <= (self.n_clusters or 1):
            return points.distinct(self.n_clusters)
        if self.n_clusters == 1:  # scikit-learn cannot, where all are in one subcluster already
            return points.clusters(np.zeros(points.n_points, dtype=np.int64), 1)
        labels = labels_of(
            cluster.Birch,
            points.values,
            n_clusters=self.n_clusters,
            threshold=self.threshold or _half_nearest(points),
            branching_factor=self.branching_factor,
        )
        return points.clusters(labels, self.n_clusters)


def _half_nearest(points: Points) -> float:
    _, first = np.unique(points.twins, return_index=True)
    distances = pairwise_distances(points.values[first])
    np.fill_diagonal(distances, np.inf)
    nearest = float(np.median(distances.min(axis=1)))
    return max(nearest / 2, np.finfo(np.float64).tiny)
