"""A network that is measured once, and plans for many budgets."""

import pytest
import torch
from small_networks import Plain, ready
from torch import Tensor, nn

import clusterprune as cp


@pytest.fixture(scope="module")
def plain() -> tuple[nn.Module, cp.ChannelGraph, Tensor]:
    torch.manual_seed(0)
    return ready(Plain())


@pytest.mark.parametrize("data_free", [False, True])
def test_a_plan_of_what_was_measured_once_is_that_of_one_shot(plain, data_free: bool) -> None:
    _, graph, images = plain
    given = None if data_free else images
    phases: list[str] = []
    planner = cp.measure(graph, given, seed=3, progress=lambda phase, *_: phases.append(phase))
    assert "sensitivity" in phases
    phases.clear()
    budgets = [{"keep_macs": 0.5}, {"keep_params": 0.6, "round_to": 2}, {"keep_macs": 0.75}, {"keep_macs": 0.5}]
    for budget in budgets:
        made = planner.plan(**budget, progress=lambda phase, *_: phases.append(phase))
        alone = cp.oneshot(graph, given, seed=3, **budget)
        assert made == alone
        assert made.notes.keys() == alone.notes.keys()
        assert made.notes | {"seconds": 0} == alone.notes | {"seconds": 0}
    assert set(phases) == {"plans compared", "refit"}
