"""Agglomerative clustering: merge the two nearest until enough is merged."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

from sklearn import cluster
from torch import Tensor

from clusterprune.clustering._base import Clusters, CountKnob, Reads
from clusterprune.clustering._check import (
    check_choice,
    check_integer,
    check_n_clusters,
    check_positive,
)
from clusterprune.clustering._points import checked_vectors, distance_points, labels_of, vector_points
from clusterprune.errors import ArgumentError

Linkage = Literal["ward", "complete", "average", "single"]
LINKAGES: tuple[Linkage, ...] = get_args(Linkage)


@dataclass(frozen=True)
class Agglomerative(CountKnob):
    """Bottom-up hierarchical clustering.

    Exactly one of ``n_clusters`` and ``distance_threshold`` says where to stop. With fewer distinct
    channels than ``n_clusters``, each distinct channel is a cluster.

    Parameters
    ----------
    n_clusters
        At least 1, at most the number of channels.
    distance_threshold
        Clusters at this linkage distance or beyond are not merged, at least 0. At 0 only identical
        channels are together.
    linkage
        ``ward`` reads vectors and merges what adds least variance; ``complete``, ``average`` and
        ``single`` read distances and merge by the largest, mean and smallest distance.

    References
    ----------
    Ward, "Hierarchical grouping to optimize an objective function", 1963.
    """

    n_clusters: int | None = None
    distance_threshold: float | None = None
    linkage: Linkage = "ward"

    name: ClassVar[str] = "agglomerative"

    def __post_init__(self) -> None:
        if (self.n_clusters is None) == (self.distance_threshold is None):
            raise ArgumentError(
                "agglomerative needs exactly one of n_clusters and distance_threshold, but got "
                f"n_clusters={self.n_clusters!r} and "
                f"distance_threshold={self.distance_threshold!r}."
            )
        if self.n_clusters is not None:
            check_integer("n_clusters", self.n_clusters, 1)
        if self.distance_threshold is not None:
            check_positive("distance_threshold", self.distance_threshold, zero=True)
        check_choice("linkage", self.linkage, LINKAGES)

    @property
    def reads(self) -> Reads:
        """The input it needs, which depends on the linkage."""
        return "vectors" if self.linkage == "ward" else "distances"

    @property
    def counts(self) -> bool:
        """Whether the knob is a number of clusters: not where a threshold was given."""
        return self.distance_threshold is None

    def with_knob(self, value: float) -> "Agglomerative":
        """Return the same with another number of clusters, or another threshold where one was given."""
        return super().with_knob(value) if self.counts else replace(self, distance_threshold=value)

    def coarsest(self, vectors: Tensor | None, distances: Tensor) -> float:
        """Return 1, or a threshold above the last merge: that of Ward's linkage grows with the root of the number."""
        if self.counts:
            return 1
        if self.linkage != "ward":
            return float(distances.max() / 2) * 2.02 + 1e-12
        rows = checked_vectors(self.name, vectors)
        return float((rows - rows.mean(0)).norm(dim=1).max()) * 2.02 * len(rows) ** 0.5 + 1e-12

    def fit(self, *, vectors: Tensor | None = None, distances: Tensor | None = None) -> Clusters:
        """Cluster ``vectors`` (c, d) with ward, else by ``distances`` (c, c)."""
        take = vector_points if self.linkage == "ward" else distance_points
        points = take(f"{self.name} with linkage={self.linkage!r}", vectors, distances)
        if self.n_clusters is not None:
            check_n_clusters(self.n_clusters, points.n_points)
        if points.n_distinct <= (self.n_clusters or 1):
            return points.distinct(self.n_clusters)
        labels = labels_of(
            cluster.AgglomerativeClustering,
            points.values,
            n_clusters=self.n_clusters,
            distance_threshold=self.distance_threshold,
            linkage=self.linkage,
            metric="euclidean" if self.linkage == "ward" else "precomputed",
        )
        return points.clusters(labels, self.n_clusters)
