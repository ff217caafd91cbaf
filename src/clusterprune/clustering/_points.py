"""The points as every algorithm gets them: checked, in a canonical order, identical ones known.

scikit-learn's algorithms visit points in the order given, and some results depend on it (border
points of DBSCAN, seeds of k-means, BIRCH's tree). Sorting the points first, by their values, makes
every result independent of the order of the channels.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController
from torch import Tensor

from clusterprune.clustering._base import NOISE, Clusters
from clusterprune.errors import ArgumentError

# Squares of larger numbers come near the end of float64 once they are summed.
_LARGEST = 1e150
# How far, relative to the largest, distances may be from symmetric and from a zero diagonal: as far
# as torch.cdist is in float32, which loses half the digits.
_ASYMMETRY = 1e-3


@dataclass(frozen=True, eq=False)
class Points:
    """Points in canonical order.

    ``values`` are vectors (c, d) or distances (c, c); ``order`` (c,) is the caller's index of each;
    ``twins`` (c,) numbers the sets of identical points 0 … n_distinct − 1.
    """

    values: NDArray[np.float64]
    order: NDArray[np.int64]
    twins: NDArray[np.int64]

    @property
    def n_points(self) -> int:
        """Number of points."""
        return self.order.size

    @property
    def n_distinct(self) -> int:
        """Number of distinct points."""
        return int(self.twins.max()) + 1

    def clusters(self, labels: NDArray[np.int64], n_requested: int | None = None) -> Clusters:
        """Return the labels, given in canonical order, in the caller's order; twins share one."""
        shared = _share_labels(labels, self.twins)
        restored = np.empty_like(shared)
        restored[self.order] = shared
        return Clusters.from_labels(restored, n_requested)

    def distinct(self, n_requested: int | None = None) -> Clusters:
        """Return the trivial answer: one cluster for each distinct point."""
        return self.clusters(self.twins, n_requested)

    def all_noise(self) -> Clusters:
        """Return the other trivial answer: too few points for any cluster."""
        return self.clusters(np.full(self.n_points, NOISE, dtype=np.int64))


def vector_points(name: str, vectors: Tensor | None, distances: Tensor | None) -> Points:
    """Return ``vectors`` as points for the algorithm called ``name``."""
    rows = checked_vectors(name, vectors)
    if distances is not None:
        _checked_distances(name, distances, rows.shape[0])
    order, twins = _sort_rows(rows)
    return Points(rows.numpy()[order], order, twins)


def distance_points(name: str, vectors: Tensor | None, distances: Tensor | None) -> Points:
    """Return ``distances`` as points for the algorithm called ``name``; vectors order them."""
    rows = None if vectors is None else checked_vectors(name, vectors)
    table = _checked_distances(name, distances, None if rows is None else rows.shape[0])
    # Without vectors, each point's distances to all others, sorted, say which it is.
    order, _ = _sort_rows(table.sort(dim=1).values if rows is None else rows)
    table = table.numpy()[np.ix_(order, order)]
    # The first point at distance zero stands for all its twins.
    first = (table == 0).argmax(axis=1)
    _, twins = np.unique(first[first], return_inverse=True)
    return Points(table, order, twins)


def labels_of(
    algorithm: Callable[..., Any],
    values: NDArray[np.float64],
    **options: Any,
) -> NDArray[np.int64]:
    """Return the labels that a scikit-learn algorithm gives to ``values``."""
    with steady():
        return np.asarray(algorithm(**options).fit(values).labels_, dtype=np.int64)


@contextlib.contextmanager
def steady() -> Iterator[None]:
    """Run scikit-learn quietly and reproducibly.

    It warns of what the result here says itself (fewer clusters than asked for, points that are all
    alike). One thread: several add up their sums in an order that changes from run to run.
    """
    with warnings.catch_warnings(), np.errstate(all="ignore"), _threads().limit(limits=1):
        warnings.simplefilter("ignore")
        yield


@functools.cache
def _threads() -> ThreadpoolController:
    return ThreadpoolController()


def checked_vectors(name: str, vectors: Tensor | None) -> Tensor:
    """Return vectors (c, d) in float64 and on the CPU, or raise an ArgumentError that says what they should be."""
    return checked_in_place(name, vectors).cpu()


def checked_in_place(name: str, vectors: Tensor | None) -> Tensor:
    """Return vectors (c, d) in float64 where they are, or raise an ArgumentError that says what they should be."""
    if vectors is None:
        raise ArgumentError(
            f"{name} reads vectors, but got vectors=None; pass vectors=similarity.vectors(...), or use a clustering "
            "that reads distances."
        )
    if vectors.ndim != 2 or vectors.numel() == 0:
        raise ArgumentError(
            "vectors must have shape (channels, coordinates) with at least one of each, but got "
            f"{tuple(vectors.shape)}."
        )
    rows = vectors.detach().to(torch.float64)
    if not (rows.abs() <= _LARGEST).all():
        raise ArgumentError(
            f"vectors must be finite and at most {_LARGEST:g} in magnitude, but got "
            f"{rows.abs().max().item():g}; look for a diverged layer."
        )
    return rows


def _checked_distances(name: str, distances: Tensor | None, n_points: int | None) -> Tensor:
    if distances is None:
        raise ArgumentError(
            f"{name} reads distances, but got distances=None; pass distances=similarity.distances(...)."
        )
    shape = tuple(distances.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise ArgumentError(f"distances must have shape (channels, channels) with at least one, but got {shape}.")
    if n_points is not None and shape[0] != n_points:
        raise ArgumentError(
            f"vectors and distances must be of the same channels, but got {n_points} vectors and "
            f"distances of shape {shape}."
        )
    table = distances.detach().cpu().to(torch.float64)
    if not ((table >= 0) & (table <= _LARGEST)).all():
        raise ArgumentError(
            f"distances must be finite, at least 0 and at most {_LARGEST:g}, but got values from "
            f"{table.min().item():g} to {table.max().item():g}."
        )
    tolerance = _ASYMMETRY * table.max()
    if (table - table.T).abs().max() > tolerance or table.diagonal().max() > tolerance:
        raise ArgumentError(
            "distances must be symmetric with a zero diagonal, but the largest asymmetry is "
            f"{(table - table.T).abs().max().item():g} and the largest diagonal value "
            f"{table.diagonal().max().item():g}."
        )
    return ((table + table.T) / 2).fill_diagonal_(0.0)


def _sort_rows(rows: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the lexicographic order of the rows, and in that order which rows are equal."""
    _, ranks = torch.unique(rows, dim=0, sorted=True, return_inverse=True)
    order = torch.argsort(ranks, stable=True)
    return order.numpy(), ranks[order].numpy()


def _share_labels(labels: NDArray[np.int64], twins: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give each set of identical points the label that most of its clustered members have."""
    shared = labels.copy()
    for twin in np.flatnonzero(np.bincount(twins) > 1):
        members = twins == twin
        clustered = labels[members & (labels != NOISE)]
        if clustered.size:
            shared[members] = np.bincount(clustered).argmax()
    return shared
