"""What a clustering is, and what it returns."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from clusterprune.errors import ArgumentError
from clusterprune.tables import plural

NOISE = -1
Reads = Literal["vectors", "distances"]


@runtime_checkable
class Clustering(Protocol):
    """Who belongs with whom among the channels of one group.

    An implementation is a frozen dataclass whose fields are its options; ``reads`` names the one
    input that it needs, and the other may be given all the same. What every implementation
    promises:

    - the same input gives the same result;
    - reordering the points reorders the result and changes nothing else. (When only distances are
      given, points that no distance tells apart may trade places.);
    - identical points get the same label;
    - it can be given a single point;
    - :meth:`with_knob` leaves all other options as they are, and at the value that :meth:`coarsest` returns, with the
      fewest samples a cluster may have, everything is one cluster.

    A budget is met by one knob. Where it is a number of clusters (:class:`CountKnob`), every group gets another; where
    it is a length (:class:`LengthKnob`), all groups get the same.
    """

    name: ClassVar[str]

    @property
    def reads(self) -> Reads:
        """The input that it needs."""
        ...

    def fit(self, *, vectors: Tensor | None = None, distances: Tensor | None = None) -> "Clusters":
        """Cluster the points.

        Parameters
        ----------
        vectors
            (c, d), one row per channel. Algorithms that read vectors work in Euclidean space.
        distances
            (c, c), symmetric, non-negative, zero on the diagonal.

        Raises
        ------
        ArgumentError
            The input that the algorithm reads is missing, empty or not finite, or the algorithm's
            options do not fit the number of points.
        """
        ...

    @property
    def counts(self) -> bool:
        """Whether the knob is a number of clusters."""
        ...

    def with_knob(self, value: float) -> "Clustering":
        """Return the same clustering with another value of its knob: at least 1 for a number, above 0 for a length."""
        ...

    def coarsest(self, vectors: Tensor | None, distances: Tensor) -> float:
        """Return a value of the knob at which some points (c, d), or distances (c, c), are one cluster if ever."""
        ...

    def at_most(self, n_points: int) -> "Clustering":
        """Return the same clustering, but asking for no more clusters than there are points."""
        ...


class CountKnob:
    """A clustering whose knob is `n_clusters`, a field of its dataclass."""

    n_clusters: Any

    @property
    def counts(self) -> bool:
        """Whether the knob is a number of clusters."""
        return True

    def with_knob(self, value: float) -> Any:
        """Return the same with another number of clusters, at least 1."""
        return replace(self, n_clusters=max(1, int(value)))  # type: ignore[type-var]

    def coarsest(self, vectors: Tensor | None, distances: Tensor) -> float:
        """Return 1: everything in one cluster."""
        return 1

    def at_most(self, n_points: int) -> Any:
        """Return the same, but asking for no more clusters than there are points."""
        asked = self.n_clusters
        return self.with_knob(n_points) if asked is not None and asked > n_points else self


class LengthKnob:
    """A clustering whose knob is a length, the field that `knob` names: clusters grow with it."""

    knob: ClassVar[str]

    @property
    def counts(self) -> bool:
        """Whether the knob is a number of clusters."""
        return False

    def with_knob(self, value: float) -> Any:
        """Return the same with another length, above 0."""
        return replace(self, **{self.knob: value})  # type: ignore[type-var]

    def coarsest(self, vectors: Tensor | None, distances: Tensor) -> float:
        """Return a length beyond the largest distance."""
        return float(distances.max()) * 1.01 + 1e-12

    def at_most(self, n_points: int) -> Any:
        """Return the same: it asks for no number of clusters."""
        return self


@dataclass(frozen=True, eq=False)
class Clusters:
    """A label for every channel.

    Parameters
    ----------
    labels
        (c,) integers: the cluster of each channel, 0 … n_clusters − 1 with none left out, or −1 for
        noise, a channel that is like no other. Kept as a read-only int64 copy.
    n_requested
        The number of clusters that was asked for, if one was. ``n_clusters`` is smaller when there
        are fewer distinct points.

    Raises
    ------
    ArgumentError
        ``labels`` is not a vector of such integers.
    """

    labels: NDArray[np.int64]
    n_requested: int | None = None

    def __post_init__(self) -> None:
        given = np.asarray(self.labels)
        if given.ndim != 1 or given.size == 0 or not np.issubdtype(given.dtype, np.integer):
            raise ArgumentError(
                f"labels must be a vector of at least one integer, but got shape {given.shape} of {given.dtype}."
            )
        present = np.unique(given[given != NOISE])
        if not np.array_equal(present, np.arange(present.size)):
            raise ArgumentError(
                f"labels must be -1 or number the clusters 0, 1, 2, … with none left out, but got "
                f"{present.tolist()}; Clusters.from_labels renumbers any labels."
            )
        labels = given.astype(np.int64)
        labels.flags.writeable = False
        object.__setattr__(self, "labels", labels)

    def __repr__(self) -> str:
        """Say how many clusters there are, of how many channels, and how many channels are noise."""
        asked = "" if self.n_requested is None else f" ({self.n_requested} asked for)"
        noise = int((self.labels == NOISE).sum())
        return f"<Clusters: {self.n_clusters}{asked} of {plural(self.labels.size, 'channel')}, {noise} of them noise>"

    @classmethod
    def from_labels(cls, labels: ArrayLike, n_requested: int | None = None) -> "Clusters":
        """Return clusters numbered in the order in which they first appear; negatives are noise."""
        given = np.asarray(labels)
        renumbered = np.full(given.shape, NOISE, dtype=np.int64)
        clustered = given >= 0
        _, first, inverse = np.unique(given[clustered], return_index=True, return_inverse=True)
        rank = np.empty(first.size, dtype=np.int64)
        rank[np.argsort(first)] = np.arange(first.size)
        renumbered[clustered] = rank[inverse]
        return cls(renumbered, n_requested)

    @property
    def n_points(self) -> int:
        """Number of channels."""
        return self.labels.size

    @property
    def n_clusters(self) -> int:
        """Number of clusters; noise is none."""
        return int(self.labels.max()) + 1

    @property
    def n_noise(self) -> int:
        """Number of channels in no cluster."""
        return int((self.labels == NOISE).sum())

    @property
    def n_kept(self) -> int:
        """Number of channels to keep: clusters + noise (the rule of ICP and ACP)."""
        return self.n_clusters + self.n_noise

    @property
    def noise(self) -> NDArray[np.int64]:
        """Indices of the channels in no cluster, ascending."""
        return np.flatnonzero(self.labels == NOISE)

    def members(self, k: int) -> NDArray[np.int64]:
        """Return the indices of the channels in cluster ``k``, ascending.

        Raises
        ------
        ArgumentError
            There is no cluster ``k``.
        """
        if not 0 <= k < self.n_clusters:
            there = f"0 … {self.n_clusters - 1}" if self.n_clusters else "of which there are none"
            raise ArgumentError(f"k must be a cluster, {there}, but got k={k}.")
        return np.flatnonzero(self.labels == k)

    def as_partition(self) -> "Clusters":
        """Return clusters in which every noise channel is a cluster of its own: ``n_kept`` of them.

        They are numbered in the order in which they first appear.
        """
        labels = self.labels.copy()
        labels[self.noise] = self.n_clusters + np.arange(self.n_noise)
        return Clusters.from_labels(labels, self.n_requested)

    def medoids(self, distances: Tensor) -> NDArray[np.int64]:
        """Return the most central channel of every cluster.

        It is the member with the smallest sum of distances to the other members; of equals, the
        first.

        Parameters
        ----------
        distances
            (c, c).

        Returns
        -------
        ndarray
            (n_clusters,) channel indices. For one channel per cluster and noise point, ask
            ``as_partition()``.

        Raises
        ------
        ArgumentError
            ``distances`` does not have a row and a column per channel.
        """
        if tuple(distances.shape) != (self.n_points, self.n_points):
            raise ArgumentError(
                f"distances must have shape ({self.n_points}, {self.n_points}), one row and "
                f"column per channel, but got {tuple(distances.shape)}."
            )
        table = distances.detach().cpu().numpy()
        medoids = np.empty(self.n_clusters, dtype=np.int64)
        for k in range(self.n_clusters):
            members = self.members(k)
            within = table[np.ix_(members, members)].sum(axis=1, dtype=np.float64)
            # Sums over equal numbers in another order differ in the last place: still equals.
            medoids[k] = members[np.argmax(within <= within.min() * (1 + 1e-12))]
        return medoids

    def centroids(self, vectors: Tensor) -> Tensor:
        """Return the mean vector of every cluster (CP Eqs. 3 and 4).

        Parameters
        ----------
        vectors
            (c, d).

        Returns
        -------
        Tensor
            (n_clusters, d) float64 on the CPU; row k is the mean over ``members(k)``. Where all
            members are identical it is that vector, to the bit.

        Raises
        ------
        ArgumentError
            ``vectors`` does not have a row per channel.
        """
        if vectors.ndim != 2 or vectors.shape[0] != self.n_points:
            raise ArgumentError(
                f"vectors must have shape ({self.n_points}, d), one row per channel, but got {tuple(vectors.shape)}."
            )
        rows = vectors.detach().cpu().to(torch.float64)
        means = torch.empty(self.n_clusters, rows.shape[1], dtype=torch.float64)
        for k in range(self.n_clusters):
            members = rows[torch.from_numpy(self.members(k))]
            means[k] = members[0] + (members - members[0]).mean(dim=0)
        return means
