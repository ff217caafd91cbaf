"""Mean shift: clusters as the modes of the density."""

from dataclasses import dataclass
from typing import ClassVar

from sklearn import cluster
from torch import Tensor

from clusterprune.clustering._base import Clusters, LengthKnob, Reads
from clusterprune.clustering._check import check_integer, check_positive
from clusterprune.clustering._points import Points, checked_vectors, labels_of, steady, vector_points
from clusterprune.errors import ArgumentError


@dataclass(frozen=True)
class MeanShift(LengthKnob):
    """Move every point to the mean of its neighbourhood until it rests; who meets is together.

    Parameters
    ----------
    bandwidth
        Radius of the neighbourhood, above 0, Euclidean. None means estimated: the mean distance to
        the farthest of the nearest ``quantile`` of the channels, of which there are at least one
        besides the channel itself.
    quantile
        Above 0, at most 1; read only where the bandwidth is estimated. scikit-learn's 0.3 by
        default.
    max_iter
        Iterations per point at most, at least 1.

    References
    ----------
    Comaniciu and Meer, "Mean shift: a robust approach toward feature space analysis", 2002.
    """

    bandwidth: float | None = None
    quantile: float = 0.3
    max_iter: int = 300

    name: ClassVar[str] = "mean_shift"
    knob: ClassVar[str] = "bandwidth"

    def __post_init__(self) -> None:
        if self.bandwidth is not None:
            check_positive("bandwidth", self.bandwidth)
        check_positive("quantile", self.quantile)
        if self.quantile > 1:
            raise ArgumentError(f"quantile must be at most 1, but got quantile={self.quantile!r}.")
        check_integer("max_iter", self.max_iter, 1)

    @property
    def reads(self) -> Reads:
        """The input that it needs."""
        return "vectors"

    def coarsest(self, vectors: Tensor | None, distances: Tensor) -> float:
        """Return a window that holds everything, wherever it stands."""
        rows = checked_vectors(self.name, vectors)
        return float((rows - rows.mean(0)).norm(dim=1).max()) * 2.02 + 1e-12

    def fit(self, *, vectors: Tensor | None = None, distances: Tensor | None = None) -> Clusters:
        """Cluster ``vectors`` (c, d); see :class:`Clustering`."""
        points = vector_points(self.name, vectors, distances)
        if points.n_distinct == 1:
            return points.distinct()
        bandwidth = self.bandwidth or self._estimate(points)
        if bandwidth == 0:  # Most channels have a twin: the narrowest window sees nothing else.
            return points.distinct()
        labels = labels_of(cluster.MeanShift, points.values, bandwidth=bandwidth, max_iter=self.max_iter)
        return points.clusters(labels)

    def _estimate(self, points: Points) -> float:
        # scikit-learn counts the point itself, and the nearest one of 1 would be that: at least 2.
        quantile = min(1.0, max(self.quantile, 2.5 / points.n_points))
        with steady():
            return float(cluster.estimate_bandwidth(points.values, quantile=quantile))
