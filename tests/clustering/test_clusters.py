"""Labels, the clusters + noise rule, partitions, medoids and centroids, all by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clusterprune.clustering import Clusters
from clusterprune.errors import ArgumentError

LABELS = np.array([-1, 0, 1, 0, -1, 1, 0])


def test_channels_kept_are_clusters_plus_noise() -> None:
    clusters = Clusters(LABELS)
    assert clusters.n_points == 7
    assert clusters.n_clusters == 2
    assert clusters.n_noise == 2
    assert clusters.n_kept == 4


def test_members_and_noise() -> None:
    clusters = Clusters(LABELS)
    assert clusters.members(0).tolist() == [1, 3, 6]
    assert clusters.members(1).tolist() == [2, 5]
    assert clusters.noise.tolist() == [0, 4]


@pytest.mark.parametrize("k", [-1, 2])
def test_members_of_a_cluster_that_is_not_there_are_refused(k: int) -> None:
    with pytest.raises(ArgumentError, match=f"0 … 1, but got k={k}"):
        Clusters(LABELS).members(k)


def test_members_where_all_is_noise_are_refused() -> None:
    with pytest.raises(ArgumentError, match="there are none, but got k=0"):
        Clusters(np.array([-1, -1])).members(0)


def test_partition_makes_every_noise_channel_a_cluster() -> None:
    partition = Clusters(LABELS, n_requested=2).as_partition()
    assert partition.labels.tolist() == [0, 1, 2, 1, 3, 2, 1]
    assert partition.n_noise == 0
    assert partition.n_requested == 2


@given(st.lists(st.integers(-1, 4), min_size=1, max_size=12))
def test_partition_keeps_who_is_with_whom(labels: list[int]) -> None:
    clusters = Clusters.from_labels(labels)
    partition = clusters.as_partition()
    assert partition.n_clusters == clusters.n_kept
    for i, one in enumerate(labels):
        for j, other in enumerate(labels):
            together = i == j or (one == other and one >= 0)
            assert (partition.labels[i] == partition.labels[j]) == together


def test_from_labels_numbers_by_first_appearance() -> None:
    assert Clusters.from_labels([7, -3, 2, 7, 9]).labels.tolist() == [0, -1, 1, 0, 2]
    assert Clusters.from_labels([-1, -1]).labels.tolist() == [-1, -1]


def test_labels_are_a_read_only_copy() -> None:
    given_labels = np.array([0, 0, 1])
    clusters = Clusters(given_labels)
    given_labels[0] = 1
    assert clusters.labels.tolist() == [0, 0, 1]
    assert clusters.labels.dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        clusters.labels[0] = 1


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "at least one integer"),
        ([[0, 1]], r"shape \(1, 2\)"),
        ([0.0, 1.0], "float64"),
        ([0, 2], r"none left out, but got \[0, 2\]"),
        ([0, -2], r"but got \[-2, 0\]"),
    ],
)
def test_labels_that_are_none_are_refused(labels: list[Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Clusters(np.array(labels))


def test_medoid_is_the_member_nearest_to_the_others() -> None:
    positions = torch.tensor([[0.0], [1.0], [3.0], [50.0], [51.0], [99.0]])
    distances = torch.cdist(positions, positions)
    clusters = Clusters(np.array([0, 0, 0, 1, 1, -1]))
    # In the pair both are as central: the first is taken.
    assert clusters.medoids(distances).tolist() == [1, 3]
    assert clusters.as_partition().medoids(distances).tolist() == [1, 3, 5]


def test_medoid_of_identical_channels_is_the_first() -> None:
    distances = torch.zeros(4, 4)
    assert Clusters(np.array([0, 0, 0, 0])).medoids(distances).tolist() == [0]


def test_medoids_where_all_is_noise_are_none() -> None:
    assert Clusters(np.array([-1, -1])).medoids(torch.zeros(2, 2)).tolist() == []


def test_centroid_is_the_mean_of_the_members() -> None:
    vectors = torch.tensor([[0.0, 2.0], [9.0, 9.0], [4.0, 4.0]])
    clusters = Clusters(np.array([0, -1, 0]))
    assert clusters.centroids(vectors).tolist() == [[2.0, 3.0]]
    assert clusters.as_partition().centroids(vectors).tolist() == [[2.0, 3.0], [9.0, 9.0]]


def test_centroid_of_identical_channels_is_that_channel_to_the_bit() -> None:
    row = torch.rand(50, generator=torch.Generator().manual_seed(0))
    centroids = Clusters(np.zeros(7, dtype=int)).centroids(row.repeat(7, 1))
    assert torch.equal(centroids[0], row.double())


def test_arrays_of_another_size_are_refused() -> None:
    clusters = Clusters(np.array([0, 1, 0]))
    with pytest.raises(ArgumentError, match=r"distances must have shape \(3, 3\).*\(3, 2\)"):
        clusters.medoids(torch.zeros(3, 2))
    with pytest.raises(ArgumentError, match=r"vectors must have shape \(3, d\).*\(2, 5\)"):
        clusters.centroids(torch.zeros(2, 5))
