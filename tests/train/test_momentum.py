from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

import clusterprune as cp
from clusterprune import train
from clusterprune.errors import ArgumentError, PlanError
from clusterprune.plan import Merge, Plan

Fit = Callable[..., train.TrainResult]


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(3 * 64, 5),
    )


def plan_for(graph: cp.ChannelGraph, kept: dict[str, list[int]]) -> Plan:
    return Plan.of(graph, tuple(Merge(name, np.array(channels)) for name, channels in kept.items()))


def test_momentum_follows_the_channels() -> None:
    model = chain().eval()
    graph = cp.trace(model, torch.zeros(1, 1, 8, 8))
    plan = plan_for(graph, {"0": [0, 2], "3": [1]})
    momentum = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    carried = train.carry_momentum(momentum, graph, plan)
    small = cp.apply(model, plan, graph=graph)
    assert {n: t.shape for n, t in carried.items()} == {n: p.shape for n, p in small.named_parameters()}
    assert torch.equal(carried["0.weight"], momentum["0.weight"][[0, 2]])
    assert torch.equal(carried["1.weight"], momentum["1.weight"][[0, 2]])
    assert torch.equal(carried["3.weight"], momentum["3.weight"][[1]][:, [0, 2]])
    assert torch.equal(carried["3.bias"], momentum["3.bias"][[1]])
    # Channel 1 fills the second 64 of the 192 inputs.
    assert torch.equal(carried["6.weight"], momentum["6.weight"][:, 64:128])
    assert torch.equal(carried["6.bias"], momentum["6.bias"])


def test_two_runs_joined_by_their_momentum_are_one(fit: Fit, worker: ModuleType) -> None:
    # Every epoch sees all images in one batch, so that the order of the epochs' draws does not matter.
    settings = {"schedule": "constant", "warmup_epochs": 0, "augment": "none", "batch_size": 330, "lr": 0.01}
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    halves, forgetful = (nn.Sequential(nn.Flatten(), nn.Linear(64, 5)) for _ in range(2))
    halves.load_state_dict(whole.state_dict())
    forgetful.load_state_dict(whole.state_dict())
    expected = fit(whole, epochs=8, **settings)
    first = fit(halves, epochs=4, **settings)
    assert first.momentum.keys() == {"1.weight", "1.bias"}
    last = fit(halves, epochs=4, momentum=first.momentum, **settings)
    torch.testing.assert_close(halves.state_dict(), whole.state_dict(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(last.momentum, expected.momentum, rtol=1e-4, atol=1e-6)
    fit(forgetful, epochs=4, **settings)
    fit(forgetful, epochs=4, **settings)
    assert not torch.allclose(forgetful[1].weight, whole[1].weight, rtol=1e-3)


def test_training_goes_on_after_a_cut(fit: Fit) -> None:
    model = chain()
    first = fit(model, epochs=2)
    graph = cp.trace(model, torch.zeros(1, 1, 8, 8))
    plan = plan_for(graph, {"0": [1, 3]})
    small = cp.apply(model, plan, graph=graph)
    result = fit(small, epochs=2, momentum=train.carry_momentum(first.momentum, graph, plan))
    assert result.momentum["0.weight"].shape == (2, 1, 3, 3)
    assert result.history[-1]["loss"] < first.history[0]["loss"]


def test_what_does_not_fit_is_named(fit: Fit) -> None:
    model = chain()
    graph = cp.trace(model, torch.zeros(1, 1, 8, 8))
    plan = plan_for(graph, {"0": [1, 3]})
    with pytest.raises(ArgumentError, match="momentum is given for 'nine'"):
        train.carry_momentum({"nine": torch.zeros(1)}, graph, plan)
    with pytest.raises(PlanError):
        train.carry_momentum({}, graph, plan_for(graph, {"absent": [0]}))
    small = cp.apply(model, plan, graph=graph)
    with pytest.raises(ArgumentError, match=r"'0.weight' has shape \(4, 1, 3, 3\), but .* \(2, 1, 3, 3\); .*carry"):
        fit(small, momentum={"0.weight": torch.zeros(4, 1, 3, 3)})
    still = train.TrainConfig(momentum=0, nesterov=False, epochs=1, device="cpu")
    with pytest.raises(ArgumentError, match="momentum=0"):
        fit(model, momentum={"0.weight": torch.zeros(4, 1, 3, 3)}, config=still)
