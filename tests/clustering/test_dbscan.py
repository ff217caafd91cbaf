"""DBSCAN as in ICP and ACP: MinPts counts the channel itself, noise is kept."""

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import cluster

from clusterprune.clustering import DBSCAN
from clusterprune.similarity import FeatureMaps


def _line(*positions: float) -> torch.Tensor:
    column = torch.tensor(positions, dtype=torch.float64)[:, None]
    return torch.cdist(column, column)


def test_clusters_and_noise_by_hand() -> None:
    clusters = DBSCAN(eps=1.5, min_samples=3).fit(distances=_line(10, 0, 50, 1, 11, 2, 12))
    assert clusters.labels.tolist() == [0, 1, -1, 1, 0, 1, 0]
    assert clusters.n_kept == 3


def test_min_samples_counts_the_channel_itself() -> None:
    # The middle one has two neighbours: with itself, three.
    assert DBSCAN(eps=1, min_samples=3).fit(distances=_line(0, 1, 2)).n_kept == 1
    assert DBSCAN(eps=1, min_samples=4).fit(distances=_line(0, 1, 2)).n_kept == 3


def test_eps_is_inclusive() -> None:
    assert DBSCAN(eps=1.0, min_samples=2).fit(distances=_line(0, 1)).n_clusters == 1
    assert DBSCAN(eps=0.99, min_samples=2).fit(distances=_line(0, 1)).n_noise == 2


def test_min_samples_defaults_to_the_papers_five() -> None:
    assert DBSCAN(eps=1.0).fit(distances=torch.zeros(4, 4)).n_kept == 4
    assert DBSCAN(eps=1.0).fit(distances=torch.zeros(5, 5)).n_kept == 1


def test_larger_eps_joins_everything() -> None:
    maps = torch.rand(3, 20, 4, 4, generator=torch.Generator().manual_seed(0))
    distances = FeatureMaps().distances(maps)
    kept = [DBSCAN(eps).fit(distances=distances).n_kept for eps in (1e-6, 2.0)]
    assert kept == [20, 1]


@settings(deadline=None, max_examples=examples(30))
@given(
    eps=st.floats(0.05, 1.0),
    min_samples=st.integers(1, 6),
    count=st.integers(1, 30),
    seed=st.integers(0, 2**31),
)
def test_keeps_as_many_as_scikit_learn_on_the_raw_maps(eps: float, min_samples: int, count: int, seed: int) -> None:
    maps = torch.randn(2, count, 1, 3, generator=torch.Generator().manual_seed(seed))
    similarity = FeatureMaps()
    clusters = DBSCAN(eps, min_samples).fit(vectors=similarity.vectors(maps), distances=similarity.distances(maps))
    plain = cluster.DBSCAN(eps=eps, min_samples=min_samples, metric="cosine")
    labels = plain.fit(similarity.vectors(maps).numpy()).labels_
    assert np.array_equal(clusters.labels == -1, labels == -1)
    assert clusters.n_clusters == labels.max() + 1


@pytest.mark.parametrize("name", ["eps", "min_samples"])
def test_options_are_fields(name: str) -> None:
    assert hasattr(DBSCAN(eps=0.1), name)
