"""HDBSCAN: DBSCAN over every radius at once."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from sklearn import cluster
from torch import Tensor

from clusterprune.clustering._base import Clusters, LengthKnob, Reads
from clusterprune.clustering._check import check_bool, check_integer, check_positive
from clusterprune.clustering._points import distance_points, steady


@dataclass(frozen=True)
class HDBSCAN(LengthKnob):
    """Hierarchical density-based clustering: clusters of different density, without a radius.

    Parameters
    ----------
    min_cluster_size
        The smallest cluster, at least 2. With fewer channels than this, all are noise.
    min_samples
        Neighbours, itself counted, that make a channel a core; None means ``min_cluster_size``.
    cut
        Cut the hierarchy at this distance, as DBSCAN would, in place of taking the most stable clusters; above 0. The
        knob by which a budget is met; None, the default, takes the most stable ones.
    allow_single_cluster
        Whether all channels may form one cluster. scikit-learn's default is False, which finds
        nothing in a group whose channels are all alike: the very group that has the most to give.

    References
    ----------
    Campello et al., "Density-based clustering based on hierarchical density estimates", PAKDD 2013.
    """

    min_cluster_size: int = 5
    min_samples: int | None = None
    cut: float | None = None
    allow_single_cluster: bool = True

    name: ClassVar[str] = "hdbscan"
    knob: ClassVar[str] = "cut"

    def __post_init__(self) -> None:
        check_integer("min_cluster_size", self.min_cluster_size, 2)
        if self.min_samples is not None:
            check_integer("min_samples", self.min_samples, 1)
        if self.cut is not None:
            check_positive("cut", self.cut)
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
        with steady():
            fitted = cluster.HDBSCAN(
                min_cluster_size=self.min_cluster_size,
                min_samples=self.min_samples,
                allow_single_cluster=self.allow_single_cluster,
                metric="precomputed",
                copy=True,  # type: ignore[arg-type] (as its documentation has it)
            ).fit(points.values)
            labels = fitted.labels_
            if self.cut is not None:
                labels = fitted.dbscan_clustering(self.cut, min_cluster_size=self.min_cluster_size)
        return points.clusters(np.asarray(labels, dtype=np.int64))
