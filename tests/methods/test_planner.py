"""A network that is measured once, and plans for many budgets."""

import pytest
import torch
from small_networks import Plain, ready
from torch import Tensor, nn

import clusterprune as cp
from clusterprune import evaluate
from clusterprune.errors import ArgumentError, BudgetError


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


def left(model: nn.Module, plan: cp.Plan, images: Tensor) -> tuple[int, int]:
    small = cp.apply(model, plan)
    return evaluate.macs(small, images[:1]), evaluate.params(small)


def test_all_of_several_budgets_hold_and_one_is_used_up(plain) -> None:
    model, graph, images = plain
    macs, params = evaluate.macs(model, images[:1]), evaluate.params(model)
    planner = cp.measure(graph, images, config=cp.OneShot(refit=None))
    alone = {"keep_macs": 0.6, "keep_params": 0.5}
    shares = {}
    for name, keep in alone.items():
        counted = left(model, planner.plan(**{name: keep}), images)
        shares[name] = counted[0] / macs, counted[1] / params
    assert shares["keep_macs"][1] > 0.5 or shares["keep_params"][0] > 0.6  # neither is enough by itself
    for budget in (
        {**alone},
        {"keep_macs": "60%", "max_params": params / 2},
        {"max_macs": 0.6 * macs, "keep_params": 0.5},
    ):
        plan = planner.plan(**budget)
        found = left(model, plan, images)
        assert found[0] <= 0.606 * macs
        assert found[1] <= 0.505 * params
        assert found[0] > 0.5 * macs or found[1] > 0.42 * params
        assert plan.notes.keys() >= budget.keys()
    assert planner.plan(max_macs=2 * macs).merges == ()
    with pytest.raises(BudgetError, match=r"max_params=1: keep_params=.* is below what can be reached"):
        cp.oneshot(graph, images, max_params=1)


def test_a_time_in_milliseconds_is_met_beside_a_share(plain) -> None:
    model, graph, images = plain
    params = evaluate.params(model)
    planner = cp.measure(graph, images, config=cp.OneShot(refit=None))

    def clock(network: nn.Module) -> float:
        return evaluate.macs(network, images[:1]) / 1e4

    plan = planner.plan(max_latency_ms=0.7 * clock(model), keep_params=0.5, latency=clock)
    small = cp.apply(model, plan)
    assert clock(small) <= 0.7 * clock(model)
    assert evaluate.params(small) <= 0.505 * params


def test_a_sweep_says_what_each_budget_leads_to(plain) -> None:
    model, graph, images = plain
    half = evaluate.params(model) / 2
    planner = cp.measure(graph, images)
    phases: list[str] = []
    rows = planner.sweep(
        [0.75, "50%", {"max_params": half}], evaluate.params, progress=lambda phase, *_: phases.append(phase)
    )
    assert [dict(row.budget) for row in rows] == [{"keep_macs": 0.75}, {"keep_macs": "50%"}, {"max_params": half}]
    for row in rows:
        assert (row.macs, row.params) == left(model, row.plan, images)
        assert row.score == row.params
        assert row.plan.replaced  # fitted, for a short while
    assert rows[0].macs > rows[1].macs
    assert (rows[0].predicted_loss or 0) < (rows[1].predicted_loss or 0)
    assert rows[2].params <= 1.01 * half
    assert phases.count("budgets") == 3
    assert "<table" in rows._repr_html_()
    (bare,) = planner.sweep([0.5], round_to=2)
    assert bare.score is None
    assert not bare.plan.replaced
    assert all(width % 2 == 0 for width in bare.plan.widths.values())
    (full,) = planner.sweep([0.5], fit="full")
    assert full.plan == planner.plan(keep_macs=0.5)
    with pytest.raises(ArgumentError, match="fit must be"):
        planner.sweep([0.5], fit="best")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="budgets must be shares"):
        planner.sweep([None])  # type: ignore[list-item]
    with pytest.raises(BudgetError, match="below what can be reached"):
        planner.sweep([0.5, 1e-4])
