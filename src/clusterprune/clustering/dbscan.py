"""DBSCAN, the clustering of ICP and ACP."""

from dataclasses import dataclass
from typing import ClassVar

from sklearn import cluster
from torch import Tensor

from clusterprune.clustering._base import Clusters, LengthKnob, Reads
from clusterprune.clustering._check import check_integer, check_positive
from clusterprune.clustering._points import distance_points, labels_of


@dataclass(frozen=True)
class DBSCAN(LengthKnob):
    """Density-based clustering: no number of clusters to choose, and what is alone stays alone.

    A channel with at least ``min_samples`` channels within ``eps``, itself counted, is a core;
    cores within ``eps`` of each other and what lies within ``eps`` of them form a cluster; the rest
    is noise. Channels kept: clusters + noise.

    Parameters
    ----------
    eps
        Neighbourhood radius ε, above 0, inclusive, in units of the distance. The one knob of ICP
        and ACP (0.005 to 0.3 with the cosine distance).
    min_samples
        MinPts, at least 1. ACP Fig. 5 settles on 5.

    References
    ----------
    Ester et al., "A density-based algorithm for discovering clusters", KDD 1996.
    """

    eps: float
    min_samples: int = 5

    name: ClassVar[str] = "dbscan"
    knob: ClassVar[str] = "eps"

    def __post_init__(self) -> None:
        check_positive("eps", self.eps)
        check_integer("min_samples", self.min_samples, 1)

    @property
    def reads(self) -> Reads:
        """The input that it needs."""
        return "distances"

    def fit(self, *, vectors: Tensor | None = None, distances: Tensor | None = None) -> Clusters:
        """Cluster by ``distances`` (c, c); see :class:`Clustering`."""
        points = distance_points(self.name, vectors, distances)
        labels = labels_of(
            cluster.DBSCAN,
            points.values,
            eps=self.eps,
            min_samples=self.min_samples,
            metric="precomputed",
        )
        return points.clusters(labels)
