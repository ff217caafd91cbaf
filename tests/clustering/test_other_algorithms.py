"""What each of the alternatives does beyond the conformance suite."""

import numpy as np
import pytest
import torch
from sklearn import cluster

from clusterprune.clustering import (
    HDBSCAN,
    LINKAGES,
    OPTICS,
    Agglomerative,
    Birch,
    Clusters,
    Linkage,
    MeanShift,
    Spectral,
)


def _line(*positions: float) -> tuple[torch.Tensor, torch.Tensor]:
    column = torch.tensor(positions, dtype=torch.float64)[:, None]
    return column, (column - column.T).abs()


def _random(count: int = 30) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("linkage", LINKAGES)
def test_agglomerative_is_scikit_learn_on_points_in_general_position(linkage: Linkage) -> None:
    vectors = _random()
    distances = torch.cdist(vectors, vectors)
    ours = Agglomerative(6, linkage=linkage).fit(vectors=vectors, distances=distances)
    plain = cluster.AgglomerativeClustering(6, linkage=linkage).fit(vectors.numpy())
    assert np.array_equal(ours.labels, Clusters.from_labels(plain.labels_).labels)


def test_agglomerative_threshold_by_hand() -> None:
    vectors, distances = _line(0, 1, 3, 10)
    labels = [
        Agglomerative(distance_threshold=threshold, linkage="single")
        .fit(vectors=vectors, distances=distances)
        .labels.tolist()
        for threshold in (1.0, 1.5, 2.5, 8.0)
    ]
    assert labels == [[0, 1, 2, 3], [0, 0, 1, 2], [0, 0, 0, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize("linkage", LINKAGES)
def test_agglomerative_threshold_zero_joins_only_identical_channels(linkage: Linkage) -> None:
    vectors, distances = _line(2, 1, 2, 0, 1)
    clusters = Agglomerative(distance_threshold=0, linkage=linkage).fit(vectors=vectors, distances=distances)
    assert clusters.labels.tolist() == [0, 1, 0, 2, 1]


def test_hdbscan_joins_channels_that_are_all_alike() -> None:
    distances = torch.zeros(8, 8)
    assert HDBSCAN().fit(distances=distances).n_kept == 1
    assert HDBSCAN(allow_single_cluster=False).fit(distances=distances).n_kept == 8


def test_hdbscan_finds_clusters_of_different_density_and_noise() -> None:
    tight = [0.01 * i for i in range(6)]
    loose = [100 + 2.0 * i for i in range(6)]
    clusters = HDBSCAN(min_cluster_size=4).fit(distances=_line(*tight, *loose, 1000)[1])
    assert clusters.labels.tolist() == [0] * 6 + [1] * 6 + [-1]


@pytest.mark.parametrize("clustering", [HDBSCAN(), HDBSCAN(2, min_samples=5), OPTICS(), OPTICS(2, min_cluster_size=5)])
def test_fewer_channels_than_a_cluster_needs_are_noise(clustering: HDBSCAN | OPTICS) -> None:
    clusters = clustering.fit(distances=torch.zeros(4, 4))
    assert clusters.n_noise == 4
    assert clusters.n_kept == 4


def test_optics_leaves_the_lonely_channel_alone() -> None:
    group = [0.1 * i for i in range(6)]
    far = [50 + 0.1 * i for i in range(6)]
    clusters = OPTICS(max_eps=5).fit(distances=_line(*group, 25, *far)[1])
    assert clusters.labels.tolist() == [0] * 6 + [-1] + [1] * 6


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_default_widths_follow_the_scale_of_the_weights(scale: float) -> None:
    group = torch.rand(10, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    vectors = scale * torch.cat([group, group + 20])
    distances = torch.cdist(vectors, vectors)
    for clustering in (Spectral(2), Birch(2), MeanShift(quantile=0.5)):
        clusters = clustering.fit(vectors=vectors, distances=distances)
        assert clusters.labels.tolist() == [0] * 10 + [1] * 10, clustering


def test_spectral_follows_a_shape_that_k_means_would_cut() -> None:
    angle = torch.arange(24) * (2 * torch.pi / 24)
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)
    vectors = torch.cat([circle, 4 * circle])
    clusters = Spectral(2, sigma=0.4).fit(distances=torch.cdist(vectors, vectors))
    assert clusters.labels.tolist() == [0] * 24 + [1] * 24


def test_mean_shift_of_mostly_duplicated_channels_finds_the_distinct_ones() -> None:
    vectors = torch.tensor([[0.0], [0.0], [0.0], [0.0], [1.0], [1.0], [1.0], [1.0]])
    assert MeanShift().fit(vectors=vectors).labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_birch_with_a_wide_threshold_gives_fewer_clusters_and_says_so() -> None:
    vectors = _line(0, 0.1, 0.2, 9.0, 9.1)[0]
    clusters = Birch(4, threshold=1.0).fit(vectors=vectors)
    assert clusters.labels.tolist() == [0, 0, 0, 1, 1]
    assert (clusters.n_clusters, clusters.n_requested) == (2, 4)
