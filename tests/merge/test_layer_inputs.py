"""Linear layers behind large flattened maps: their moments by channel are those of all inputs, averaged."""

import numpy as np
import pytest
import torch
from torch import nn

import clusterprune as cp
from clusterprune.graph.program import named_tensors
from clusterprune.merge import layer_inputs
from clusterprune.merge.layer_inputs import channel_moments_of, consumers, folds, layer_input
from clusterprune.merge.least_squares import mixing_matrix
from clusterprune.merge.statistics import input_moments


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 20), nn.ReLU(), nn.Linear(20, 4)
    )


def measured(images: torch.Tensor):
    model = network()
    graph = cp.trace(model, images[:1])
    state = {path: tensor.detach() for path, tensor in named_tensors(graph).items()}
    (call,) = [c.node for c in graph.calls if c.weight == "3.weight"]
    moments = input_moments(
        graph, state, images, {call: False}, folded=folds(graph), rows=100_000, batch_size=50,
        generator=torch.Generator().manual_seed(0),
    )[call]  # fmt: skip
    (consumer,) = consumers(graph, graph.by_name["0"], {call: False})
    return state["3.weight"], moments, consumer


def test_folded_moments_give_the_same_mixing(monkeypatch: pytest.MonkeyPatch):
    images = torch.randn(300, 3, 8, 8)
    kept = np.array([0, 2, 3, 6])
    _, moments, consumer = measured(images)
    assert not consumer.folded
    assert len(moments) == 8 * 36 + 1
    wanted = mixing_matrix(*channel_moments_of(consumer, moments), kept, offset=True)
    monkeypatch.setattr(layer_inputs, "_FOLD", 200)
    weight, moments, consumer = measured(images)
    assert consumer.folded
    assert len(moments) == 8 + 1
    found = mixing_matrix(*channel_moments_of(consumer, moments), kept, offset=True)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    # What the costs depend on, B Bᵀ, is that of the whole kernel.
    importance = torch.rand(20, dtype=torch.float64)
    factor = layer_input(consumer, weight, moments, importance).weight
    by_channel = (weight.double() * importance.sqrt()[:, None]).view(20, 8, 36).permute(1, 0, 2).flatten(1)
    torch.testing.assert_close(factor @ factor.T, by_channel @ by_channel.T, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("keep", [0.3, 0.7])
def test_one_shot_of_a_folded_network(monkeypatch: pytest.MonkeyPatch, keep: float):
    """Pricing, mixing and refit agree about what is folded, and the result is as good as without."""
    model, images = network(), torch.randn(256, 3, 8, 8)
    fresh = torch.randn(500, 3, 8, 8)
    errors = []
    for limit in (4096, 200):
        monkeypatch.setattr(layer_inputs, "_FOLD", limit)
        graph = cp.trace(model, images[:1])
        plan = cp.oneshot(graph, images, keep_macs=keep, config=cp.OneShot(compare=False))
        small = cp.apply(model, plan, graph=graph)
        with torch.no_grad():
            errors.append(float((small(fresh) - model(fresh)).square().mean() / model(fresh).var(0).mean()))
    assert errors[1] < 1.5 * errors[0] + 0.01
    assert errors[1] < 1
