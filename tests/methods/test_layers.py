"""The layers that the papers cut, by name, in the networks that the papers cut."""

import pytest
import torch
from small_networks import conv_norm
from torch import Tensor, nn

import clusterprune as cp
from clusterprune.errors import ArgumentError
from clusterprune.methods.layers import inner_groups, published_layers
from clusterprune.models import ResNet, build

INCEPTIONS = ("a3", "b3", "a4", "b4", "c4", "d4", "e4", "a5", "b5")
EXPECTED = {
    "vgg16": [f"features.{i}" for i in (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)],
    "vgg19": [f"features.{i}" for i in (0, 3, 7, 10, 14, 17, 20, 23, 27, 30, 33, 36, 40, 43, 46, 49)],
    "resnet20": [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)],
    "googlenet": [
        f"inception_{name}.{layer}" for name in INCEPTIONS for layer in ("branch3x3.0", "branch5x5.0", "branch5x5.3")
    ],
    "torchvision:resnet18": [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3, 4) for block in range(2)],
    "torchvision:resnet50": [
        f"layer{stage}.{block}.{conv}"
        for stage, blocks in ((1, 3), (2, 4), (3, 6), (4, 3))
        for block in range(blocks)
        for conv in ("conv1", "conv2")
    ],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_papers_choice(name: str) -> None:
    graph = cp.trace(build(name), torch.zeros(1, 3, 32, 32))
    assert inner_groups(graph) == EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_for_icp_and_acp_the_first_convolution_of_a_bottleneck_follows_the_middle_one(name: str) -> None:
    graph = published_layers(cp.trace(build(name), torch.zeros(1, 3, 32, 32)))
    assert [group.name for group in graph.prunable] == EXPECTED[name]
    blocks = {layer.removesuffix(".conv1") for layer in EXPECTED[name]} if name.endswith("resnet50") else set()
    expected = {f"{block}.conv1": f"{block}.conv2" for block in blocks if not block.endswith("conv2")}
    assert graph.leaders == expected
    assert set(graph.links) == {frozenset(pair) for pair in expected.items()}
    assert len(expected) in (0, 16)


def test_a_stage_of_one_block_is_a_stream_although_one_layer_makes_its_new_channels() -> None:
    graph = cp.trace(ResNet(1).eval(), torch.zeros(1, 3, 16, 16))
    assert {"layer2.0.conv2", "layer3.0.conv2"} <= {group.name for group in graph.prunable}
    assert inner_groups(graph) == [f"layer{stage}.0.conv1" for stage in (1, 2, 3)]


class Corners(nn.Module):
    """A trunk with two readers, an addition of a channel to itself, a concatenation, and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv_norm(3, 8)
        self.trunk = conv_norm(8, 8)
        self.left, self.right = conv_norm(8, 8), conv_norm(8, 8)
        self.added = nn.Conv2d(16, 8, 1)
        self.spread = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.last = conv_norm(8, 8)
        self.hidden = nn.Linear(8 * 16, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(self.first(x))
        x = self.added(torch.cat([self.left(x), self.right(x)], 1))
        x = self.last(x + self.spread(x))
        return self.head(torch.relu(self.hidden(x.flatten(1))))


def test_one_convolution_makes_them_one_layer_reads_them_and_nothing_joins_them() -> None:
    graph = cp.trace(Corners().eval(), torch.zeros(1, 3, 4, 4))
    assert {g.name for g in graph.prunable} == {
        "first.0", "trunk.0", "left.0", "right.0", "added", "last.0", "hidden",
    }  # fmt: skip
    assert inner_groups(graph) == ["first.0", "last.0"]


def test_frozen_groups_are_left_out() -> None:
    graph = cp.trace(Corners().eval(), torch.zeros(1, 3, 4, 4), ignore=["first*"])
    assert inner_groups(graph) == ["last.0"]


def test_restricted_to_some_groups_only_those_are_cut() -> None:
    model = Corners().eval()
    graph = cp.trace(model, torch.zeros(1, 3, 4, 4))
    images = torch.randn(32, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    plan = cp.oneshot(graph.only(inner_groups(graph)), images, keep_macs=0.7)
    assert {merge.group for merge in plan.merges} <= {"first.0", "last.0"}
    assert cp.apply(model, plan)(images).shape == (32, 3)
    assert all(group.frozen is None for group in graph.prunable)


@pytest.mark.parametrize(("names", "said"), [(["last.0", "spread"], "names=spread"), ([], "names=nothing")])
def test_only_groups_that_can_be_cut_may_be_named(names: list[str], said: str) -> None:
    graph = cp.trace(Corners().eval(), torch.zeros(1, 3, 4, 4))
    with pytest.raises(ArgumentError, match=said):
        graph.only(names)
