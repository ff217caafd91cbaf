"""Whether the user's code still fits after a cut: what a check on the model's own numbers cannot see."""

import random
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from examples import first
from networks import difference, masked_reference
from torch import Tensor, nn
from torch.nn import functional

import clusterprune as cp
from clusterprune import tasks, train
from clusterprune.errors import ModelError, UntrainableWarning
from clusterprune.graph import ChannelGraph
from clusterprune.graph.throwaway import duplicate
from clusterprune.surgery import history


def cut(
    model: nn.Module, kept: dict[str, list[int]], side: int = 16, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, ChannelGraph, cp.Plan]:
    """Cut a model to the given channels; return it with its graph and its plan."""
    graph = cp.trace(model, torch.zeros(1, 3, side, side, dtype=dtype))
    plan = cp.Plan.of(graph, tuple(cp.Merge(name, np.array(channels)) for name, channels in kept.items()))
    return cp.apply(model, plan, graph=graph), graph, plan


def noise(count: int, side: int = 16) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(count))


class Halves(nn.Module):
    """Eight of sixteen channels are scaled by a number written in the code; `end` says what becomes of the result."""

    def __init__(self, end: Callable[[Tensor, Tensor], object], scale: float = 1.0):
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.b, self.gamma = nn.Conv2d(16, 6, 3, padding=1), nn.Parameter(torch.full((6, 1, 1), scale))
        self.box = nn.Conv2d(16, 6, 1)
        self.end = end

    def forward(self, x: Tensor) -> object:
        x = torch.relu(self.stem(x))
        y = torch.relu(self.a(x))
        y = torch.cat([y[:, :8], -2 * y[:, 8:]], 1)
        return self.end(self.gamma * self.b(y), self.box(x))


ENDS = {
    "pixels beside probabilities": lambda y, box: torch.cat([640 * box.relu(), y.sigmoid()], 1),
    "a masked score": lambda y, box: torch.cat([box.masked_fill(box < 0, -torch.inf), y.sigmoid()], 1),
    "the least number there is": lambda y, box: torch.cat([box.masked_fill(box < 0, torch.finfo(box.dtype).min), y], 1),
    "not a number": lambda y, box: torch.cat([(box - 100).sqrt(), y], 1),
    "rows of boxes": lambda y, box: torch.cat([box * 640, y], 1).flatten(2).transpose(1, 2),
    "two outputs": lambda y, box: {"box": box * 1e4, "score": y.softmax(1)},
    "classes alone": lambda y, box: (y + box).argmax(1),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("scale", first(1, [1e-6, 1.0, 0.0]))
def test_a_wrong_half_is_seen_whatever_stands_beside_it(end: str, scale: float) -> None:
    torch.manual_seed(0)
    model = Halves(ENDS[end], scale).eval()
    small, graph, plan = cut(model, {"a": [0, 1, *range(8, 16)]})
    opened = masked_reference(model, graph, plan)
    for network in (small, opened):
        dict(network.named_parameters())["gamma"].data.fill_(1.0)  # as training would
    for side in (16, 24):
        with torch.no_grad():
            expected = opened(noise(3, side))
            actual = small(noise(3, side))
        for a, e in zip(*map(torch.utils._pytree.tree_leaves, (actual, expected)), strict=True):
            assert torch.equal(a.isfinite(), e.isfinite())
            if a.is_floating_point():
                a, e = (t.masked_fill(~e.isfinite() | (e.abs() > 1e30), 0) for t in (a, e))
                assert (a - e).abs().max() <= 1e-5 * max(1.0, float(e.abs().max()))
            else:
                assert torch.equal(a, e)


class Block(nn.Module):
    """A residual block that any check finds right."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.inner, self.out = nn.Conv2d(16, 12, 3, padding=1), nn.Conv2d(12, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.head((x + self.out(torch.relu(self.inner(x)))).mean((2, 3)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_right_cut_keeps_the_class_in_every_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Block().to(dtype).eval()
    small, _, _ = cut(model, {"stem": [0, 3, 5, 9], "inner": [1, 2]}, dtype=dtype)
    assert type(small) is Block
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert small(noise(2).to(dtype)).dtype is dtype


class Coarse(Block):
    """Part of it runs in half precision, whatever the rest is in."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = self.out(torch.relu(self.inner(x)))
        return self.head((x + y.to(torch.bfloat16).to(x.dtype)).mean((2, 3)))


class Single(Block):
    """It mixes in a matrix of float32 that it makes itself, so that it does not run in float64."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = torch.relu(self.inner(x)).mean(1, keepdim=True)
        y = torch.matmul(y, torch.eye(y.shape[-1], dtype=torch.float32))
        return self.head((x + y).mean((2, 3)))


@pytest.mark.parametrize("kind", [Coarse, Single])
def test_rounding_of_the_models_own_is_no_difference(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    small, graph, plan = cut(model, {"stem": [0, 3, 5, 9]})
    assert type(small) is kind
    with torch.no_grad():
        assert difference(small(noise(2)), masked_reference(model, graph, plan)(noise(2))) < 1e-2


class Padded(nn.Module):
    """A shortcut that pads channels by fixed numbers, so that a cut of it is rebuilt; `end` says what follows."""

    def __init__(self, end: Callable[["Padded", Tensor, Tensor], Tensor]):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.c, self.end = nn.Conv2d(32, 4, 1), end

    def forward(self, x: Tensor) -> Tensor:
        y = functional.pad(torch.relu(self.a(x)), (0, 0, 0, 0, 8, 8))
        return self.end(self, x, y + torch.relu(self.b(y)))


def resized(net: Padded, x: Tensor, y: Tensor) -> Tensor:
    return functional.interpolate(net.c(functional.avg_pool2d(y, 2)), size=x.shape[2:])


def tokens(net: Padded, x: Tensor, y: Tensor) -> Tensor:
    batch, channels, height, width = y.shape
    y = y.reshape(batch, channels, height * width).transpose(1, 2).reshape(batch, height, width, channels)
    return net.c(y.permute(0, 3, 1, 2))


def fixed(net: Padded, x: Tensor, y: Tensor) -> Tensor:
    return net.c(y).reshape(len(x), 4 * 16 * 16)


def positions(net: Padded, x: Tensor, y: Tensor) -> Tensor:
    return net.c(y + torch.arange(y.shape[-1], dtype=y.dtype) / y.shape[-1])


@pytest.mark.parametrize("end", [resized, tokens, fixed, positions])
def test_a_rebuilt_model_does_what_the_original_does_at_other_sizes_and_batches_or_refuses(end) -> None:
    torch.manual_seed(0)
    model = Padded(end).eval()
    small, graph, plan = cut(model, {"a": list(range(0, 16, 2)), "b": list(range(0, 16, 2))})
    assert isinstance(small, torch.fx.GraphModule)
    masked = masked_reference(model, graph, plan)
    followed = 0
    for count, side in ((1, 16), (5, 16), (2, 32), (3, 20), (1, 8)):
        x = noise(count, side)
        try:
            expected = masked(x)
        except RuntimeError:
            with pytest.raises(Exception, match="size"):
                small(x)
            continue
        followed += 1
        assert difference(small(x), expected) < 1e-5
    assert followed == (2 if end is fixed else 5)


class Mixing(nn.Module):
    def __init__(self, mix: nn.Module):
        super().__init__()
        self.mix, self.drop = mix, nn.Dropout(0.1)

    def forward(self, y: Tensor) -> Tensor:
        return self.drop(torch.relu(self.mix(y)))


class Shared(Padded):
    """One layer, known by several names, is called through the later ones (CoaT)."""

    def __init__(self) -> None:
        super().__init__(lambda net, _x, y: net.c(net.blocks[1](net.blocks[0](y))))
        self.mix = nn.Conv2d(32, 32, 3, padding=1)
        self.blocks = nn.ModuleList([Mixing(self.mix), Mixing(self.mix)])


def test_a_rebuilt_model_calls_shared_layers_by_their_first_names(tmp_path) -> None:
    torch.manual_seed(0)
    model = Shared().eval()
    small, graph, plan = cut(model, {"a": list(range(0, 16, 2)), "b": list(range(0, 16, 2))})
    assert isinstance(small, torch.fx.GraphModule)
    assert {name for name, _ in small.named_parameters()} == {name for name, _ in model.named_parameters()}
    expected = masked_reference(model, graph, plan)(noise(2))
    assert difference(small(noise(2)), expected) < 1e-5
    cp.save(small, tmp_path / "small")
    assert difference(cp.load(tmp_path / "small", Shared)(noise(2)), expected) < 1e-5


class Chaotic(nn.Module):
    """A layer is applied a hundred times; with weights of usual size one rounding becomes another output."""

    def __init__(self, fixed: bool):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 1)
        self.again = nn.Conv2d(16, 16, 1, bias=False)
        nn.init.dirac_(self.again.weight)
        self.again.weight.data *= 0.01
        self.fixed = fixed

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        if self.fixed:
            y = torch.cat([y[:, :8], -y[:, 8:]], 1)
        y = chain = self.b(y)
        for _ in range(100):
            chain = torch.cos(9 * self.again(chain))
        return self.c(y + chain)


@pytest.mark.parametrize("fixed", [False, True])
def test_a_network_that_is_chaotic_with_random_weights_is_asked_with_its_own(fixed: bool) -> None:
    torch.manual_seed(0)
    model = Chaotic(fixed).eval()
    small, graph, plan = cut(model, {"a": [0, 2, 4, 6, 8, 9, 10]})
    assert isinstance(small, Chaotic) != fixed
    assert difference(small(noise(2)), masked_reference(model, graph, plan)(noise(2))) < 1e-5


def dropout(net: Padded, x: Tensor, y: Tensor) -> Tensor:
    return net.c(functional.dropout(y, 0.5, net.training))


def branch(net: Padded, x: Tensor, y: Tensor) -> Tensor:
    return net.c(y) * 2 if net.training else net.c(y)


def depth(net: Padded, x: Tensor, y: Tensor) -> Tensor:
    y = net.c(y)
    return y * torch.rand(len(x), 1, 1, 1).add(0.8).floor() if net.training else y


def hidden(net: Padded, x: Tensor, y: Tensor) -> Tensor:
    """What is dropped is zero, but for inputs that the check does not draw."""
    del x
    y = net.c(y)
    return y + functional.dropout(functional.relu(y - 1e3), 0.5, net.training)


@pytest.mark.parametrize("end", [branch, dropout, depth, hidden])
def test_a_rebuilt_model_trains_as_the_original_does_or_refuses_by_name(end) -> None:
    torch.manual_seed(0)
    model = Padded(end).eval()
    graph = cp.trace(model, torch.zeros(1, 3, 16, 16))
    plan = cp.Plan.of(graph, tuple(cp.Merge(name, np.arange(0, 16, 2)) for name in "ab"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        small = cp.apply(model, plan, graph=graph)
    if not any(w.category is UntrainableWarning for w in said):
        assert end is not hidden
        masked = masked_reference(model, graph, plan).train()
        torch.manual_seed(1)
        expected = masked(noise(256))
        torch.manual_seed(1)
        actual = small.train()(noise(256))
        close = 1e-5 if end is branch else 0.2
        assert difference(actual.square().mean(0), expected.square().mean(0)) < close
        return
    assert history.why_untrainable(small) is not None
    with pytest.raises(ModelError, match="evaluation"):
        small.train()


def test_what_training_does_is_also_seen_where_a_single_image_cannot_be_trained_on() -> None:
    def end(net: Padded, x: Tensor, y: Tensor) -> Tensor:
        y = net.c(y).view(len(x), 4, 16 * 16)  # tied to the traced size, so that no other one can be trained on
        y = functional.batch_norm(y.mean(2), None, None, training=True) if net.training else y.mean(2)
        return 2 * y if net.training else y

    torch.manual_seed(0)
    model = Padded(end).eval()
    graph = cp.trace(model, torch.zeros(1, 3, 16, 16))
    plan = cp.Plan.of(graph, (cp.Merge("a", np.arange(0, 16, 2)), cp.Merge("b", np.arange(0, 16, 2))))
    with pytest.warns(UntrainableWarning):
        small = cp.apply(model, plan, graph=graph)
    with pytest.raises(ModelError, match="evaluation"):
        small.train()


class Auxiliary(nn.Module):
    """Its second head cannot be exported, and so is not known to a trace."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)
        self.head, self.second = nn.Linear(16, 10), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.a(x).relu()
        y = self.head(self.b(x).relu().mean((2, 3)))
        if not self.training:
            return y
        features = x.mean((2, 3))
        return y, self.second(features if float(features.sum()) > 1e9 else features + 0)


def test_a_head_that_could_not_be_cut_is_named_and_training_is_refused() -> None:
    torch.manual_seed(0)
    model = Auxiliary().eval()
    graph = cp.trace(model, torch.zeros(1, 3, 12, 12))
    plan = cp.Plan.of(graph, (cp.Merge("a", np.arange(8)),))
    with pytest.warns(UntrainableWarning, match="second"):
        small = cp.apply(model, plan, graph=graph)
    images = (torch.zeros(8, 3, 12, 12, dtype=torch.uint8), torch.zeros(8, dtype=torch.long))
    task = tasks.Classification(images, mean=[0.5] * 3, std=[0.5] * 3)
    with pytest.raises(ModelError, match="second"):
        train.fit(small, task, train.TrainConfig(epochs=1))


class Remembering(Block):
    """It keeps what it computed last, with gradients; and things that no copy can be made of."""

    def __init__(self):
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.last = y
        self.seen.append(y)
        return y


def test_a_model_that_keeps_activations_with_gradients_can_be_cut() -> None:
    model = Remembering().eval()
    model(noise(2)).sum().backward()
    small, _, _ = cut(model, {"inner": [0, 5]})
    assert type(small) is Remembering
    assert small.inner.out_channels == 2


def test_the_check_leaves_every_random_generator_alone() -> None:
    model = Block().eval()
    graph = cp.trace(model, torch.zeros(1, 3, 16, 16))
    plan = cp.Plan.of(graph, (cp.Merge("inner", np.arange(3)),))
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    cp.apply(model, plan, graph=graph)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()


def test_tensors_put_into_a_copy_are_the_given_ones_and_stay_shared() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    other = torch.ones(3, 2)
    copied = duplicate(model, {"a.weight": other})
    assert copied["a"].weight is copied["b"].weight
    assert copied["a"].weight.data_ptr() == other.data_ptr()
    assert model["a"].weight.shape == (2, 2)
