"""Norms over the channels: frozen in words that name the remedy, and cut as the norm over the kept channels."""

import copy
from collections.abc import Callable

import pytest
import torch
from networks import difference, random_plan
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (its usual name)

import clusterprune as cp
from clusterprune.errors import PlanError
from clusterprune.graph.program import Program
from clusterprune.graph.rewrite import masked_norms
from clusterprune.surgery.cutting import removed_labels
from clusterprune.surgery.history import stages
from clusterprune.surgery.masking import masked_state

WIDTH = 8


class LayerNorm2d(nn.LayerNorm):
    """The norm of torchvision's and timm's ConvNeXt."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class HandWritten(nn.Module):
    """The norm of the first ConvNeXt, with a width of its own."""

    def __init__(self, width: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))
        self.normalized_shape = (width,)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        return self.weight[:, None, None] * ((x - mean) / (variance + 1e-6).sqrt()) + self.bias[:, None, None]


class PlainLayerNorm(HandWritten):
    """A norm that is no `nn.LayerNorm`, over the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias)
        return x.permute(0, 3, 1, 2)


class ResponseNorm(nn.Module):
    """Global response normalisation (ConvNeXt V2), channels last."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        size = x.norm(p=2, dim=(1, 2), keepdim=True)
        ratio = size / (size.mean(-1, keepdim=True) + 1e-6)
        return (x + torch.addcmul(self.beta.view(1, 1, 1, -1), self.gamma.view(1, 1, 1, -1), x * ratio)).permute(
            0, 3, 1, 2
        )


class Call(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "layer norm, channels first": lambda: LayerNorm2d(WIDTH),
    "layer norm without weights": lambda: LayerNorm2d(WIDTH, elementwise_affine=False),
    "layer norm over everything": lambda: nn.LayerNorm((WIDTH, 6, 6)),
    "group norm of one group": lambda: nn.GroupNorm(1, WIDTH),
    "group norm without weights": lambda: nn.GroupNorm(1, WIDTH, affine=False),
    "hand-written": lambda: HandWritten(WIDTH),
    "a norm of its own class": lambda: PlainLayerNorm(WIDTH),
    "response norm": lambda: ResponseNorm(WIDTH),
    "root mean square": lambda: Call(lambda x: x * (x.pow(2).mean(1, keepdim=True) + 1e-6).rsqrt()),
    "normalize": lambda: Call(lambda x: F.normalize(x, dim=1)),
    "variance and mean": lambda: Call(lambda x: (x - torch.var_mean(x, 1, keepdim=True)[1]) / x.std(1, keepdim=True)),
}


class Net(nn.Module):
    """A residual stream of two convolutions, normalised, read by a third."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.stem, self.norm, self.inner = nn.Conv2d(3, WIDTH, 3, padding=1), norm, nn.Conv2d(WIDTH, 6, 1)
        self.back, self.head = nn.Conv2d(6, WIDTH, 1), nn.Conv2d(WIDTH, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.back(self.inner(self.norm(x)).relu()))


def network(name: str) -> Net:
    torch.manual_seed(0)
    model = Net(NORMS[name]()).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("name", NORMS)
def test_without_leave_the_channels_stay_and_the_report_says_what_would_cut_them(name: str) -> None:
    graph = cp.trace(network(name), images(1))
    stem = graph.by_name["stem"]
    assert stem.width == WIDTH
    assert "approximate=True" in str(stem.frozen)
    assert [g.name for g in graph.prunable] == ["inner"]
    assert not any(group.approximate for group in graph.groups)


@pytest.mark.parametrize("name", NORMS)
def test_the_cut_network_has_the_norm_of_the_kept_channels(name: str) -> None:
    model, x = network(name), images(3)
    graph = cp.trace(model, images(1), approximate=True)
    assert [g.name for g in graph.prunable] == ["stem", "inner"]
    assert [g.approximate for g in graph.prunable] == [True, False]
    plan = random_plan(graph, 3, every_group=True)
    small = cp.apply(model, plan, graph=graph)
    assert type(small) is Net, "its own code still fits"
    assert stages(small)[-1].approximate
    truth = Program(graph, masked_norms(graph, removed_labels(graph, plan)))
    with torch.no_grad():
        expected = truth.run(masked_state(graph, plan), (x,))
        assert difference(small(x), expected) < 1e-12
        assert difference(small.train()(x), expected) < 1e-12
        # Without the norms of the kept channels the masked network is another one.
        plain = Program(graph).run(masked_state(graph, plan), (x,))
        assert difference(plain, expected) > 1e-6


def test_a_plan_remembers_that_it_is_approximate(tmp_path) -> None:
    model = network("layer norm, channels first")
    graph = cp.trace(model, images(1), approximate=True)
    plan = random_plan(graph, 3, every_group=True)
    plan.save(tmp_path / "plan")
    small = cp.apply(model, cp.Plan.load(tmp_path / "plan"))
    cp.save(small, tmp_path / "small")
    again = cp.load(tmp_path / "small", lambda: network("layer norm, channels first"))
    with torch.no_grad():
        assert difference(again(images(2)), small(images(2))) < 1e-12
    again = copy.deepcopy(graph)
    assert [group.approximate for group in again.prunable] == [group.approximate for group in graph.prunable]
    with pytest.raises(PlanError, match="approximate=True"):
        cp.apply(model, plan, graph=cp.trace(model, images(1)))


def test_a_statistic_that_is_read_as_an_image_is_no_norm() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.map, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(x * torch.sigmoid(self.map(x.mean(1, keepdim=True))))

    graph = cp.trace(Attention(), torch.zeros(1, 3, 8, 8), approximate=True)
    assert graph.by_name["stem"].frozen == "mean: it reduces over channels"
