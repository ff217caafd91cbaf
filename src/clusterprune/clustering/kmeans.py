"""k-means, the clustering of CP."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from sklearn import cluster
from torch import Tensor

from clusterprune.clustering._base import Clusters, CountKnob, Reads
from clusterprune.clustering._check import check_integer, check_n_clusters, check_seed
from clusterprune.clustering._points import checked_in_place, labels_of, vector_points
from clusterprune.clustering.lloyd import lloyd
from clusterprune.errors import ArgumentError


@dataclass(frozen=True)
class KMeans(CountKnob):
    """Clusters of least squared distance to their centroid (CP Eq. 3), started by k-means++.

    With fewer distinct channels than ``n_clusters``, each distinct channel is a cluster:
    ``n_clusters`` of the result is then smaller than its ``n_requested``. Centroids:
    ``Clusters.centroids(vectors)``.

    Parameters
    ----------
    n_clusters
        At least 1, at most the number of channels.
    seed
        Of the random starts, at least 0.
    n_init
        Number of random starts, of which the best is taken, at least 1. A warm start is the only
        start.
    max_iter
        Iterations at most, at least 1.

    References
    ----------
    Lloyd, "Least squares quantization in PCM", 1982; Arthur and Vassilvitskii, "k-means++", SODA
    2007.
    """

    n_clusters: int
    seed: int = 0
    n_init: int = 10
    max_iter: int = 300

    name: ClassVar[str] = "kmeans"

    def __post_init__(self) -> None:
        check_integer("n_clusters", self.n_clusters, 1)
        check_seed(self.seed)
        check_integer("n_init", self.n_init, 1)
        check_integer("max_iter", self.max_iter, 1)

    @property
    def reads(self) -> Reads:
        """The input that it needs."""
        return "vectors"

    def fit(
        self,
        *,
        vectors: Tensor | None = None,
        distances: Tensor | None = None,
        init_centroids: Tensor | None = None,
    ) -> Clusters:
        """Cluster ``vectors`` (c, d); see :class:`Clustering`.

        Parameters
        ----------
        vectors
            (c, d).
        distances
            Not read.
        init_centroids
            (k, d) with k ≤ n_clusters, a warm start, for example from the epoch before. When k is
            smaller, the channels farthest from all centroids so far complete them. Vectors on an accelerator are then
            clustered there (:mod:`clusterprune.clustering.lloyd`), to the end and not to a tolerance.

        Raises
        ------
        ArgumentError
            There are more clusters than channels, or the centroids do not fit.
        """
        if vectors is not None and vectors.device.type != "cpu" and init_centroids is not None:
            return self._where_they_are(checked_in_place(self.name, vectors), init_centroids)
        points = vector_points(self.name, vectors, distances)
        check_n_clusters(self.n_clusters, points.n_points)
        start = None
        if init_centroids is not None:
            start = self._start(torch.from_numpy(points.values), init_centroids).numpy()
        if points.n_distinct <= self.n_clusters:
            return points.distinct(self.n_clusters)
        labels = labels_of(
            cluster.KMeans,
            points.values,
            n_clusters=self.n_clusters,
            init="k-means++" if start is None else start,
            n_init=self.n_init if start is None else 1,
            max_iter=self.max_iter,
            random_state=self.seed,
        )
        return points.clusters(labels, self.n_clusters)

    def _where_they_are(self, points: Tensor, init_centroids: Tensor) -> Clusters:
        """Go on from the centroids on the device of the points (c, d), and bring the labels back."""
        check_n_clusters(self.n_clusters, len(points))
        labels = lloyd(points, self._start(points, init_centroids), self.max_iter)
        return Clusters.from_labels(labels.cpu().numpy(), self.n_clusters)

    def _start(self, points: Tensor, centroids: Tensor) -> Tensor:
        """Return n_clusters centroids on the device of the points (c, d): those given, and the farthest points."""
        given = tuple(centroids.shape)
        width = points.shape[1]
        if len(given) != 2 or not 1 <= given[0] <= self.n_clusters or given[1] != width:
            raise ArgumentError(
                f"init_centroids must have shape (k, {width}) with 1 ≤ k ≤ n_clusters="
                f"{self.n_clusters}, but got {given}."
            )
        start = centroids.detach().to(points.device, torch.float64)
        if not torch.isfinite(start).all():
            raise ArgumentError("init_centroids must be finite, but got NaN or Inf.")
        nearest = torch.cdist(points, start).amin(dim=1)
        for _ in range(self.n_clusters - given[0]):
            farthest = points[nearest.argmax()][None]
            start = torch.cat([start, farthest])
            nearest = torch.minimum(nearest, torch.cdist(points, farthest)[:, 0])
        return start
