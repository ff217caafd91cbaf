"""Every operator by its overloads: what it does to channels, checked against the truth (masked = cut)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import difference, masked_reference, random_plan
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (its usual name)
from torchvision.ops import DeformConv2d

import clusterprune as cp
from clusterprune.graph.ops import registered

aten = torch.ops.aten
SIDE = 6


class Two(nn.Module):
    """Two convolutions, an operator on both, and a convolution that reads what it makes."""

    def __init__(self, operator: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        torch.manual_seed(0)
        self.operator = operator
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.c = nn.Conv2d(operator(torch.rand(2, 8, SIDE, SIDE), torch.rand(2, 8, SIDE, SIDE)).shape[1], 4, 1)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.operator(self.a(x), self.b(x)))


def widths(graph: cp.ChannelGraph, layer: str) -> int | str:
    """Return how many units of a layer's channels may be cut, or why none."""
    groups = [g for g in graph.groups if any(use.path == f"{layer}.weight" for use in g.producers)]
    free = [g.width for g in groups if g.frozen is None]
    return sum(free) if free else "; ".join(str(g.frozen) for g in groups)


def check(operator: Callable[[Tensor, Tensor], Tensor]) -> cp.ChannelGraph:
    """Check law 2 for an operator; return the graph."""
    model = Two(operator).eval()
    x = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    graph = cp.trace(model, x[:1])
    plan = random_plan(graph, 1, every_group=True)
    small = cp.apply(model, plan, graph=graph)
    with torch.no_grad():
        assert difference(small(x), masked_reference(model, graph, plan)(x)) < 1e-12
    return graph


TOGETHER: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "max of two": torch.max,
    "min of two": torch.min,
    "fmax": torch.fmax,
    "max over a row": lambda a, b: a * b.max(2, keepdim=True)[0],
    "amax": lambda a, b: a * b.amax((2, 3), keepdim=True),
    "aminmax": lambda a, b: a + torch.aminmax(b, dim=2, keepdim=True)[0],
    "sum": lambda a, b: a + b.sum((2, 3), keepdim=True),
    "nanmean": lambda a, b: a + b.nanmean((2, 3), keepdim=True),
    "mean without keepdim": lambda a, b: a + b.mean((-1, -2))[..., None, None],
    "var with correction": lambda a, b: a + b.var((2, 3), correction=0, keepdim=True),
    "std": lambda a, b: a + b.std(2, keepdim=True),
    "var_mean": lambda a, b: a + torch.var_mean(b, (2, 3), keepdim=True)[0],
    "prod": lambda a, b: a + b.prod(2, keepdim=True),
    "norm": lambda a, b: a / b.norm(p=1, dim=2, keepdim=True),
    "matrix norm": lambda a, b: a / torch.linalg.matrix_norm(b, keepdim=True),
    "any": lambda a, b: a * (b > 0).any(2, keepdim=True),
    "logsumexp": lambda a, b: a + b.logsumexp((2, 3), keepdim=True),
    "median": lambda a, b: a + b.median(2, keepdim=True)[0],
    "quantile": lambda a, b: a + b.quantile(0.5, dim=2, keepdim=True),
    "argmax": lambda a, b: a * b.argmax(2, keepdim=True),
    "count_nonzero": lambda a, b: a * (b > 0).count_nonzero((2, 3))[..., None, None],
    "cumsum": lambda a, b: a + b.cumsum(2),
    "cummax": lambda a, b: a + b.cummax(2)[0],
    "topk": lambda a, b: a + b.topk(2, dim=2)[0].sum(2, keepdim=True),
    "sort": lambda a, b: a + b.sort(dim=3, stable=True)[0],
    "argsort": lambda a, b: a + b.argsort(3),
    "where": lambda a, b: torch.where(a > 0, a, b),
    "where of a number": lambda a, b: torch.where(a > 0, a, 0.1) + b,
    "clamp between tensors": lambda a, b: a.clamp(b - 1, b + 1),
    "lerp": lambda a, b: torch.lerp(a, b, torch.sigmoid(a)),
    "addcmul": lambda a, b: torch.addcmul(a, a, b, value=0.5),
    "add with alpha": lambda a, b: torch.add(a, b, alpha=2),
    "in place with alpha": lambda a, b: a.clone().add_(b, alpha=3),
    "pow": lambda a, b: a.abs().pow(b) + 2.0**a,
    "masked_fill": lambda a, b: a.masked_fill(b > 0, 0.5),
    "copy_": lambda a, b: a.clone().copy_(b) + a,
    "fill_": lambda a, b: a.clone().fill_(0.5) * b,
    "logical and": lambda a, b: a * ((a > 0) & (b > 0)),
    "isclose": lambda a, b: a * torch.isclose(a, b),
    "softmax over a row": lambda a, b: a + b.softmax(2),
    "stack and sum": lambda a, b: torch.stack([a, b], 2).sum(2),
    "stack and unbind": lambda a, b: sum(torch.stack([a, b], 2).unbind(2), torch.zeros(())),
    "stack and select": lambda a, b: torch.stack([a, b], 1)[:, 0] + torch.stack([a, b], 1)[:, 1],
    "ones_like": lambda a, b: a + torch.ones_like(b),
    "full_like": lambda a, b: a + torch.full_like(a, 2.0) + b,
    "new_ones": lambda a, b: a + b.new_ones(1, 8, 1, 1) + b,
    "zeros": lambda a, b: a + torch.zeros(1, 8, 1, 1) + b,
    "roll by the whole width": lambda a, b: a.roll(8, 1) + b,
    "roll in space": lambda a, b: a.roll((1, 2), (2, 3)) + b,
    "feature_dropout_": lambda a, b: F.dropout2d(a.clone(), 0.5, False, inplace=True) + b,
    "gather": lambda a, b: a.gather(2, b.argsort(2)),
    "index in space": lambda a, b: a[:, :, [0, 2, 1]] + b[:, :, [0, 2, 1]],
    "index of the batch": lambda a, b: a[torch.zeros(1, dtype=torch.long)] + b,
    "tril": lambda a, b: a.tril() + b,
    "rot90": lambda a, b: torch.rot90(a, 1, (2, 3)) + b,
    "max_unpool2d": lambda a, b: F.max_unpool2d(*F.max_pool2d(a, 2, return_indices=True), 2) + b,
    "fold": lambda a, b: F.fold(F.unfold(a, 3, padding=1), (SIDE, SIDE), 3, padding=1) + b,
    "cosine similarity": lambda a, b: a * F.cosine_similarity(a.flatten(2), b.flatten(2), dim=2)[..., None, None],
    "fft": lambda a, b: torch.fft.irfft2(torch.fft.rfft2(a), s=(SIDE, SIDE)) + b,
    "einsum": lambda a, b: torch.einsum("nchw,nc->nchw", a, b.mean((2, 3))),
    "dead select": lambda a, b: (a[:, 1], a + b)[1],
    "dead index": lambda a, b: (a[:, [1, 3]], a + b)[1],
    "dead reduction": lambda a, b: (a[:, 1:].sum(), a + b)[1],
}  # fmt: skip
"""Element by element, or along space: the two convolutions are one group of eight channels."""


@pytest.mark.parametrize("name", TOGETHER)
def test_channels_that_meet_are_one_group(name: str) -> None:
    graph = check(TOGETHER[name])
    group = next(g for g in graph.groups if g.name == "a")
    assert (group.width, group.frozen, len(group.producers)) == (8, None, 2)


APART: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int | str, int | str]] = {
    "max of all": (lambda a, b: a * b.max(), 8, "reduces over channels"),
    "max over channels": (lambda a, b: a * b.max(1, keepdim=True)[0], 8, "reduces over channels"),
    "sum of all": (lambda a, b: a + b.sum(), 8, "reduces over channels"),
    "var over channels": (lambda a, b: a + b.var(1, keepdim=True), 8, "reduces over channels, as a norm does"),
    "norm": (lambda a, b: a / b.norm(), 8, "reduces over channels, as a norm does"),
    "expanded statistic": (
        lambda a, b: a / b.amax((1, 2, 3), keepdim=True).expand_as(a),
        8,
        "reduces over channels",
    ),
    "norm of channels": (lambda a, b: a / torch.linalg.matrix_norm(b, dim=(1, 2), keepdim=True), 8, "over channels"),
    "all": (lambda a, b: a * (b > 0).all(), 8, "reduces over channels"),
    "logsumexp": (lambda a, b: a + b.logsumexp(1, keepdim=True), 8, "reduces over channels"),
    "median of all": (lambda a, b: a + b.median(), 8, "reduces over channels"),
    "argmax": (lambda a, b: a * b.argmax(1, keepdim=True), 8, "reduces over channels"),
    "topk": (lambda a, b: b.topk(3, dim=1)[0], "no layer reads", "along the channels"),
    "cumsum": (lambda a, b: a + b.cumsum(1), "along the channels", "along the channels"),
    "sort": (lambda a, b: a + b.sort(1)[0], "along the channels", "along the channels"),
    "softmax": (lambda a, b: a + b.softmax(1), "softmax over channels", "softmax over channels"),
    "cosine": (lambda a, b: a * F.cosine_similarity(a, b)[:, None], "over channels", "over channels"),
    "cat": (lambda a, b: torch.cat([a, b], 1), 8, 8),
    "cat of zeros_like": (lambda a, b: torch.cat([a, torch.zeros_like(b)], 1), 8, 8),
    "cat of zeros": (lambda a, b: torch.cat([a, torch.zeros(len(a), 3, SIDE, SIDE)], 1), 8, "no layer reads"),
    "zeros in places of channels": (
        lambda a, b: a + torch.cat([b[:, :6], torch.zeros(len(a), 2, SIDE, SIDE)], 1), 8, 6
    ),
    "coordinates": (
        lambda a, b: torch.cat([a, torch.arange(6.0).view(1, 1, 6, 1).expand(len(a), 1, 6, 6)], 1), 8, "no layer reads"
    ),
    "roll of channels": (lambda a, b: a.roll(1, 1) + b, "by their number", "by their number"),
    "roll of everything": (lambda a, b: a.roll(288) + b, "by their number", "by their number"),
    "index of channels": (lambda a, b: a[:, [3, 1, 2]] + b[:, :3], "by their number", "by their number"),
    "reflected channels": (
        lambda a, b: F.pad(a.permute(0, 2, 3, 1), (1, 1, 0, 0), "replicate").permute(0, 3, 1, 2),
        "repeats channels by their number", "no layer reads",
    ),
    "pixel_unshuffle": (lambda a, b: F.pixel_unshuffle(a, 2), 8, "no layer reads"),
    "pixel_shuffle": (lambda a, b: F.pixel_shuffle(a, 2), 2, "no layer reads"),
    "repeat_interleave": (lambda a, b: a.repeat_interleave(2, 1), 8, "no layer reads"),
    "glu": (lambda a, b: F.glu(a, 1), 4, "no layer reads"),
    "glu in space": (lambda a, b: F.glu(a, 2), 8, "no layer reads"),
    "unfold": (lambda a, b: F.unfold(a, 2).view(len(a), 32, 5, 5), 8, "no layer reads"),
    "grid_sample": (
        lambda a, b: F.grid_sample(a, b[:, :2].permute(0, 2, 3, 1), align_corners=False), 8, "no layer reads"
    ),
    "affine_grid": (
        lambda a, b: F.grid_sample(a, F.affine_grid(b.mean((2, 3))[:, :6].view(-1, 2, 3), [len(a), 8, 6, 6], False)),
        8, "no layer reads",
    ),
}  # fmt: skip
"""How many channels of the first and of the second convolution may be cut, or why none."""


@pytest.mark.filterwarnings("ignore:Default grid_sample")
@pytest.mark.parametrize("name", APART)
def test_channels_that_do_not_meet_or_are_read_all_at_once(name: str) -> None:
    operator, first, second = APART[name]
    graph = check(operator)
    for layer, expected in (("a", first), ("b", second)):
        found = widths(graph, layer)
        assert expected in found if isinstance(expected, str) and isinstance(found, str) else found == expected, found


def test_no_rule_for_one_activation_takes_an_overload_with_two() -> None:
    """`max(a, b)` beside `max(a, dim)`: whoever adds a name to the table of reductions looks at its overloads."""
    takes_two = {"gather", "max_unpool2d", "max_unpool3d", "grid_sampler", "grid_sampler_2d", "grid_sampler_3d",
                 "cosine_similarity", "pairwise_distance", "diff", "scaled_dot_product_attention"}  # fmt: skip
    layers = ("weight", "bias", "running_mean", "mat2", "other", "tensors", "batch2", "mask")
    for key, op in registered().items():
        library, _, rest = key.partition("::")
        packet, _, one = rest.partition(".")
        target = getattr(getattr(torch.ops, library), packet, None)
        if op.labels is None or target is None:
            continue
        overloads: list[Any] = [getattr(target, o) for o in ([one] if one else target.overloads())]
        for overload in overloads:
            arguments = overload._schema.arguments
            data = [a.name for a in arguments if "Tensor" in str(a.type) and not a.is_out]
            name = overload._schema.name.removeprefix("aten::")
            if any(argument in layers for argument in data) or name in takes_two:
                continue
            assert len(data) <= 1, f"{name}.{overload._overloadname} takes {data}"


class Deformable(nn.Module):
    """A deformable convolution with offsets (and a mask) from a convolution of its own, as DCN is built."""

    def __init__(self, bias: bool, mask: bool, offset_groups: int):
        super().__init__()
        places = 9 * offset_groups
        self.stem, self.offset = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2 * places, 3, padding=1)
        self.mask = nn.Conv2d(8, places, 3, padding=1) if mask else None
        self.deformed = DeformConv2d(8, 6, 3, padding=1, bias=bias)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        mask = None if self.mask is None else self.mask(x).sigmoid()
        return self.head(self.deformed(x, self.offset(x), mask).relu())


@pytest.mark.parametrize(("bias", "mask", "offset_groups"), [(True, False, 1), (False, True, 1), (True, True, 2)])
def test_deformable_convolutions_are_convolutions(bias: bool, mask: bool, offset_groups: int) -> None:
    torch.manual_seed(0)
    model = Deformable(bias, mask, offset_groups).double().eval()
    x = torch.randn(4, 3, SIDE, SIDE, dtype=torch.float64)
    graph = cp.trace(model, x[:1])
    assert {g.name: (g.width, g.n_blocks) for g in graph.prunable} == {"stem": (8, offset_groups), "deformed": (6, 1)}
    assert "say where it looks" in str(graph.by_name["offset"].frozen)
    plan = random_plan(graph, 1, every_group=True)
    with torch.no_grad():
        assert difference(cp.apply(model, plan, graph=graph)(x), masked_reference(model, graph, plan)(x)) < 1e-12
    small = cp.apply(model, cp.oneshot(graph, x, keep_macs=0.9), graph=graph)
    assert small(x).shape == model(x).shape
