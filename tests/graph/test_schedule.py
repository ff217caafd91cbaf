"""An order in which the calls of a layer stand side by side gives what the traced order gives."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import retinanet_resnet50_fpn_v2

import clusterprune as cp
from clusterprune.graph.program import Program, named_tensors
from clusterprune.graph.schedule import side_by_side
from clusterprune.models.tensor_part import TensorPart


class Views(nn.Module):
    """A network that looks at an image and at its mirror image."""

    def __init__(self) -> None:
        super().__init__()
        self.network = resnet18(num_classes=5)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) + self.network(x.flip(-1))


class Again(nn.Module):
    """One layer is applied to what it has made, one to two maps, and one waits for both calls of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.turn, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.turn(self.stem(x)))
        return self.head(first) + self.head(torch.relu(self.turn(first)))


class Crossed(nn.Module):
    """The last call of one layer can run long before its first, which waits for all calls of another."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        deep, shallow = self.other(torch.relu(self.one(x))), self.other(x)
        return deep + shallow + self.one(x.flip(-1))


class WritesInto(Views):
    def forward(self, x: Tensor) -> Tensor:
        seen = self.network.conv1(x)
        return seen.mean() + seen.relu_().sum() + self.network.conv1(x.flip(-1)).sum()


class ThrowsDice(Views):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand(5)


def detector() -> nn.Module:
    return TensorPart(retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None).eval())


def layers(graph: cp.ChannelGraph) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for call in graph.calls:
        found[call.weight] = (*found.get(call.weight, ()), call.node)
    return {weight: calls for weight, calls in found.items() if len(calls) > 1}


@pytest.mark.parametrize(("kind", "size"), [(Views, 64), (Again, 10), (Crossed, 10), (detector, 64)])
def test_another_order_gives_the_same(kind: Any, size: int):
    torch.manual_seed(0)
    model, images = kind().eval(), torch.randn(2, 3, size, size)
    graph = cp.trace(model, images[:1])
    shared = layers(graph)
    order, together = side_by_side(graph, shared)
    assert together == ({"head.weight"} if kind is Again else set(shared))
    assert sorted(order) == sorted(graph.nodes)
    assert order != list(graph.nodes) or kind is Again
    for weight in together:
        start = order.index(shared[weight][0])
        assert tuple(order[start : start + len(shared[weight])]) == shared[weight]
    with torch.no_grad():
        expected = model(images)
        found = Program(graph, order=order).run(named_tensors(graph), (images,))
    expected = expected if isinstance(expected, tuple) else (expected,)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", [WritesInto, ThrowsDice])
def test_where_it_matters_when_something_runs_the_order_stays(kind: type[nn.Module]):
    graph = cp.trace(kind().eval(), torch.randn(1, 3, 32, 32))
    assert layers(graph)
    order, together = side_by_side(graph, layers(graph))
    assert order == list(graph.nodes)
    assert not together


def test_a_network_without_such_layers_runs_as_traced():
    graph = cp.trace(resnet18().eval(), torch.randn(1, 3, 32, 32))
    assert side_by_side(graph, layers(graph)) == (list(graph.nodes), frozenset())
