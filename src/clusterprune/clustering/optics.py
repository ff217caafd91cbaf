"""OPTICS: clusters as valleys of the reachability plot."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from sklearn import cluster
from torch import Tensor

from clusterprune.clustering._base import Clusters, LengthKnob, Reads
from clusterprune.clustering._check import check_integer, check_positive
from clusterprune.clustering._points import distance_points, labels_of
from clusterprune.errors import ArgumentError


@dataclass(frozen=True)
class OPTICS(LengthKnob):
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

    eps
        Cut the reachability plot at this height, as DBSCAN would, in place of the ξ rule; above 0, at most ``max_eps``.
        The knob by which a budget is met; None, the default, is the ξ rule.

    References
    ----------
    Ankerst et al., "OPTICS: ordering points to identify the clustering structure", SIGMOD 1999.
    """

    min_samples: int = 5
    max_eps: float = math.inf
    xi: float = 0.05
    min_cluster_size: int | None = None
    eps: float | None = None

    name: ClassVar[str] = "optics"
    knob: ClassVar[str] = "eps"

    def __post_init__(self) -> None:
        check_integer("min_samples", self.min_samples, 2)
        check_positive("max_eps", self.max_eps, infinite=True)
        check_positive("xi", self.xi)
        if self.xi >= 1:
            raise ArgumentError(f"xi must be below 1, but got xi={self.xi!r}.")
        if self.min_cluster_size is not None:
            check_integer("min_cluster_size", self.min_cluster_size, 2)
        if self.eps is not None:
            check_positive("eps", self.eps)
            if self.eps > self.max_eps:
                raise ArgumentError(f"eps must be at most max_eps={self.max_eps!r}, but got eps={self.eps!r}.")

    @property
    def reads(self) -> Reads:
        """The input that it needs."""
        return "distances"

    def with_knob(self, value: float) -> "OPTICS":
        """Return the same with the reachability plot cut at another height, which ``max_eps`` gives way to."""
        return replace(self, eps=value, max_eps=max(value, self.max_eps))

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
            cluster_method="xi" if self.eps is None else "dbscan",
            eps=self.eps,
            min_cluster_size=self.min_cluster_size,
            metric="precomputed",
        )
        return points.clusters(labels)
