"""From plain values, as YAML has them, to the settings of a method; and what is said about wrong ones."""

import re
from typing import Any

import pytest

from clusterprune.clustering import DBSCAN, KMeans, MeanShift
from clusterprune.errors import ArgumentError
from clusterprune.methods import (
    CP,
    ICP,
    METHODS,
    ClusterCut,
    CriterionCut,
    CutOnce,
    OneShotCut,
    Soft,
    find,
)
from clusterprune.methods._settings import read_clustering, read_settings
from clusterprune.methods.acp import ACP
from clusterprune.methods.cp_rates import Adaptive, Constant, Silhouette, read_cluster_count


def test_values_become_what_the_fields_hold() -> None:
    found = read_settings(ICP, {"eps": 1, "stages": ["layer1", "layer2"], "ignore": ["stem*"], "merging": "refit"})
    cut = ClusterCut(eps=1.0, merging="refit")
    assert found == ICP(cut=cut, stages=("layer1", "layer2"), ignore=("stem*",))
    assert isinstance(found.cut, ClusterCut)
    assert isinstance(found.cut.eps, float)


@pytest.mark.parametrize(
    ("method", "given", "expected"),
    [
        ("oneshot", {"keep_macs": 0.5, "layers": "inner"}, CutOnce(0.5, cut=OneShotCut(layers="inner"))),
        ("oneshot", {"keep_macs": 0.5, "refit": None}, CutOnce(0.5, cut=OneShotCut(refit=None))),
        ("sfp", {"keep_macs": 0.5, "scratch": True}, Soft(keep_macs=0.5, scratch=True)),
        ("icp", {"eps": 0.02}, ICP(cut=ClusterCut(eps=0.02))),
        ("icp", {"cut": {"eps": 0.02}, "survivors": "medoid"}, ICP(cut=ClusterCut(eps=0.02, survivors="medoid"))),
        ("icp", {"cut": ClusterCut(eps=0.02)}, ICP(cut=ClusterCut(eps=0.02))),
        ("icp", {"cut": "oneshot", "keep_macs": 0.5}, ICP(keep_macs=0.5, cut=OneShotCut())),
        ("icp", {"cut": {"by": "oneshot", "layers": "inner"}, "keep_macs": 0.5}, ICP(0.5, OneShotCut(layers="inner"))),
        ("icp", {"clustering": "kmeans", "keep_macs": 0.5}, ICP(0.5, ClusterCut(clustering=KMeans(2)))),
        ("acp", {"eps": 0.02, "storage": "x"}, ACP(cut=ClusterCut(eps=0.02), storage="x")),
        ("acp", {"eps": 0.02, "merging": "refit"}, ACP(cut=ClusterCut(eps=0.02), merging="refit")),
        ("cp", {"goal": 0.6, "clusters": {"constant": 5}}, CP(goal=0.6, clusters=Constant(number=5))),
        ("cp", {"preset": "published", "goal": 0.5}, CP(goal=0.5, batch_norm="removed", scratch=True)),
        ("cp", {"preset": "published", "scratch": False, "batch_norm": "tied"}, CP()),
        ("icp", {"preset": "published", "eps": 0.02}, ICP(cut=ClusterCut(eps=0.02), samples=128)),
        ("acp", {"preset": "published", "eps": 0.02}, ACP(cut=ClusterCut(eps=0.02), samples=200)),
        ("cp", {"keep_macs": 0.5, "scratch": True}, CP(keep_macs=0.5, scratch=True)),
    ],
)
def test_every_method_has_its_own(method: str, given: dict[str, Any], expected: object) -> None:
    assert find(method).read(given) == expected


def test_a_criterion_is_its_methods_own() -> None:
    found = find("l2").read({"keep_params": 0.5, "scope": "global"})
    assert isinstance(found, CutOnce)
    assert (found.name, found.cut, found.keep_params) == ("l2", CriterionCut("l2", scope="global"), 0.5)
    with pytest.raises(ArgumentError, match="criterion='l1' is no setting of method='l2'"):
        find("l2").read({"keep_params": 0.5, "criterion": "l1"})


@pytest.mark.parametrize("method", METHODS)
def test_a_wrong_name_lists_what_there_is(method: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        find(method).read({"colour": "red"})
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
        ("icp", {"cut": "scissors"}, "cut='scissors' is not known; of method='icp' there is clusters, oneshot"),
        ("icp", {"cut": {"eps": 0.1}, "eps": 0.2}, "eps=0.2 is given twice, beside and in cut"),
        ("icp", {"cut": "oneshot", "eps": 0.2}, "eps=0.2 is no setting of method='icp', which has"),
        ("icp", {"cut": "oneshot"}, "give at least one of keep_macs, keep_params, keep_latency"),
        ("icp", {"eps": 0.1, "merge": "drop"}, "merge='drop' is no setting of method='icp': it is called merging"),
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
        ("cp", {"preset": "theirs"}, "preset='theirs' is not known; of method='cp' there is published, ours"),
        ("icp", {"eps": 0.1, "preset": ["published"]}, "is not known; of method='icp' there is published"),
        ("l1", {"keep_macs": 0.5, "preset": "published"}, "preset='published' is no setting of method='l1'"),
        ("cp", {"clusters": 5}, "clusters=5 is not known; give adaptive, {adaptive: RATE}"),
        ("sfp", {"keep_latency": 0.5}, "keep_latency=0.5 is no setting of method='sfp'"),
        ("oneshot", {"keep_macs": 0.5, "merge": "drop"}, "merge='drop' is no setting of method='oneshot'"),
        ("l1", {"keep_macs": 0.5, "layers": "some"}, "layers='some' is not accepted"),
        ("l1", {}, "give at least one of keep_macs, keep_params, keep_latency"),
        ("l1", {"keep_macs": 50}, "keep_macs must be a fraction in (0, 1]"),
    ],
)
def test_wrong_values_are_named(method: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        find(method).read(given)


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
        find(method).read({"colour": "red"})
    names = str(caught.value).partition("which has ")[2].split(", ")
    for name in names:
        for value in (10**20, -(10**20), [10**20], {"constant": 10**20}, 10**5000):
            with pytest.raises(ArgumentError, match=rf"^{name}=.* is not accepted: whole numbers go up to 2147483647"):
                find(method).read({name: value})


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
