"""Spectral clustering: k-means on the eigenvectors of the affinity graph."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from sklearn import cluster
from torch import Tensor

from clusterprune.clustering._base import Clusters, CountKnob, Reads
from clusterprune.clustering._check import (
    check_integer,
    check_n_clusters,
    check_positive,
    check_seed,
)
from clusterprune.clustering._points import distance_points, labels_of


@dataclass(frozen=True)
class Spectral(CountKnob):
    """Normalised cuts of the graph with affinities exp(−d² / 2σ²).

    With fewer distinct channels than ``n_clusters``, each distinct channel is a cluster.

    Parameters
    ----------
    n_clusters
        At least 1, at most the number of channels.
    sigma
        Width σ of the affinity, above 0, in units of the distance. None means the median distance
        between distinct channels, so that the result does not depend on the scale of the weights.
    seed
        Of the eigensolver's and k-means' starts, at least 0.
    n_init
        Number of k-means starts, at least 1.

    References
    ----------
    Shi and Malik, "Normalized cuts and image segmentation", 2000; von Luxburg, "A tutorial on
    spectral clustering", 2007.
    """

    n_clusters: int
    sigma: float | None = None
    seed: int = 0
    n_init: int = 10

    name: ClassVar[str] = "spectral"

    def __post_init__(self) -> None:
        check_integer("n_clusters", self.n_clusters, 1)
        if self.sigma is not None:
            check_positive("sigma", self.sigma)
        check_seed(self.seed)
        check_integer("n_init", self.n_init, 1)

    @property
    def reads(self) -> Reads:
        """The input that it needs."""
        return "distances"

    def fit(self, *, vectors: Tensor | None = None, distances: Tensor | None = None) -> Clusters:
        """Cluster by ``distances`` (c, c); see :class:`Clustering`."""
        points = distance_points(self.name, vectors, distances)
        check_n_clusters(self.n_clusters, points.n_points)
        if points.n_distinct <= self.n_clusters:
            return points.distinct(self.n_clusters)
        sigma = self.sigma or float(np.median(points.values[points.values > 0]))
        affinity = np.exp(-0.5 * (points.values / sigma) ** 2)
        labels = labels_of(
            cluster.SpectralClustering,
            affinity,
            n_clusters=self.n_clusters,
            affinity="precomputed",
            random_state=self.seed,
            n_init=self.n_init,
        )
        return points.clusters(labels, self.n_clusters)
