"""k-means as in CP: duplicated filters, warm starts, centroids."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import cluster

from clusterprune.clustering import Clusters, KMeans
from clusterprune.clustering.lloyd import lloyd
from clusterprune.errors import ArgumentError


def _filters(count: int = 24, length: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, length, dtype=torch.float64, generator=generator)


def _inertia(vectors: torch.Tensor, labels: np.ndarray) -> float:
    groups = [vectors[torch.from_numpy(labels == k)] for k in range(labels.max() + 1)]
    return sum(float((group - group.mean(dim=0)).square().sum()) for group in groups)


def test_is_as_good_as_scikit_learn() -> None:
    vectors = _filters()
    ours = KMeans(5, n_init=20).fit(vectors=vectors)
    starts: Any = 20  # scikit-learn's default, "auto", hides that it takes a number
    plain = cluster.KMeans(5, n_init=starts, random_state=0).fit(vectors.numpy())
    assert plain.inertia_ is not None
    assert ours.n_clusters == 5
    assert _inertia(vectors, ours.labels) <= plain.inertia_ * 1.05


def test_another_seed_may_give_another_result() -> None:
    vectors = _filters(60)
    partitions = {tuple(KMeans(9, seed=seed, n_init=1).fit(vectors=vectors).labels) for seed in range(5)}
    assert len(partitions) > 1


def test_a_warm_start_at_the_result_stays_there() -> None:
    vectors = _filters(60)
    first = KMeans(9, n_init=1, seed=3).fit(vectors=vectors)
    again = KMeans(9, seed=8).fit(vectors=vectors, init_centroids=first.centroids(vectors))
    assert np.array_equal(again.labels, first.labels)


def test_a_warm_start_decides_the_result() -> None:
    # A square: left with right, or top with bottom, are equally good.
    vectors = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    sideways = torch.tensor([[0.0, 0.5], [1.0, 0.5]])
    upward = torch.tensor([[0.5, 0.0], [0.5, 1.0]])
    labels = KMeans(2).fit(vectors=vectors, init_centroids=sideways).labels
    assert labels.tolist() == [0, 1, 0, 1]
    labels = KMeans(2).fit(vectors=vectors, init_centroids=upward).labels
    assert labels.tolist() == [0, 0, 1, 1]


def test_missing_start_centroids_are_completed_by_the_farthest_channels() -> None:
    vectors = torch.tensor([[0.0], [0.1], [10.0], [10.1], [30.0]])
    clusters = KMeans(3).fit(vectors=vectors, init_centroids=torch.tensor([[0.05]]))
    assert clusters.labels.tolist() == [0, 0, 1, 1, 2]


def test_duplicated_filters_give_the_distinct_ones_and_say_so() -> None:
    vectors = _filters(3)[torch.tensor([0, 1, 0, 2, 2, 1, 0])]
    clusters = KMeans(6).fit(vectors=vectors, init_centroids=_filters(6, seed=1))
    assert clusters.labels.tolist() == [0, 1, 0, 2, 2, 1, 0]
    assert (clusters.n_clusters, clusters.n_requested) == (3, 6)
    assert torch.equal(clusters.centroids(vectors), _filters(3))


@pytest.mark.parametrize("difference", [1e-300, 1e-18, 1e-12])
def test_filters_that_hardly_differ_do_no_harm(difference: float) -> None:
    vectors = torch.ones(8, 2, dtype=torch.float64)
    vectors[:, 1] = torch.arange(8) * difference
    clusters = KMeans(4).fit(vectors=vectors)
    assert 1 <= clusters.n_clusters <= 4
    assert clusters.n_noise == 0


@pytest.mark.parametrize("shape", [(4, 6), (0, 6), (3, 5), (3,)])
def test_start_centroids_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match=r"shape \(k, 6\) with 1 ≤ k ≤ n_clusters=3"):
        KMeans(3).fit(vectors=_filters(), init_centroids=torch.ones(shape))


def test_start_centroids_must_be_finite() -> None:
    with pytest.raises(ArgumentError, match="init_centroids must be finite"):
        KMeans(2).fit(vectors=_filters(), init_centroids=torch.full((2, 6), math.nan))


@pytest.mark.parametrize(("count", "clusters"), [(24, 5), (60, 30), (40, 40), (7, 1)])
def test_lloyd_where_the_points_are_ends_as_scikit_learn_does(count: int, clusters: int) -> None:
    vectors = _filters(count, seed=clusters)
    start = vectors[:clusters] + 0.1 * _filters(clusters, seed=3)
    labels = lloyd(vectors, start, 300)
    plain = cluster.KMeans(clusters, init=start.numpy(), n_init=1, tol=0).fit(vectors.numpy())
    assert plain.labels_ is not None
    assert np.array_equal(labels.numpy(), plain.labels_)


def test_lloyd_gives_clusters_without_members_the_farthest_points_as_scikit_learn_does() -> None:
    vectors = _filters(20)
    start = torch.cat([vectors[:3], torch.full((2, vectors.shape[1]), 99.0, dtype=torch.float64)])
    labels = lloyd(vectors, start, 300)
    plain = cluster.KMeans(5, init=start.numpy(), n_init=1, tol=0).fit(vectors.numpy())
    assert plain.labels_ is not None
    assert np.array_equal(Clusters.from_labels(labels.numpy()).labels, Clusters.from_labels(plain.labels_).labels)


def test_lloyd_keeps_identical_points_together_where_there_are_fewer_than_clusters() -> None:
    vectors = _filters(4).repeat(5, 1)
    labels = lloyd(vectors, vectors[:10].clone(), 300)
    assert torch.equal(labels.view(5, 4), labels[:4].expand(5, 4))
    assert labels.unique().numel() == 4
