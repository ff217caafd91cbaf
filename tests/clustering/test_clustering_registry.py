"""Clusterings by name, and every option's rule stated when it is broken."""

import math
from typing import Any

import pytest

from clusterprune.clustering import DBSCAN, create, names
from clusterprune.errors import ArgumentError


def test_names() -> None:
    assert names() == (
        "dbscan",
        "hdbscan",
        "optics",
        "kmeans",
        "agglomerative",
        "spectral",
        "mean_shift",
        "birch",
    )


def test_create_passes_the_options_on() -> None:
    assert create("dbscan", eps=0.02, min_samples=3) == DBSCAN(eps=0.02, min_samples=3)


@pytest.mark.parametrize("name", ["k-means", "", None, []])
def test_unknown_name_lists_the_names(name: Any) -> None:
    with pytest.raises(ArgumentError, match=r"one of dbscan, hdbscan, .*, birch, but got name="):
        create(name)


def test_unknown_option_lists_the_options() -> None:
    with pytest.raises(ArgumentError, match="'kmeans' has no option 'k'; its options are n_clust"):
        create("kmeans", k=3)


@pytest.mark.parametrize(("name", "option"), [("dbscan", "eps"), ("kmeans", "n_clusters"), ("spectral", "n_clusters")])
def test_missing_option_is_named(name: str, option: str) -> None:
    with pytest.raises(ArgumentError, match=f"needs a value for {option}; its options are"):
        create(name)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dbscan", {"eps": 0}),
        ("dbscan", {"eps": -0.1}),
        ("dbscan", {"eps": math.nan}),
        ("dbscan", {"eps": math.inf}),
        ("dbscan", {"eps": "0.1"}),
        ("dbscan", {"eps": True}),
        ("dbscan", {"min_samples": 0, "eps": 0.1}),
        ("dbscan", {"min_samples": 2.0, "eps": 0.1}),
        ("hdbscan", {"min_cluster_size": 1}),
        ("hdbscan", {"min_samples": 0}),
        ("hdbscan", {"allow_single_cluster": "yes"}),
        ("optics", {"min_samples": 1}),
        ("optics", {"max_eps": 0}),
        ("optics", {"xi": 0}),
        ("optics", {"xi": 1}),
        ("optics", {"min_cluster_size": 1}),
        ("kmeans", {"n_clusters": 0}),
        ("kmeans", {"n_clusters": 2.5}),
        ("kmeans", {"seed": -1, "n_clusters": 2}),
        ("kmeans", {"seed": 2**32, "n_clusters": 2}),
        ("kmeans", {"n_init": 0, "n_clusters": 2}),
        ("kmeans", {"max_iter": 0, "n_clusters": 2}),
        ("agglomerative", {"n_clusters": 0}),
        ("agglomerative", {"distance_threshold": -1}),
        ("agglomerative", {"linkage": "centroid", "n_clusters": 2}),
        ("spectral", {"n_clusters": 0}),
        ("spectral", {"sigma": 0, "n_clusters": 2}),
        ("spectral", {"n_init": 0, "n_clusters": 2}),
        ("mean_shift", {"bandwidth": 0}),
        ("mean_shift", {"quantile": 0}),
        ("mean_shift", {"quantile": 1.1}),
        ("mean_shift", {"max_iter": 0}),
        ("birch", {"n_clusters": 0}),
        ("birch", {"threshold": 0}),
        ("birch", {"branching_factor": 1}),
    ],
)
def test_bad_value_states_the_option_and_the_value(name: str, options: dict[str, Any]) -> None:
    option, value = next(iter(options.items()))
    with pytest.raises(ArgumentError, match=rf"{option} must be .* but got {option}=") as caught:
        create(name, **options)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("options", [{}, {"n_clusters": 2, "distance_threshold": 1.0}])
def test_agglomerative_needs_exactly_one_stop(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="exactly one of n_clusters and distance_threshold"):
        create("agglomerative", **options)
