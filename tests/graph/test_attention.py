"""Attention: heads go as a whole, through every way in which people write it."""

from collections.abc import Callable

import pytest
import torch
from networks import difference, masked_reference, random_plan
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (its usual name)

import clusterprune as cp

DIM, HEADS, WIDTH = 12, 4, 5


class Attention(nn.Module):
    """Queries, keys and values packed in one layer or not; `mix` says how they are combined."""

    def __init__(self, mix: Callable[["Attention", Tensor], Tensor], *, packed: bool = True):
        super().__init__()
        self.mix, inner = mix, HEADS * WIDTH
        self.qkv = nn.Linear(DIM, 3 * inner) if packed else None
        self.q, self.k, self.v = (None if packed else nn.Linear(DIM, inner) for _ in range(3))
        self.table = nn.Parameter(torch.randn(7, HEADS))
        self.register_buffer("index", torch.arange(81).view(9, 9) % 7)
        self.register_buffer("offsets", torch.randn(7, 2))
        self.biases = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, HEADS, bias=False))
        self.out = nn.Linear(inner, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.mix(self, x))


def heads_of(x: Tensor) -> Tensor:
    n, length, _ = x.shape
    return x.view(n, length, HEADS, -1).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def by_unbind(layer: Attention, x: Tensor) -> Tensor:
    n, length, _ = x.shape
    q, k, v = layer.qkv(x).reshape(n, length, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4).unbind(0)
    return joined((q @ k.transpose(-2, -1) * WIDTH**-0.5).softmax(-1) @ v)


def by_chunks(layer: Attention, x: Tensor) -> Tensor:
    q, k, v = (heads_of(part) for part in layer.qkv(x).chunk(3, -1))
    return joined(F.scaled_dot_product_attention(q, k, v))


def by_select(layer: Attention, x: Tensor) -> Tensor:
    n, length, _ = x.shape
    qkv = layer.qkv(x).view(n, length, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
    return joined(F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], scale=0.3))


def by_split(layer: Attention, x: Tensor) -> Tensor:
    """Every head has its own queries, keys and values side by side (LeViT)."""
    n, length, _ = x.shape
    q, k, v = layer.qkv(x).view(n, length, HEADS, -1).split([WIDTH, WIDTH, WIDTH], dim=3)
    q, k, v = (part.permute(0, 2, 1, 3) for part in (q, k, v))
    return joined((q @ k.transpose(-2, -1)).softmax(-1) @ v)


def by_batches(layer: Attention, x: Tensor) -> Tensor:
    """Heads and images in one dimension, with `bmm` and `baddbmm`."""
    n, length, _ = x.shape
    q, k, v = (heads_of(part).reshape(n * HEADS, length, WIDTH) for part in layer.qkv(x).chunk(3, -1))
    scores = torch.baddbmm(torch.zeros(1, 1, 1, dtype=x.dtype), q, k.transpose(1, 2))
    y = torch.bmm(scores.softmax(-1), v)
    return joined(y.view(n, HEADS, length, WIDTH))


def by_einsum(layer: Attention, x: Tensor) -> Tensor:
    q, k, v = (part.unflatten(-1, (HEADS, WIDTH)) for part in layer.qkv(x).chunk(3, -1))
    scores = torch.einsum("nqhd,nkhd->nhqk", q, k).softmax(-1)
    return torch.einsum("nhqk,nkhd->nqhd", scores, v).flatten(2)


def with_bias(layer: Attention, x: Tensor) -> Tensor:
    """A learned bias per head, picked from a table (Swin)."""
    q, k, v = (heads_of(part) for part in layer.qkv(x).chunk(3, -1))
    bias = layer.table[layer.index.view(-1)].view(9, 9, -1).permute(2, 0, 1).unsqueeze(0)
    return joined((q @ k.transpose(-2, -1) + bias).softmax(-1) @ v)


def with_made_bias(layer: Attention, x: Tensor) -> Tensor:
    """A bias per head that layers make from a table of offsets, and keys without one (Swin, second version)."""
    assert layer.qkv is not None
    length = layer.qkv.bias.numel() // 3
    shift = layer.qkv.bias.clone()
    shift[length : 2 * length].zero_()
    q, k, v = (heads_of(part) for part in F.linear(x, layer.qkv.weight, shift).chunk(3, -1))
    bias = layer.biases(layer.offsets)[layer.index.view(-1)].view(9, 9, -1).permute(2, 0, 1)
    return joined((q @ k.transpose(-2, -1) + bias.sigmoid()).softmax(-1) @ v)


def with_mask(layer: Attention, x: Tensor) -> Tensor:
    q, k, v = (heads_of(part) for part in layer.qkv(x).chunk(3, -1))
    mask = torch.ones(9, 9, dtype=torch.bool).tril()
    return joined(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def linear(layer: Attention, x: Tensor) -> Tensor:
    """Keys with values first, queries afterwards; softmax over the dimensions of a head."""
    q, k, v = (heads_of(part) for part in layer.qkv(x).chunk(3, -1))
    return joined(q.softmax(-1) @ (k.softmax(-2).transpose(-2, -1) @ v))


def apart(layer: Attention, x: Tensor) -> Tensor:
    return joined(F.scaled_dot_product_attention(heads_of(layer.q(x)), heads_of(layer.k(x)), heads_of(layer.v(x))))


FORMS = [
    by_unbind,
    by_chunks,
    by_select,
    by_split,
    by_batches,
    by_einsum,
    with_bias,
    with_made_bias,
    with_mask,
    linear,
    apart,
]


class Net(nn.Module):
    def __init__(self, attention: nn.Module):
        super().__init__()
        self.stem, self.attention, self.head = nn.Conv2d(3, DIM, 1), attention, nn.Linear(DIM, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(x + self.attention(x))


def network(attention: nn.Module) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = Net(attention).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model, torch.randn(2, 3, 3, 3, dtype=torch.float64)


def check(model: nn.Module, x: Tensor) -> cp.ChannelGraph:
    graph = cp.trace(model, x[:1])
    for seed in range(2):
        plan = random_plan(graph, seed, every_group=True)
        small = cp.apply(model, plan, graph=graph)
        reference = masked_reference(model, graph, plan)
        with torch.no_grad():
            assert difference(small(x), reference(x)) < 1e-12
            assert difference(small.train()(x), reference.train()(x)) < 1e-12
    return graph


@pytest.mark.parametrize("mix", FORMS, ids=lambda mix: mix.__name__)
def test_heads_are_units(mix: Callable[[Attention, Tensor], Tensor]) -> None:
    graph = check(*network(Attention(mix, packed=mix is not apart)))
    first = "attention.q" if mix is apart else "attention.qkv"
    (group,) = [g for g in graph.prunable if g.name == first]
    assert group.width == HEADS
    made = {use.path: use.positions.shape for use in group.producers}
    expected = {f"attention.{name}.weight": (HEADS, WIDTH) for name in "qkv"}
    made.pop("attention.biases.2.weight", None)
    assert made == (expected if mix is apart else {"attention.qkv.weight": (HEADS, 3 * WIDTH)})
    assert [use.path for use in group.consumers] == ["attention.out.weight"]
    tied = {with_bias: {"attention.table"}, with_made_bias: {"attention.biases.2.weight"}}.get(mix, set())
    assert tied <= {use.path for use in group.uses}
    hidden = graph.by_name.get("attention.biases.0")
    assert mix is not with_made_bias or (hidden is not None and hidden.width == 8 and hidden.frozen is None)
    assert graph.by_name["stem"].frozen is None


def test_with_one_head_the_values_lose_dimensions_and_queries_stay() -> None:
    class OneHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(DIM, DIM) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.out((self.q(x) @ self.k(x).transpose(-2, -1)).softmax(-1) @ self.v(x))

    graph = check(*network(OneHead()))
    assert graph.by_name["attention.v"].frozen is None
    assert graph.by_name["attention.v"].width == DIM
    for name in ("attention.q", "attention.k"):
        assert graph.by_name[name].frozen == "matmul: it adds up products over these channels"


@pytest.mark.parametrize("need_weights", [False, True])
def test_the_module_of_pytorch_loses_heads(need_weights: bool) -> None:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(DIM, HEADS, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x, x, x, need_weights=need_weights)[0]

    graph = check(*network(Module()))
    (group,) = [g for g in graph.prunable if "inner" in g.name]
    assert group.width == HEADS
