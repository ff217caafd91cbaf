"""Parameters that reach ordinary operations, and kernels that are computed before they are used."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from networks import oracle
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import clusterprune as cp
from clusterprune.errors import PlanError
from clusterprune.surgery.masking import masked_state


class Standardised(nn.Conv2d):
    """Every filter with mean zero and variance one, written by hand."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        w = w / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return functional.conv2d(x, w, self.bias, self.stride, self.padding, groups=self.groups)


class Batched(nn.Conv2d):
    """Every filter standardised by a batch norm, with a gain, as scaled networks without normalisation do it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        w = functional.batch_norm(flat, None, None, weight=(self.gain * 0.3).view(-1), training=True, momentum=0.0)
        return functional.conv2d(x, w.reshape_as(self.weight), self.bias, self.stride, self.padding, groups=self.groups)


class Normalised(nn.Conv2d):
    """Filters of length one, by hand."""

    def forward(self, x: Tensor) -> Tensor:
        w = functional.normalize(self.weight.flatten(1), dim=1).view_as(self.weight)
        return functional.conv2d(x, w, self.bias, self.stride, self.padding, groups=self.groups)


class Masked(nn.Conv2d):
    """Some weights are switched off, and inputs are scaled."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("mask", (torch.rand_like(self.weight) > 0.3).float())
        self.scale = nn.Parameter(torch.rand(1, self.weight.shape[1], 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight * self.mask * self.scale
        return functional.conv2d(x, w, self.bias * 2, self.stride, self.padding, groups=self.groups)


class Turned(nn.Conv2d):
    """Stores its kernel with another order of dimensions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.turned = nn.Parameter(self.weight.detach().permute(2, 3, 1, 0).clone())
        del self.weight

    def forward(self, x: Tensor) -> Tensor:
        w = -self.turned.permute(3, 2, 0, 1)
        return functional.conv2d(x, w, self.bias, self.stride, self.padding, groups=self.groups)


def parametrized(how: Callable[..., nn.Module], **options: Any) -> Callable[..., nn.Module]:
    return lambda *args, **kwargs: how(nn.Conv2d(*args, **kwargs), **options)


class Doubled(nn.Conv2d):
    """Twice what is stored."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight * 2, self.bias, self.stride, self.padding, groups=self.groups)


class Net(nn.Module):
    """A plain convolution, two of a kind, and two plain layers."""

    def __init__(self, kind: Callable[..., nn.Module], groups: int = 1) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3, padding=1), kind(12, 16, 3, padding=1, groups=groups)
        self.norm, self.c = nn.BatchNorm2d(16), kind(16, 12, 1)
        self.d, self.head = nn.Conv2d(12, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.b(self.a(x).relu())).relu()
        return self.head(self.d(self.c(x).relu()).relu().mean((2, 3)))


class Data(nn.Module):
    """Plain layers, and parameters that a function uses between them."""

    def __init__(self, run: Callable[..., Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.run = run
        self.a, self.b = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.d, self.head = nn.Conv2d(12, 8, 3), nn.Linear(8, 4)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.rand(shape) + 0.3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.d(self.run(self, x)).relu().mean((2, 3)))


def fusion(m: Any, x: Tensor) -> Tensor:
    w = m.w.relu() / (m.w.relu().sum() + 1e-4)
    return w[0] * m.a(x) + w[1] * m.b(m.a(x).relu())


def soft_fusion(m: Any, x: Tensor) -> Tensor:
    first, second = m.w.softmax(0).unbind()
    return m.b(first * m.a(x) + second * m.a(x).relu())


def resized_position(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b(y + functional.interpolate(m.p, size=y.shape[2:], mode="bilinear"))


def scaled_by_all(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x).relu()) * m.b.weight.mean()


def scaled_by_rows(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x).relu()) * m.b.weight.mean((1, 2, 3))[None, :, None, None]


def softmax_of_scales(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x).relu() * m.g.softmax(0).view(1, -1, 1, 1))


def gate(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x).relu() * torch.sigmoid(m.g).view(1, -1, 1, 1) + m.h[None, :, None, None].tanh())


def stacked(m: Any, x: Tensor) -> Tensor:
    w, y = torch.stack([m.g, m.h]).softmax(0), m.a(x)
    return m.b(w[0].view(-1, 1, 1) * y + w[1].view(-1, 1, 1) * y.relu())


def tokens(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).flatten(2).transpose(1, 2)
    y = torch.cat([m.t.expand(len(x), -1, -1), y], 1) + m.q
    return m.b(y[:, 1:].transpose(1, 2).unflatten(2, (8, 8)).relu())


def modulated(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    scale = torch.rsqrt(m.b.weight.square().sum((1, 2, 3)))[:, None, None]
    return functional.conv2d(y * y.mean((2, 3), keepdim=True), m.b.weight * 1.5, m.b.bias, padding=1) * scale


LAYERS = {
    "standardised": (Standardised, 1, {"d"}),
    "standardised in groups": (Standardised, 4, {"d"}),
    "standardised by a batch norm": (Batched, 1, {"d"}),
    "normalised by hand": (Normalised, 1, {"d"}),
    "masked": (Masked, 1, {"a", "b", "c", "d"}),
    "masked in groups": (Masked, 4, {"c", "d"}),
    "turned": (Turned, 1, {"a", "b.turned", "c.turned", "d"}),
    "doubled": (Doubled, 1, {"a", "b", "c", "d"}),
    "weight norm": (parametrized(parametrizations.weight_norm), 1, {"a", "b", "c", "d"}),
    "weight norm in groups": (parametrized(parametrizations.weight_norm), 4, {"a", "b", "c", "d"}),
    "weight norm of inputs": (parametrized(parametrizations.weight_norm, dim=1), 1, {"d"}),
    "weight norm of all": (parametrized(parametrizations.weight_norm, dim=None), 1, {"d"}),
    "spectral norm": (parametrized(parametrizations.spectral_norm), 1, {"d"}),
}
FUNCTIONS = {
    "fusion": (fusion, {"w": (2,)}, {"a", "d"}),
    "soft fusion": (soft_fusion, {"w": (2,)}, {"a", "b", "d"}),
    "resized position": (resized_position, {"p": (1, 12, 4, 4)}, {"a", "b", "d"}),
    "scaled by all": (scaled_by_all, {}, {"d"}),
    "scaled by rows": (scaled_by_rows, {}, {"b", "d"}),
    "softmax of scales": (softmax_of_scales, {"g": (12,)}, {"b", "d"}),
    "gate": (gate, {"g": (12,), "h": (12,)}, {"a", "b", "d"}),
    "stacked": (stacked, {"g": (12,), "h": (12,)}, {"a", "b", "d"}),
    "tokens": (tokens, {"t": (1, 1, 12), "q": (1, 65, 12)}, {"b", "d"}),
    "modulated": (modulated, {}, {"b", "d"}),
}


def check_laws(model: nn.Module, cuttable: set[str]) -> None:
    """Law 2 for every group alone and all together, in both modes, and what a cut means for the activations."""
    model = model.double().eval()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    graph = cp.trace(model, x[:1])
    assert {group.name for group in graph.prunable} == cuttable, str(graph)
    rng = np.random.default_rng(0)
    for only in [None, *cuttable]:
        merges = []
        for group in graph.prunable:
            if only in (None, group.name):
                blocks = [np.flatnonzero(group.blocks == block) for block in range(group.n_blocks)]
                kept = np.sort(np.concatenate([rng.choice(b, max(1, len(b) // 2), replace=False) for b in blocks]))
                merges.append(cp.Merge(group.name, kept))
        plan = cp.Plan.of(graph, tuple(merges))
        small = cp.apply(model, plan, graph=graph)
        masked = copy.deepcopy(model)
        own = {**dict(masked.named_parameters()), **dict(masked.named_buffers())}
        with torch.no_grad():
            for path, tensor in masked_state(graph, plan).items():
                own[path].copy_(tensor)
            torch.testing.assert_close(small(x), oracle(graph, plan, (x,))[0], rtol=1e-11, atol=1e-12)
            for training in (False, True):
                torch.testing.assert_close(small.train(training)(x), masked.train(training)(x), rtol=1e-11, atol=1e-12)
        for layer in small.modules():
            if isinstance(layer, nn.Conv2d) and hasattr(layer, "weight"):
                assert layer.weight.shape[:2] == (layer.out_channels, layer.in_channels // layer.groups)


@pytest.mark.parametrize("name", LAYERS)
def test_computed_kernels_are_cut_where_that_is_exact(name: str) -> None:
    torch.manual_seed(0)
    kind, groups, cuttable = LAYERS[name]
    check_laws(Net(kind, groups), cuttable)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_parameters_may_reach_any_operation(name: str) -> None:
    torch.manual_seed(0)
    run, shapes, cuttable = FUNCTIONS[name]
    check_laws(Data(run, **shapes), cuttable)


def test_computed_kernels_are_known_as_layers_that_only_selection_suits() -> None:
    model = Net(parametrized(parametrizations.weight_norm)).eval()
    graph = cp.trace(model, torch.zeros(1, 3, 8, 8))
    assert [(call.layer, call.computed) for call in graph.calls] == [
        ("a", False), ("b", True), ("c", True), ("d", False), ("head", False),
    ]  # fmt: skip
    stored = tuple(f"b.parametrizations.weight.original{i}" for i in (0, 1))
    assert graph.calls[1].stored == stored
    (use,) = graph.by_name["a"].consumers
    assert (use.path, use.mixable) == (stored[1], False)
    kept = np.arange(6)
    mixing = torch.eye(12, 6) + 0.1
    with pytest.raises(
        PlanError, match=r"mixes b\.parametrizations\.weight\.original1, from which a kernel is computed"
    ):
        cp.Plan.of(graph, (cp.Merge("a", kept, {use.path: mixing}),)).check(graph)
    cp.Plan.of(graph, (cp.Merge("a", kept, {use.path: torch.eye(12, 6)}),)).check(graph)


@pytest.mark.parametrize("kind", [Masked, parametrized(parametrizations.weight_norm)])
def test_a_network_of_computed_kernels_can_be_compressed(kind: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    model = Net(kind).eval()
    images = torch.randn(32, 3, 8, 8)
    graph = cp.trace(model, images[:1])
    for inputs in (images, None):
        plan = cp.oneshot(graph, inputs, keep_macs=0.5, round_to=1)
        small = cp.apply(model, plan, graph=graph)
        assert {"b", "c"} <= {merge.group for merge in plan.merges}  # whose kernels are computed
        assert small(images).shape == (32, 4)


def test_a_large_parameter_used_as_data_costs_no_label_an_element() -> None:
    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 64, 1), nn.Conv2d(64, 2, 1)
            self.position = nn.Parameter(torch.zeros(1, 64, 256, 256))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) + self.position.sigmoid())

    graph = cp.trace(Large().eval(), torch.zeros(1, 3, 256, 256))
    assert len(graph.walk.space) < 1000
    assert [use.path for use in graph.by_name["a"].carriers] == ["a.bias", "position"]
