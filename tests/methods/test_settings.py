"""From plain values, as YAML has them, to the settings of a method; and what is said about wrong ones."""

import re
from typing import Any

import pytest

from clusterprune.clustering import DBSCAN, KMeans, MeanShift
from clusterprune.errors import ArgumentError
from clusterprune.methods.acp import ACP
from clusterprune.methods.cp import CP
from clusterprune.methods.cp_rates import Adaptive, Constant, Silhouette
from clusterprune.methods.icp import ICP
from clusterprune.methods.settings import (
    METHODS,
    BesideACP,
    BesideCP,
    CriterionCut,
    Cut,
    SoftCut,
    read_cluster_count,
    read_clustering,
    read_method,
    read_settings,
)


def test_values_become_what_the_fields_hold() -> None:
    found = read_settings(ICP, {"eps": 1, "stages": ["layer1", "layer2"], "ignore": ["stem*"], "merge": "refit"})
    assert found == ICP(eps=1.0, stages=("layer1", "layer2"), ignore=("stem*",), merge="refit")
    assert isinstance(found.eps, float)


@pytest.mark.parametrize(
    ("method", "given", "expected"),
    [
        ("oneshot", {"keep_macs": 0.5, "layers": "inner"}, (Cut(keep_macs=0.5, layers="inner"), None)),
        ("l1", {"keep_params": 0.5, "scope": "global"}, (CriterionCut(keep_params=0.5, scope="global"), None)),
        ("sfp", {"keep_macs": 0.5, "scratch": True}, (SoftCut(keep_macs=0.5, scratch=True), None)),
        ("icp", {"eps": 0.02}, (ICP(eps=0.02, seed=7, final_epochs=40), None)),
        ("acp", {"eps": 0.02, "storage": "x"}, (ACP(eps=0.02, seed=7), BesideACP(storage="x"))),
        (
            "acp",
            {"eps": 0.02, "candidates_inherit": True},
            (ACP(eps=0.02, seed=7, candidates_inherit=True), BesideACP()),
        ),
        (
            "acp",
            {"eps": 0.02, "retraining_inherits": True},
            (ACP(eps=0.02, seed=7), BesideACP(retraining_inherits=True)),
        ),
        ("cp", {"goal": 0.6, "clusters": {"constant": 5}}, (CP(0.6, Constant(number=5), seed=7), BesideCP())),
        ("cp", {"goal": 0.5}, (CP(goal=0.5, seed=7), BesideCP())),
        ("cp", {"preset": "published", "goal": 0.5}, (CP.published(goal=0.5, seed=7), BesideCP(scratch=True))),
        ("cp", {"preset": "published", "scratch": False, "batch_norm": "tied"}, (CP(seed=7), BesideCP())),
        ("icp", {"preset": "published", "eps": 0.02}, (ICP(eps=0.02, samples=128, seed=7, final_epochs=40), None)),
        ("acp", {"preset": "published", "eps": 0.02}, (ACP(eps=0.02, samples=200, seed=7), BesideACP())),
        ("cp", {"keep_macs": 0.5, "scratch": True}, (CP(seed=7), BesideCP(keep_macs=0.5, scratch=True))),
    ],
)
def test_every_method_has_its_own(method: str, given: dict[str, Any], expected: tuple[Any, Any]) -> None:
    assert read_method(method, given, seed=7, epochs=40) == expected


def test_without_a_training_icp_is_as_published() -> None:
    assert read_method("icp", {"eps": 0.02})[0].final_epochs == 200


@pytest.mark.parametrize("method", METHODS)
def test_a_wrong_name_lists_what_there_is(method: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        read_method(method, {"colour": "red"})
    message = str(caught.value)
    assert message.startswith(f"colour='red' is no setting of method={method!r}, which has ")
    listed = message.partition("which has ")[2].split(", ")
    assert "keep_macs" in listed
    # These belong to the run and its training.
    assert not {"seed", "final_epochs"} & set(listed)


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("magic", {}, "method='magic' is not known"),
        ("icp", {"eps": 0.1, "seed": 3}, "seed=3 is no setting of method='icp'"),
        ("icp", {"eps": 0.1, "final_epochs": 3}, "final_epochs=3 is no setting of method='icp'"),
        ("icp", {}, "give either eps or keep_macs"),
        ("icp", {"eps": "small"}, "eps='small' is not accepted: input should be a valid number"),
        ("acp", {"eps": 0.1, "equal_macs": "perhaps"}, "equal_macs='perhaps' is not accepted"),
        (
            "acp",
            {"eps": 0.1, "fitness": "guess"},
            "fitness='guess' is not accepted: input should be 'train'",
        ),
        ("acp", {"eps": 0.1, "inherit": True}, "inherit=True is no setting of method='acp': candidates that train and"),
        ("cp", {"keep_macs": 0.5, "goal": 0.5}, "goal=0.5 and keep_macs=0.5 exclude each other"),
        ("cp", {"goal": 0.4, "clusters": {"adaptive": 0.5}}, "real_rate=0.5 must be below goal=0.4"),
        ("cp", {"preset": "ours"}, "preset='ours' is not known; of method='cp' there is published"),
        ("icp", {"eps": 0.1, "preset": ["published"]}, "is not known; of method='icp' there is published"),
        ("l1", {"keep_macs": 0.5, "preset": "published"}, "preset='published' is no setting of method='l1'"),
        ("cp", {"clusters": 5}, "clusters=5 is not known; give adaptive, {adaptive: RATE}"),
        ("sfp", {"keep_latency": 0.5}, "keep_latency=0.5 is no setting of method='sfp'"),
        ("oneshot", {"keep_macs": 0.5, "merge": "drop"}, "merge='drop' is no setting of method='oneshot'"),
        ("l1", {"keep_macs": 0.5, "layers": "some"}, "layers='some' is not accepted"),
        ("l1", {}, "give exactly one of keep_macs, keep_params and keep_latency, but got none"),
        ("l1", {"keep_macs": 50}, "keep_macs must be a fraction in (0, 1]"),
    ],
)
def test_wrong_values_are_named(method: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        read_method(method, given)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("silhouette", Silhouette()),
        ("adaptive", Adaptive()),
        ({"adaptive": 0.4}, Adaptive(0.4)),
        ({"constant": 5}, Constant(number=5)),
        ({"share": 0.25}, Constant(share=0.25)),
        (Adaptive(0.3), Adaptive(0.3)),
    ],
)
def test_cluster_counts(value: Any, expected: Any) -> None:
    assert read_cluster_count(value) == expected


@pytest.mark.parametrize("method", METHODS)
def test_numbers_that_nothing_counts_to_are_refused_by_name(method: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        read_method(method, {"colour": "red"})
    names = str(caught.value).partition("which has ")[2].split(", ")
    for name in names:
        for value in (10**20, -(10**20), [10**20], {"constant": 10**20}, 10**5000):
            with pytest.raises(ArgumentError, match=rf"^{name}=.* is not accepted: whole numbers go up to 2147483647"):
                read_method(method, {name: value})


@pytest.mark.parametrize("value", ["many", {"adaptive": 0.4, "constant": 5}, {"some": 5}, {}])
def test_other_cluster_counts_are_refused(value: Any) -> None:
    with pytest.raises(ArgumentError, match=r"clusters=.* is not known; give adaptive, \{adaptive: RATE\}"):
        read_cluster_count(value)


def test_clusterings() -> None:
    assert isinstance(read_clustering("kmeans"), KMeans)
    assert isinstance(read_clustering("mean_shift"), MeanShift)
    assert read_clustering(None) is None
    ready = DBSCAN(eps=0.1)
    assert read_clustering(ready) is ready
    with pytest.raises(ArgumentError, match="magic"):
        read_clustering("magic")
