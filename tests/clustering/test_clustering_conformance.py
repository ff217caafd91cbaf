"""What every clustering must satisfy. A new one is added to CLUSTERINGS and nothing else."""

import dataclasses
import math
import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clusterprune.clustering import (
    DBSCAN,
    HDBSCAN,
    OPTICS,
    Agglomerative,
    Birch,
    Clustering,
    Clusters,
    KMeans,
    MeanShift,
    Spectral,
    create,
    names,
)
from clusterprune.errors import ArgumentError

# Each finds the three groups of `blobs`, which are 0.1 wide and at least 5 apart.
CLUSTERINGS: dict[str, Clustering] = {
    "dbscan": DBSCAN(eps=0.5),
    "dbscan-min-samples-1": DBSCAN(eps=0.5, min_samples=1),
    "hdbscan": HDBSCAN(),
    "hdbscan-several": HDBSCAN(min_cluster_size=3, min_samples=2, allow_single_cluster=False),
    "optics": OPTICS(max_eps=1.0),
    "kmeans": KMeans(3),
    "kmeans-seed": KMeans(3, seed=7, n_init=2),
    "agglomerative-ward": Agglomerative(3),
    "agglomerative-complete": Agglomerative(3, linkage="complete"),
    "agglomerative-average": Agglomerative(3, linkage="average"),
    "agglomerative-single": Agglomerative(3, linkage="single"),
    "agglomerative-threshold": Agglomerative(distance_threshold=2.0, linkage="average"),
    "agglomerative-ward-threshold": Agglomerative(distance_threshold=2.0),
    "spectral": Spectral(3),
    "spectral-sigma": Spectral(3, sigma=1.0, seed=3),
    "mean-shift": MeanShift(bandwidth=1.0),
    "mean-shift-estimated": MeanShift(),
    "birch": Birch(3),
    "birch-threshold": Birch(threshold=1.0),
}
SIZES = (8, 10, 12)


def blobs(seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """Three groups of 8, 10 and 12 points in four dimensions, shuffled, and who is in which."""
    generator = np.random.default_rng(seed)
    centres = np.array([[0, 0, 0, 0], [5, 0, 0, 0], [0, 6, 0, 0]], dtype=float)
    group = generator.permutation(np.repeat(np.arange(3), SIZES))
    points = centres[group] + generator.uniform(-0.1, 0.1, size=(group.size, 4))
    return torch.from_numpy(points), group


def fit(clustering: Clustering, vectors: Tensor) -> Clusters:
    return clustering.fit(vectors=vectors, distances=torch.cdist(vectors, vectors))


def fit_exact(clustering: Clustering, vectors: Tensor, order: Tensor | None = None) -> Clusters:
    """Fit the points in another order, with bit for bit the distances of the given order."""
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    if order is None:
        return clustering.fit(vectors=vectors, distances=distances)
    return clustering.fit(vectors=vectors[order], distances=distances[order][:, order])


@st.composite
def points(draw: st.DrawFn) -> Tensor:
    """(c, d) points, c ≥ 3: on a grid (many ties), in general position, or mostly repeated."""
    count, length = draw(st.integers(3, 16)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    if draw(st.booleans()):
        values = torch.randn(count, length, dtype=torch.float64, generator=generator)
    else:
        values = torch.randint(-2, 3, (count, length), generator=generator).double() / 4
    if draw(st.booleans()):
        values = values[torch.randint(0, 4, (count,), generator=generator).clamp(max=count - 1)]
    return values


@pytest.mark.parametrize("clustering", CLUSTERINGS.values(), ids=CLUSTERINGS.keys())
class TestEveryClustering:
    def test_finds_well_separated_groups(self, clustering: Clustering) -> None:
        vectors, group = blobs()
        clusters = fit(clustering, vectors)
        assert clusters.n_noise == 0
        assert np.array_equal(clusters.labels, Clusters.from_labels(group).labels)

    @settings(deadline=None, max_examples=examples(12))
    @given(vectors=points(), seed=st.integers(0, 2**31))
    def test_reordered_points_reorder_the_partition(self, clustering: Clustering, vectors: Tensor, seed: int) -> None:
        order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))
        expected = Clusters.from_labels(fit_exact(clustering, vectors).labels[order.numpy()])
        actual = fit_exact(clustering, vectors, order)
        assert np.array_equal(actual.labels, expected.labels)

    @settings(deadline=None, max_examples=examples(12))
    @given(vectors=points())
    def test_identical_points_share_a_label(self, clustering: Clustering, vectors: Tensor) -> None:
        labels = fit_exact(clustering, vectors).labels
        _, twins = torch.unique(vectors, dim=0, return_inverse=True)
        for twin in range(int(twins.max()) + 1):
            assert np.unique(labels[(twins == twin).numpy()]).size == 1

    @settings(deadline=None, max_examples=examples(8))
    @given(vectors=points())
    def test_clusters_are_numbered_without_gaps_and_counted(self, clustering: Clustering, vectors: Tensor) -> None:
        clusters = fit_exact(clustering, vectors)
        assert clusters.n_points == len(vectors)
        assert np.array_equal(clusters.labels[clusters.labels >= 0], _first_appearance(clusters.labels))
        assert clusters.n_kept == clusters.n_clusters + clusters.n_noise
        assert clusters.n_kept == clusters.as_partition().n_clusters
        assert 1 <= clusters.n_kept <= len(vectors)

    def test_same_input_same_result(self, clustering: Clustering) -> None:
        generator = torch.Generator().manual_seed(0)
        vectors = torch.randn(40, 5, dtype=torch.float64, generator=generator)
        first = fit(clustering, vectors).labels
        np.random.seed(1)
        random.seed(1)
        torch.manual_seed(1)
        assert np.array_equal(fit(clustering, vectors).labels, first)

    def test_global_random_states_are_left_alone(self, clustering: Clustering) -> None:
        before = repr(np.random.get_state()), torch.get_rng_state().tolist()
        fit(clustering, blobs()[0])
        after = repr(np.random.get_state()), torch.get_rng_state().tolist()
        assert after == before

    def test_input_is_untouched(self, clustering: Clustering) -> None:
        vectors = blobs()[0]
        distances = torch.cdist(vectors, vectors)
        given_vectors, given_distances = vectors.clone(), distances.clone()
        clustering.fit(vectors=vectors, distances=distances)
        assert torch.equal(vectors, given_vectors)
        assert torch.equal(distances, given_distances)

    @pytest.mark.parametrize(("distinct", "scale"), [(1, 1.0), (2, 1e-6), (5, 1.0)])
    def test_no_warning_reaches_the_user(self, clustering: Clustering, distinct: int, scale: float) -> None:
        generator = torch.Generator().manual_seed(distinct)
        values = torch.randn(distinct, 2, generator=generator) * scale
        vectors = values[torch.arange(12) % distinct]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            clusters = fit_exact(clustering, vectors)
        assert caught == []
        assert clusters.n_points == 12

    def test_only_what_it_reads_is_needed(self, clustering: Clustering) -> None:
        vectors, group = blobs()
        expected = Clusters.from_labels(group).labels
        if clustering.reads == "vectors":
            assert np.array_equal(clustering.fit(vectors=vectors).labels, expected)
            with pytest.raises(ArgumentError, match="vectors=None; pass"):
                clustering.fit(distances=torch.cdist(vectors, vectors))
        else:
            assert clustering.reads == "distances"
            distances = torch.cdist(vectors, vectors)
            assert np.array_equal(clustering.fit(distances=distances).labels, expected)
            with pytest.raises(ArgumentError, match="distances=None; pass"):
                clustering.fit(vectors=vectors)

    def test_float32_with_a_gradient_is_accepted(self, clustering: Clustering) -> None:
        vectors, group = blobs()
        clusters = fit(clustering, vectors.float().requires_grad_())
        assert np.array_equal(clusters.labels, Clusters.from_labels(group).labels)

    @pytest.mark.parametrize("bad", [math.nan, 1e200])
    def test_not_finite_is_refused(self, clustering: Clustering, bad: float) -> None:
        vectors = blobs()[0]
        distances = torch.cdist(vectors, vectors)
        broken = vectors.clone()
        broken[0, 0] = bad
        with pytest.raises(ArgumentError, match="vectors must be finite"):
            clustering.fit(vectors=broken, distances=distances)
        distances[0, 1] = distances[1, 0] = bad
        with pytest.raises(ArgumentError, match="distances must be finite"):
            clustering.fit(vectors=vectors, distances=distances)

    def test_shapes_that_do_not_fit_are_refused(self, clustering: Clustering) -> None:
        vectors = blobs()[0]
        with pytest.raises(ArgumentError, match="at least one"):
            clustering.fit(vectors=torch.ones(0, 2), distances=torch.ones(0, 0))
        with pytest.raises(ArgumentError, match="channels, coordinates"):
            clustering.fit(vectors=vectors[0], distances=torch.zeros(4, 4))
        with pytest.raises(ArgumentError, match="channels, channels"):
            clustering.fit(vectors=vectors, distances=torch.zeros(30, 29))
        with pytest.raises(ArgumentError, match="30 vectors and distances of shape"):
            clustering.fit(vectors=vectors, distances=torch.zeros(4, 4))

    def test_what_is_no_distance_is_refused(self, clustering: Clustering) -> None:
        vectors = blobs()[0]
        distances = torch.cdist(vectors, vectors)
        for row, column, value, message in (
            (0, 1, 99.0, "symmetric"),
            (2, 2, 1.0, "zero diagonal"),
            (0, 1, -1.0, "at least 0"),
        ):
            broken = distances.clone()
            broken[row, column] = value
            with pytest.raises(ArgumentError, match=message):
                clustering.fit(vectors=vectors, distances=broken)

    def test_a_single_point_is_kept(self, clustering: Clustering) -> None:
        one = create(clustering.name, **_with_one_cluster(clustering))
        clusters = one.fit(vectors=torch.ones(1, 3), distances=torch.zeros(1, 1))
        assert clusters.n_points == 1
        assert clusters.n_kept == 1
        assert clusters.as_partition().medoids(torch.zeros(1, 1)).tolist() == [0]

    @settings(deadline=None, max_examples=examples(12))
    @given(vectors=points())
    def test_at_the_end_of_its_knob_everything_is_one_cluster(self, clustering: Clustering, vectors: Tensor) -> None:
        vectors = torch.cat([vectors, vectors])  # more points than a cluster must have
        distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
        coarse = clustering.with_knob(clustering.coarsest(vectors, distances))
        assert fit_exact(coarse, vectors).n_kept == 1

    def test_its_knob_counts_clusters_or_is_a_length(self, clustering: Clustering) -> None:
        vectors = blobs()[0]
        if clustering.counts:
            assert fit(clustering.with_knob(2), vectors).n_clusters == 2
            assert fit(clustering.with_knob(9).at_most(4), vectors[:4]).n_kept == 4
        else:
            most = clustering.coarsest(vectors, torch.cdist(vectors, vectors))
            kept = [fit(clustering.with_knob(most * share), vectors).n_kept for share in (1.0, 0.3, 0.02, 1e-6)]
            assert kept == sorted(kept)
            assert kept[0] == 1
            assert kept[-1] > 3

    def test_can_be_made_again_from_its_name_and_options(self, clustering: Clustering) -> None:
        assert clustering.name in names()
        assert create(clustering.name, **_options(clustering)) == clustering
        assert isinstance(clustering, Clustering)


COUNTED = {name: one for name, one in CLUSTERINGS.items() if getattr(one, "n_clusters", None)}


@pytest.mark.parametrize("clustering", COUNTED.values(), ids=COUNTED.keys())
class TestEveryClusteringWithACount:
    def test_more_clusters_than_points_are_refused(self, clustering: Clustering) -> None:
        vectors = torch.tensor([[0.0], [1.0]])
        with pytest.raises(ArgumentError, match=r"at most the number of channels, 2, .*=3"):
            fit(clustering, vectors)

    def test_fewer_distinct_points_than_clusters_give_the_distinct_ones(self, clustering: Clustering) -> None:
        vectors = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0], [1.0, 0.0]])
        clusters = fit_exact(clustering, vectors)
        assert clusters.labels.tolist() == [0, 1, 0, 0]
        assert clusters.n_clusters == 2
        assert clusters.n_requested == 3

    def test_as_many_clusters_as_distinct_points_separate_them(self, clustering: Clustering) -> None:
        vectors = torch.tensor([[1.0], [5.0], [1.0], [9.0]])
        assert fit_exact(clustering, vectors).labels.tolist() == [0, 1, 0, 2]

    def test_one_cluster_takes_all(self, clustering: Clustering) -> None:
        one = create(clustering.name, **_with_one_cluster(clustering))
        assert fit(one, blobs()[0]).labels.tolist() == [0] * sum(SIZES)


def test_every_clustering_is_covered() -> None:
    assert {clustering.name for clustering in CLUSTERINGS.values()} == set(names())


def _options(clustering: Clustering) -> dict[str, Any]:
    return {
        field.name: getattr(clustering, field.name)
        for field in dataclasses.fields(clustering)  # pyright: ignore[reportArgumentType]
    }


def _with_one_cluster(clustering: Clustering) -> dict[str, Any]:
    options = _options(clustering)
    return options | ({"n_clusters": 1} if options.get("n_clusters") else {})


def _first_appearance(labels: np.ndarray) -> list[int]:
    """The labels that clusters numbered in order of first appearance would have."""
    seen: dict[int, int] = {}
    return [seen.setdefault(label, len(seen)) for label in labels.tolist() if label >= 0]
