"""One width for a bottleneck, as ICP and ACP have it: the middle convolution is clustered, the first follows."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import first
from sklearn import cluster
from small_networks import ready
from torch import Tensor, nn

import clusterprune as cp
from clusterprune import data, train
from clusterprune.clustering import DBSCAN, KMeans
from clusterprune.data import Split
from clusterprune.methods import ClusterCut, Network, OneShotCut, Work
from clusterprune.methods.acp import ACP
from clusterprune.methods.acp_structures import WidthPlanner, macs_of, scaled_to
from clusterprune.methods.icp import ICP
from clusterprune.methods.layers import inner_groups, published_layers, with_followers
from clusterprune.plan import Plan
from clusterprune.tasks import Classification
from clusterprune.train import TrainConfig

BLOCKS = ("first", "second")
FAST = TrainConfig(epochs=1, batch_size=64, lr=0.05, augment="none", precision="float32", device="cpu")
GREY = {"mean": (0.3,), "std": (0.4,)}


class Block(nn.Module):
    """A bottleneck; `odd` makes its first convolution wider than the middle one."""

    def __init__(self, width: int, odd: int = 0) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(16, width + odd, 1, bias=False), nn.BatchNorm2d(width + odd)
        self.conv2, self.bn2 = nn.Conv2d(width + odd, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 16, 1, bias=False), nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(x + self.bn3(self.conv3(y)))


class Narrow(nn.Module):
    """Two bottlenecks behind a stem."""

    def __init__(self, channels: int = 3, odd: int = 0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 16, 3, padding=1)
        self.first, self.second = Block(12, odd), Block(20, odd)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.stem(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, cp.ChannelGraph, Tensor]:
    return ready(Narrow())


@pytest.fixture(scope="module")
def digits() -> tuple[Split, Split]:
    return data.holdout(data.sample(data.load("digits", image_size=8).train, 160, 0), 0.2)


def one_width(plan: Plan, graph: cp.ChannelGraph) -> dict[str, int]:
    """Return the width of every block, having checked that its two convolutions have it."""
    widths = {group.name: plan.widths.get(group.name, group.width) for group in graph.prunable}
    found = {block: {widths[f"{block}.conv1"], widths[f"{block}.conv2"]} for block in BLOCKS}
    assert all(len(each) == 1 for each in found.values()), found
    return {block: each.pop() for block, each in found.items()}


@pytest.mark.parametrize("survivors", ["l1", "medoid"])
def test_the_middle_convolution_says_how_wide_a_block_is(network: tuple, survivors: Any) -> None:
    model, graph, images = network
    eps = 0.3
    part = published_layers(graph)
    plan = cp.cluster(part, images, clustering=DBSCAN(eps=eps, min_samples=2), merging="drop", survivors=survivors)
    widths, maps = one_width(plan, part), {}
    hooks = [
        model.get_submodule(f"{block}.conv2").register_forward_hook(
            lambda _m, _i, out, block=block: maps.update({block: out.double().mean(0).flatten(1).numpy()})
        )
        for block in BLOCKS
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    for block, width in widths.items():
        labels = cluster.DBSCAN(eps=eps, min_samples=2, metric="cosine").fit(maps[block]).labels_
        assert width == len(set(labels) - {-1}) + int((labels == -1).sum())
    assert sum(widths.values()) < 12 + 20
    assert cp.apply(model, plan, graph=graph)(images).shape == (len(images), 10)


@pytest.mark.parametrize("clustering", [DBSCAN(eps=0.1, min_samples=2), KMeans(n_clusters=2)])
def test_a_budget_is_met_with_one_width_a_block(network: tuple, clustering: Any) -> None:
    _, graph, images = network
    part = published_layers(graph)
    plan = cp.cluster(part, images, clustering=clustering, keep_macs=0.6, round_to=2)
    assert all(width % 2 == 0 for width in one_width(plan, part).values())
    assert 0.5 < macs_of(part, plan.widths) / macs_of(part, {}) <= 0.6
    one_width(cp.oneshot(part, images, keep_macs=0.6), part)


def test_elsewhere_each_convolution_has_its_own(network: tuple) -> None:
    _, graph, images = network
    inner = graph.only(inner_groups(graph))
    assert not graph.leaders
    assert not inner.leaders
    plan = cp.cluster(inner, images, clustering=DBSCAN(eps=0.3, min_samples=2))
    assert any(plan.widths[f"{block}.conv1"] != plan.widths[f"{block}.conv2"] for block in BLOCKS)


def test_what_is_no_bottleneck_or_half_of_one_is_not_bound(network: tuple) -> None:
    _, graph, _ = network
    assert published_layers(graph.freeze(["first.conv2"])).leaders == {"second.conv1": "second.conv2"}
    assert published_layers(graph).freeze(["first.conv1"]).leaders == {"second.conv1": "second.conv2"}
    _, odd, _ = ready(Narrow(odd=4))
    assert published_layers(odd).leaders == {}
    assert len(published_layers(odd).prunable) == 4


def test_structures_are_widths_of_blocks(network: tuple) -> None:
    _, graph, images = network
    part = published_layers(graph)
    both = {"first.conv2": 5, "first.conv1": 5, "second.conv2": 20, "second.conv1": 20}
    assert with_followers(part, {"first.conv2": 5, "second.conv2": 20}) == both
    assert macs_of(part, {"first.conv2": 5}) == macs_of(graph, {"first.conv2": 5, "first.conv1": 5})
    for merge in ("drop", "least_squares"):
        plan = WidthPlanner(part, images, merge=merge)({"first.conv2": 5})
        assert one_width(plan, part) == {"first": 5, "second": 20}
    half = scaled_to(part, {"first.conv2": 12, "second.conv2": 20}, 0.5 * macs_of(part, {}))
    assert half.keys() == {"first.conv2", "second.conv2"}
    assert 0.45 < macs_of(part, half) / macs_of(part, {}) <= 0.5


def test_a_pickled_graph_keeps_who_follows_whom(network: tuple) -> None:
    part = published_layers(network[1])
    again = pickle.loads(pickle.dumps(part))
    assert (again.leaders, again.links) == (part.leaders, part.links)


@pytest.fixture(scope="module")
def trained(digits: tuple[Split, Split]) -> nn.Module:
    torch.manual_seed(0)
    model = Narrow(1)
    train.fit(model, Classification(digits[0], **GREY), FAST.model_copy(update={"epochs": 3}))
    return model.eval()


@pytest.mark.parametrize("cut", [ClusterCut(min_samples=2), OneShotCut(layers="inner")], ids=["clusters", "oneshot"])
@pytest.mark.parametrize("cycles", first(1, [1, 0]))
def test_acp_searches_for_one_width_a_block(
    digits: tuple[Split, Split], trained: nn.Module, cut: Any, cycles: int
) -> None:
    model, graph = trained, cp.trace(trained, torch.zeros(1, 1, 8, 8))
    config = ACP(keep_macs=0.7, cut=cut, samples=32, particles=2, cycles=cycles, fitness="merge")
    made = config.run(Network(model, torch.zeros(1, 1, 8, 8)), Classification(*digits, **GREY), Work(training=FAST))
    blocks = one_width(made.plan, published_layers(graph))
    for widths in (made.record["start"], made.record["best"]):
        assert {name: widths[f"{name}.conv1"] for name in BLOCKS} == {name: widths[f"{name}.conv2"] for name in BLOCKS}
    assert {name: made.record["best"][f"{name}.conv2"] for name in BLOCKS} == blocks
    assert made.record["evaluations"] == 4 * cycles


@pytest.mark.parametrize("cut", [ClusterCut(min_samples=2), OneShotCut(layers="inner")], ids=["clusters", "oneshot"])
def test_icp_cuts_to_one_width_a_block(
    digits: tuple[Split, Split], trained: nn.Module, tmp_path: Path, cut: Any
) -> None:
    config = ICP(
        keep_macs=0.6, cut=cut, steps=2, epochs_between=1, samples=32,
        stages=("first", "second"),
    )  # fmt: skip
    task, example = Classification(*digits, **GREY), torch.zeros(1, 1, 8, 8)
    made = config.run(Network(trained, example), task, Work(tmp_path, FAST))
    for block in (made.model.first, made.model.second):
        assert block.conv1.out_channels == block.conv2.in_channels == block.conv2.out_channels
