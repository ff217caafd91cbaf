"""What every operator family must satisfy. A new one is added to CASES and nothing else."""

import doctest
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import difference, masked_reference, random_plan
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (its usual name)
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import DeformConv2d

import clusterprune as cp
from clusterprune.budget.cost import CostModel
from clusterprune.graph.ops import Op, _base, op_of, registered
from clusterprune.surgery.cutting import removed_labels

SIDE = 6
Case = Callable[[], tuple[nn.Module, Callable[..., Tensor]]]


class Between(nn.Module):
    """Two convolutions, an operator on what they make, and a convolution that reads it."""

    def __init__(self, layer: nn.Module, operator: Callable[..., Tensor]):
        super().__init__()
        self.a, self.b, self.layer, self.operator = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1), layer, operator
        made = operator(layer, torch.rand(2, 8, SIDE, SIDE), torch.rand(2, 8, SIDE, SIDE))
        self.c = nn.Conv2d(made.shape[1], 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.operator(self.layer, self.a(x), self.b(x)))


def of(operator: Callable[[Tensor, Tensor], Tensor]) -> Case:
    """Return a case of an operator without parameters."""
    return lambda: (nn.Identity(), lambda _, a, b: operator(a, b))


def layer(make: Callable[[], nn.Module]) -> Case:
    """Return a case of a layer that reads the sum of the maps."""
    return lambda: (make(), lambda module, a, b: module(a + b))


class Deformed(nn.Module):
    """A deformable convolution with offsets of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.offset, self.deformed = nn.Conv2d(8, 18, 3, padding=1), DeformConv2d(8, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.deformed(x, self.offset(x))


class Kernel(nn.Module):
    """A matrix, or what a convolution's kernel is computed from."""

    def __init__(self, *shape: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape) / 4)


def rows(x: Tensor) -> Tensor:
    """Return maps as (images, places, channels)."""
    return x.flatten(2).mT


def maps(x: Tensor) -> Tensor:
    """Return (images, places, channels) as maps."""
    return x.mT.unflatten(2, (SIDE, SIDE))


def heads(x: Tensor) -> Tensor:
    """Return maps as (images, heads, places, channels of a head)."""
    return rows(x).unflatten(2, (2, 4)).transpose(1, 2)


def made_of(operator: Callable[[Tensor], Tensor], *shape: int) -> Case:
    """Return a case of a convolution whose kernel is computed."""
    return lambda: (Kernel(*shape or (8, 8, 1, 1)), lambda m, a, b: F.conv2d(a + b, operator(m.weight)))


def pooled(x: Tensor, dims: int) -> Tensor:
    """Pool, unpool and resize maps with one to three dimensions in space."""
    x = x.reshape(len(x), 8, *{1: (36,), 2: (6, 6), 3: (1, 6, 6)}[dims])
    if dims > 1:
        kernel = (1, 2, 2)[3 - dims :]
        pool, back = {2: (F.max_pool2d, F.max_unpool2d), 3: (F.max_pool3d, F.max_unpool3d)}[dims]
        x = x + back(*pool(x, kernel, return_indices=True), kernel)
    x = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[dims](x, (1, 2, 2)[3 - dims :] if dims > 1 else 2)
    return F.interpolate(x, scale_factor=(1, 2, 2)[3 - dims :] if dims > 1 else 2).reshape(len(x), 8, SIDE, SIDE)


CASES: dict[str, Case] = {
    "convolution": layer(lambda: nn.Conv2d(8, 6, 3, padding=1)),
    "depthwise convolution": layer(lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8)),
    "grouped convolution": layer(lambda: nn.Conv2d(8, 8, 3, padding=1, groups=2)),
    "transposed convolution": layer(lambda: nn.ConvTranspose2d(8, 6, 2, stride=2)),
    "deformable convolution": layer(Deformed),
    "linear": lambda: (nn.Linear(8, 6), lambda m, a, b: maps(m(rows(a + b)))),
    "matrix": lambda: (Kernel(8, 6), lambda m, a, b: maps(rows(a + b) @ m.weight)),
    "bmm": of(lambda a, b: torch.bmm(a.flatten(2), b.flatten(2).mT @ b.flatten(2)).unflatten(2, (SIDE, SIDE))),
    "baddbmm": of(lambda a, b: maps(torch.baddbmm(rows(a), torch.ones(len(a), 36, 36).to(a), rows(b)))),
    "einsum": of(lambda a, b: torch.einsum("bcij,bcjk->bcik", a, b)),
    "attention": of(
        lambda a, b: maps(F.scaled_dot_product_attention(*map(heads, (a, b, a + b))).transpose(1, 2).flatten(2))
    ),
    "batch norm": layer(lambda: nn.BatchNorm2d(8)),
    "instance norm": layer(lambda: nn.InstanceNorm2d(8, affine=True)),
    "group norm": layer(lambda: nn.GroupNorm(4, 8)),
    "layer norm": lambda: (nn.LayerNorm(SIDE), lambda m, a, b: m(a) + b),
    "weight norm": layer(lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 6, 1))),
    "max over a row": of(lambda a, b: a * b.amax(2, keepdim=True)),
    "statistics": of(lambda a, b: a - b.mean((2, 3), keepdim=True) / (1 + b.std((2, 3), keepdim=True))),
    "softmax": of(lambda a, b: a.softmax(2) + b),
    "cumsum": of(lambda a, b: a + b.cumsum(2)),
    "msort": of(lambda a, b: a + b.transpose(0, 2).msort().transpose(0, 2)),
    "matrices": of(lambda a, b: a + b.tril()),
    "cosine similarity": of(lambda a, b: a * F.cosine_similarity(a, b, dim=2)[:, :, None]),
    "addition": of(lambda a, b: a + b),
    "rectifiers": of(lambda a, b: F.relu(a) + F.leaky_relu(b) * F.relu6(a)),
    "clamp": of(lambda a, b: a.clamp(-1, 1) + F.hardtanh(b)),
    "prelu": layer(lambda: nn.PReLU(8)),
    "gated unit": of(lambda a, b: F.glu(torch.cat([a, b], 1), 1)),
    "element by element": of(lambda a, b: F.hardswish(a) * b.sigmoid()),
    "pooling in one dimension": of(lambda a, b: pooled(a + b, 1)),
    "pooling in two dimensions": of(lambda a, b: pooled(a + b, 2)),
    "pooling in three dimensions": of(lambda a, b: pooled(a + b, 3)),
    "grid": of(
        lambda a, b: F.grid_sample(
            a + b,
            F.affine_grid(
                torch.eye(2, 3, dtype=a.dtype).expand(len(a), 2, 3), [len(a), 8, SIDE, SIDE], align_corners=False
            ),
            align_corners=False,
        )
    ),
    "unfold": of(lambda a, b: F.fold(F.unfold(a + b, 2), (SIDE, SIDE), 2)),
    "views": of(lambda a, b: a.flatten(2).view(-1, 8, SIDE, SIDE).squeeze(0).reshape_as(b) + b.permute(0, 1, 3, 2)),
    "unflatten": of(lambda a, b: (a + b).unflatten(1, (2, 4)).flip(2).flatten(1, 2)),
    "expand": of(lambda a, b: a[:, :, :1].expand(-1, -1, SIDE, -1) + b[:, :, :, :1].expand_as(a)),
    "dropout": of(lambda a, b: F.dropout(a, 0.5, training=False) + b.clone()),
    "parts": of(lambda a, b: torch.cat([a[:, :4], b.narrow(1, 4, 4)], 1) + a.select(2, 1)[:, :, None]),
    "chunks": of(lambda a, b: a.chunk(2, 1)[0] + b.split(4, 1)[1]),
    "picked": of(lambda a, b: a[:, :, [0, 2, 4, 1, 3, 5]] + torch.stack(b.unbind(2), 2)),
    "roll": of(lambda a, b: a.roll(2, 2) + b.roll(8, 1)),
    "padding": of(lambda a, b: F.pad(a, (0, 0, 0, 0, 1, 2)) + F.pad(b, (0, 0, 0, 0, 2, 1))),
    "reflection": of(lambda a, b: torch._C._nn.reflection_pad2d(a + b, [1, 1, 1, 1])),
    "zeros": of(lambda a, b: torch.cat([a, a.new_zeros(a.shape)], 1) + torch.cat([b, torch.zeros_like(b)], 1)),
    "constants": of(
        lambda a, b: (
            torch.cat([a, torch.zeros(1, 2, SIDE, SIDE).expand(len(a), -1, -1, -1).to(b)], 1) + torch.arange(SIDE)
        )
    ),
    "computed kernel": made_of(lambda w: w.tanh() * 2),
}


@cache
def traced(name: str) -> tuple[nn.Module, cp.ChannelGraph, Tensor]:
    torch.manual_seed(0)
    model = Between(*CASES[name]()).double().eval()
    x = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    return model, cp.trace(model, x), x


def counted(model: nn.Module, x: Tensor) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("name", CASES)
def test_labels_have_the_shape_of_what_they_describe(name: str) -> None:
    _, graph, _ = traced(name)
    for node in graph.fx.nodes:
        value, labels = node.meta.get("val"), graph.values.get(node.name)
        if isinstance(value, Tensor) and isinstance(labels, Tensor):
            assert labels.shape == value.shape, node
    assert graph.unknown == {}
    assert graph.prunable


@pytest.mark.parametrize("name", CASES)
def test_masked_is_cut_and_costs_are_counted(name: str) -> None:
    model, graph, x = traced(name)
    cost = CostModel(graph)
    assert cost.total("macs") == counted(model, x)
    plan = random_plan(graph, 1, every_group=True)
    small = cp.apply(model, plan, graph=graph)
    with torch.no_grad():
        assert difference(small(x), masked_reference(model, graph, plan)(x)) < 1e-12
    assert cost.without("macs", removed_labels(graph, plan)) == counted(small, x)


def test_every_registered_family_has_a_case() -> None:
    met = {op_of(node) for name in CASES for node in traced(name)[1].fx.nodes}
    missing: dict[Op, list[str]] = {}
    for name, op in registered().items():
        library, _, rest = name.partition("::")
        ours = library in ("aten", "torchvision")
        known = ours and hasattr(getattr(torch.ops, library), rest.partition(".")[0])
        if known and op not in met and op is not _base.ELEMENTWISE:
            missing.setdefault(op, []).append(name)
    assert list(missing.values()) == []


SOURCES = Path(cp.__file__).parent
SNIFFS = re.compile(r"startswith\(\(?.(conv|aten)|in str\([^)]*target|str\([^)]*target\)\.|call\.kind (==|!=|in) ")


def test_only_the_families_say_what_an_operator_is() -> None:
    found = [
        f"{file.relative_to(SOURCES)}:{number}: {line.strip()}"
        for file in sorted(SOURCES.rglob("*.py"))
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if SNIFFS.search(line)
    ]
    assert found == []


def test_the_documented_example_runs() -> None:
    tried, failed = doctest.testmod(_base)[::-1]
    assert tried > 8
    assert failed == 0


def test_an_operator_of_ones_own_can_be_registered() -> None:
    @torch.library.custom_op("house::scale", mutates_args=())
    def scale(x: Tensor, weight: Tensor) -> Tensor:
        return x * weight[:, None, None]

    @scale.register_fake
    def _(x: Tensor, weight: Tensor) -> Tensor:
        return torch.empty_like(x)

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(8))

        def forward(self, x: Tensor) -> Tensor:
            return scale(x, self.weight)

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), Scale(), nn.Conv2d(8, 4, 3)).double().eval()
    x = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    before = cp.trace(net, x)
    assert before.unknown == {"house.scale": ["scale"]}
    assert not before.prunable
    cp.register_op(torch.ops.house.scale, cp.graph.by_channel("weight"))
    graph = cp.trace(net, x)
    assert graph.unknown == {}
    plan = random_plan(graph, 1, every_group=True)
    small: Any = cp.apply(net, plan, graph=graph)
    assert len(small[1].weight) == small[0].out_channels < 8
    with torch.no_grad():
        assert difference(small(x), masked_reference(net, graph, plan)(x)) < 1e-12
