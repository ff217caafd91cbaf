"""ShuffleNet v1: grouped convolutions, shuffles and concatenated shortcuts, where no equal cut takes every channel."""

import pytest
import torch
from networks import difference, masked_reference, random_plan
from torch import Tensor, nn
from torch.nn import functional

import clusterprune as cp


class Unit(nn.Module):
    """Grouped, shuffled, depthwise, grouped; beside a pooled shortcut or on top of the input."""

    def __init__(self, channels: int, out: int, groups: int, stride: int, first_groups: int):
        super().__init__()
        inner, made = out // 4, out - channels if stride == 2 else out
        self.groups, self.stride = groups, stride
        self.first = nn.Conv2d(channels, inner, 1, groups=first_groups, bias=False)
        self.depthwise = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.second = nn.Conv2d(inner, made, 1, groups=groups, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in (inner, inner, made))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norms[0](self.first(x)))
        n, c, h, w = y.shape
        y = y.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)
        y = self.norms[2](self.second(self.norms[1](self.depthwise(y))))
        if self.stride == 2:
            return functional.relu(torch.cat([functional.avg_pool2d(x, 3, 2, 1), y], 1))
        return functional.relu(x + y)


class ShuffleNet(nn.Module):
    def __init__(self, groups: int, stem: int, width: int):
        super().__init__()
        self.stem = nn.Conv2d(3, stem, 3, 2, 1)
        self.down, self.unit = Unit(stem, width, groups, 2, 1), Unit(width, width, groups, 1, groups)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.unit(self.down(functional.relu(self.stem(x)))).mean((2, 3)))


@pytest.mark.parametrize(("groups", "stem", "width", "share"), [(3, 24, 240, 0.7), (2, 12, 96, 0.5), (8, 24, 384, 0.3)])
def test_shufflenet_is_cut_as_far_as_its_groups_allow(groups: int, stem: int, width: int, share: float) -> None:
    torch.manual_seed(0)
    model = ShuffleNet(groups, stem, width).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            module.running_mean = torch.randn(module.num_features, dtype=torch.float64)
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    graph = cp.trace(model, x[:1])
    made = stem + 2 * (width // 4) + width
    assert sum(group.channels for group in graph.prunable) > share * made, str(graph)
    plan = random_plan(graph, 1, every_group=True)
    small = cp.apply(model, plan, graph=graph)
    assert type(small) is ShuffleNet
    reference = masked_reference(model, graph, plan)
    with torch.no_grad():
        assert difference(small(x), reference(x)) < 1e-12
        assert difference(small.train()(x), reference.train()(x)) < 1e-8


def test_channels_that_stay_for_good_are_said_apart() -> None:
    text = str(cp.trace(ShuffleNet(3, 24, 240), torch.zeros(1, 3, 16, 16)))
    assert "54 channels in 18 sets of 3 in 3 equal blocks" in text
    assert "6 of 60 channels" in text
    assert "48 of 216 channels  its channels are spread unequally" in text
