"""Plans by clustering: any similarity, clustering, budget and merge."""

import numpy as np
import pytest
import torch
from examples import first
from small_networks import Grouped, Plain, trained_statistics
from torch import nn

import clusterprune as cp
from clusterprune import evaluate
from clusterprune.clustering import DBSCAN, HDBSCAN, OPTICS, Agglomerative, Birch, KMeans, MeanShift, Spectral
from clusterprune.errors import ArgumentError, BudgetError
from clusterprune.similarity import FeatureMaps, Filters

X = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def plain() -> nn.Module:
    torch.manual_seed(1)
    return trained_statistics(Plain(), X).eval()


@pytest.fixture
def graph() -> cp.ChannelGraph:
    return cp.trace(plain(), X[:1])


def difference(a: nn.Module, b: nn.Module) -> float:
    with torch.no_grad():
        return float((a(X) - b(X)).abs().max() / b(X).abs().max())


def make_alike(model: nn.Module, factor: float) -> None:
    """Channels 4, 5, 6 and 7 of the second layer become multiples of channel 4, batch norm included."""
    conv, norm = model[1][0], model[1][1]
    with torch.no_grad():
        for channel in (5, 6, 7):
            conv.weight[channel] = conv.weight[4]
            for tensor in (norm.running_mean, norm.running_var):
                tensor[channel] = tensor[4]
            for tensor in (norm.weight, norm.bias):
                tensor[channel] = tensor[4] * factor


@pytest.mark.parametrize(
    "similarity", [Filters(), Filters(fold_batch_norm=True), FeatureMaps("euclidean", place="consumer_input")]
)
def test_identical_channels_are_found_and_added_without_loss(similarity: Filters | FeatureMaps) -> None:
    model = plain()
    make_alike(model, 1.0)
    graph = cp.trace(model, X[:1])
    plan = cp.cluster(graph, X, similarity=similarity, clustering=DBSCAN(eps=1e-5, min_samples=2), merging="add")
    assert [(merge.group, len(merge.kept)) for merge in plan.merges] == [("1.0", 9)]
    assert difference(cp.apply(model, plan, graph=graph), model) < 1e-5


class Tied(nn.Module):
    """One kernel, used by two layers with biases of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self.right.weight = self.left.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.left(x).relu() + self.right(x).relu())


def conv_then(*between: nn.Module, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=bias), *between, nn.ReLU(), nn.Conv2d(8, 4, 3))


MADE_BY = {
    "bias": (conv_then, "0.bias"),
    "bias before a norm": (lambda: conv_then(nn.BatchNorm2d(8)), "0.bias"),
    "norm": (lambda: conv_then(nn.BatchNorm2d(8), bias=False), "1.bias"),
    "norm behind an activation": (lambda: conv_then(nn.ReLU(), nn.BatchNorm2d(8)), "2.weight"),
    "slope": (lambda: conv_then(nn.PReLU(8)), "1.weight"),
    "depthwise filter": (lambda: conv_then(nn.Conv2d(8, 8, 3, groups=8, bias=False)), "1.weight"),
    "depthwise bias": (lambda: conv_then(nn.Conv2d(8, 8, 3, groups=8)), "1.bias"),
    "second bias of a tied layer": (Tied, "right.bias"),
    "linear bias": (
        lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4)),
        "2.bias",
    ),
}


@pytest.mark.parametrize("kind", MADE_BY)
def test_equal_filters_are_one_channel_only_if_all_else_is_equal(kind: str) -> None:
    make, path = MADE_BY[kind]
    torch.manual_seed(2)
    model = trained_statistics(make(), X).eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.ndim and len(tensor) == 8:
                tensor[1] = tensor[0]  # channels 0 and 1 are the same
    graph = cp.trace(model, X[:1])
    settings = {"similarity": Filters(fold_batch_norm=True), "clustering": DBSCAN(eps=1e-6, min_samples=2)}
    assert [len(m.kept) for m in cp.cluster(graph, merging="add", **settings).merges] == [7]
    with torch.no_grad():
        model.get_parameter(path)[0] -= 2
        model.get_parameter(path)[1] += 2
    graph = cp.trace(model, X[:1])
    plan = cp.cluster(graph, merging="add", **settings)
    assert not plan.merges
    assert difference(cp.apply(model, plan, graph=graph), model) < 1e-5


def test_the_published_similarity_counts_biases_but_leaves_norms_out() -> None:
    torch.manual_seed(2)
    model = trained_statistics(conv_then(nn.BatchNorm2d(8)), X).eval()
    settings = {"similarity": Filters(), "clustering": DBSCAN(eps=1e-6, min_samples=2), "merging": "drop"}
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = model[0].weight[0], model[0].bias[0]
    assert [len(m.kept) for m in cp.cluster(cp.trace(model, X[:1]), **settings).merges] == [7]
    with torch.no_grad():
        model[0].bias[1] += 4
    assert not cp.cluster(cp.trace(model, X[:1]), **settings).merges


def test_proportional_channels_are_added_with_their_factor() -> None:
    model = plain()
    make_alike(model, 1.7)
    graph = cp.trace(model, X[:1])
    settings = {"similarity": Filters("cosine", fold_batch_norm=True), "clustering": DBSCAN(eps=1e-5, min_samples=2)}
    lossless = cp.apply(model, cp.cluster(graph, X, merging="scaled_add", **settings), graph=graph)
    assert lossless[1][0].out_channels == 9
    assert difference(lossless, model) < 1e-4
    assert difference(cp.apply(model, cp.cluster(graph, X, merging="add", **settings), graph=graph), model) > 1e-2


@pytest.mark.parametrize("merge", first(1, ["refit", "drop"]))
@pytest.mark.parametrize(
    "clustering",
    [
        KMeans(n_clusters=2), Agglomerative(n_clusters=2), Spectral(n_clusters=2), Birch(n_clusters=2),
        DBSCAN(eps=0.1, min_samples=2), HDBSCAN(min_cluster_size=2), OPTICS(min_samples=2), MeanShift(),
        Agglomerative(distance_threshold=1.0),
    ],
    ids=repr,
)  # fmt: skip
def test_every_merge_meets_a_budget_with_every_clustering(
    graph: cp.ChannelGraph, merge: str, clustering: KMeans
) -> None:
    plan = cp.cluster(graph, X, clustering=clustering, merging=merge, keep_macs=0.6)
    small = cp.apply(graph.model, plan, graph=graph)
    share = evaluate.macs(small, X[:1]) / evaluate.macs(graph.model, X[:1])
    assert 0.5 < share <= 0.6 + 1e-9
    assert bool(torch.isfinite(small(X)).all())


@pytest.mark.parametrize(
    "clustering",
    [DBSCAN(eps=0.05, min_samples=2), HDBSCAN(min_cluster_size=2), OPTICS(min_samples=2), MeanShift()],
    ids=lambda c: type(c).__name__,
)
def test_clusterings_that_count_for_themselves(graph: cp.ChannelGraph, clustering: DBSCAN) -> None:
    plan = cp.cluster(graph, X, clustering=clustering)
    small = cp.apply(graph.model, plan, graph=graph)
    assert evaluate.params(small) <= evaluate.params(graph.model)
    assert bool(torch.isfinite(small(X)).all())


def test_epsilon_is_solved_for(graph: cp.ChannelGraph) -> None:
    loose = cp.cluster(graph, X, clustering=DBSCAN(eps=0.1, min_samples=2), keep_macs=0.8)
    tight = cp.cluster(graph, X, clustering=DBSCAN(eps=0.1, min_samples=2), keep_macs=0.4)
    shares = []
    for plan in (loose, tight):
        small = cp.apply(graph.model, plan, graph=graph)
        shares.append(evaluate.macs(small, X[:1]) / evaluate.macs(graph.model, X[:1]))
    assert shares[1] <= 0.4 < shares[0] <= 0.8


def test_the_released_rule_keeps_the_largest_filters(graph: cp.ChannelGraph) -> None:
    """Clusters plus noise say how many; the ℓ1 norm says which."""
    clustering = DBSCAN(eps=0.05, min_samples=2)
    count = cp.cluster(graph, X, clustering=clustering, merging="drop").widths
    plan = cp.cluster(graph, X, clustering=clustering, merging="drop", survivors="l1")
    assert plan.merges
    for merge in plan.merges:
        weight = dict(graph.model.named_parameters())[f"{merge.group}.weight"]
        norms = weight.detach().abs().flatten(1).sum(1).numpy()
        assert merge.kept.tolist() == np.sort(np.argsort(-norms, kind="stable")[: count[merge.group]]).tolist()


def test_merging_loses_less_than_dropping(graph: cp.ChannelGraph) -> None:
    lost = {}
    for merge in ("drop", "least_squares", "refit"):
        plan = cp.cluster(graph, X, clustering=Agglomerative(n_clusters=2), merging=merge, keep_macs=0.6)
        with torch.no_grad():
            lost[merge] = float((cp.apply(graph.model, plan, graph=graph)(X) - graph.model(X)).square().mean())
    assert lost["refit"] < lost["least_squares"] < lost["drop"]


def test_grouped_convolutions_lose_the_same_number_in_every_group() -> None:
    torch.manual_seed(2)
    model = trained_statistics(Grouped(), X).eval()
    graph = cp.trace(model, X[:1])
    plan = cp.cluster(graph, X, clustering=KMeans(n_clusters=2), merging="least_squares", keep_channels=0.5)
    small = cp.apply(model, plan, graph=graph)
    assert small.b[0].out_channels % 3 == 0
    assert small.b[0].groups == 3
    assert bool(torch.isfinite(small(X)).all())


def test_filters_need_no_images(graph: cp.ChannelGraph) -> None:
    plan = cp.cluster(graph, similarity=Filters(), clustering=KMeans(n_clusters=6), merging="add")
    assert {len(merge.kept) for merge in plan.merges} == {6}


def test_a_seed_repeats_the_plan(graph: cp.ChannelGraph) -> None:
    first, again = (cp.cluster(graph, X, clustering=KMeans(n_clusters=5), merging="refit", seed=7) for _ in range(2))
    assert first == again


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"merging": "glue"}, ArgumentError, "merging must be one of .*'glue'"),
        ({"survivors": "best"}, ArgumentError, "survivors must be"),
        ({"merging": "add", "survivors": "l1"}, ArgumentError, "survivors='l1'"),
        ({"images": None, "merging": "drop"}, ArgumentError, "images=None does not go with"),
        ({"keep_macs": 0.5, "keep_params": 0.5}, ArgumentError, "at most one"),
        ({"keep_macs": 1.5}, ArgumentError, "keep_macs"),
        ({"keep_channels": 0.5, "clustering": DBSCAN(eps=0.1)}, ArgumentError, "DBSCAN cannot make a given number"),
        ({"keep_macs": 0.001, "clustering": KMeans(n_clusters=2)}, BudgetError, "keep_macs"),
        ({"keep_macs": 0.01, "clustering": DBSCAN(eps=0.1, min_samples=2)}, BudgetError, r"Ask for keep_macs>="),
        ({"ignore": ["nothing"]}, ArgumentError, "matches no group or layer"),
    ],
)
def test_what_makes_no_sense_is_refused(graph: cp.ChannelGraph, options: dict, error: type, message: str) -> None:
    options = {"images": X, **options}
    with pytest.raises(error, match=message):
        cp.cluster(graph, options.pop("images"), **options)
