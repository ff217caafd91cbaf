import itertools

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import clusterprune as cp
from clusterprune import evaluate, models
from clusterprune.budget.allocation import CostModel, Limits, check_fraction, example_batch, reachable, solve
from clusterprune.errors import ArgumentError, BudgetError
from clusterprune.graph import ChannelGraph


class Many(nn.Module):
    """One layer of every kind whose cost depends on widths."""

    def __init__(self, a: int, b: int, c: int, groups: int):
        super().__init__()
        self.stem = nn.Conv2d(3, a, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(a)
        self.depthwise = nn.Conv2d(a, a, 3, padding=1, groups=a)
        self.point = nn.Conv2d(a, groups * b, 1)
        self.grouped = nn.Conv2d(groups * b, groups * c, 3, padding=1, groups=groups, stride=2)
        self.group_norm = nn.GroupNorm(groups, groups * c)
        self.up = nn.ConvTranspose2d(groups * c, b, 2, stride=2)
        self.slope = nn.PReLU(b)
        self.twice = nn.Conv2d(b, b, 1)
        self.scale = nn.Parameter(torch.ones(b, 1, 1))
        self.line = nn.Linear(b * 16, c)
        self.head = nn.Linear(c, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(self.depthwise(torch.relu(self.norm(self.stem(x)))))
        x = self.slope(self.up(self.group_norm(self.grouped(torch.relu(x)))))
        x = torch.relu(self.twice(torch.relu(self.twice(x)))) * self.scale
        x = nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)
        return self.head(torch.relu(self.line(x)))


def check_counts(graph: ChannelGraph, model: nn.Module, cost: CostModel, widths: np.ndarray | None = None) -> None:
    assert round(cost.total("macs", widths)) == evaluate.macs(model, graph.args)
    assert round(cost.total("params", widths)) == evaluate.params(model)


def cut(graph: ChannelGraph, kept: dict[str, int]) -> nn.Module:
    """Keep the first channels of every block."""
    merges = []
    for name, k in kept.items():
        group = graph.by_name[name]
        each = k // group.n_blocks
        parts = [np.flatnonzero(group.blocks == block)[:each] for block in range(group.n_blocks)]
        merges.append(cp.Merge(name, np.sort(np.concatenate(parts))))
    return cp.apply(graph.model, cp.Plan.of(graph, tuple(merges)), graph=graph)


def quadratic_losses(graph: ChannelGraph) -> dict[str, np.ndarray]:
    return {g.name: np.linspace(0, 1, g.width) ** 2 * (i + 1) for i, g in enumerate(graph.prunable)}


@settings(max_examples=examples(8), deadline=None)
@given(
    a=st.integers(2, 12),
    b=st.integers(2, 9),
    c=st.integers(2, 9),
    groups=st.sampled_from([1, 2, 3]),
    batch=st.sampled_from([1, 2]),
    data=st.data(),
)
def test_costs_are_what_the_counters_count_before_and_after_a_cut(a, b, c, groups, batch, data):
    model = Many(a, b, c, groups).eval()
    graph = cp.trace(model, torch.zeros(batch, 3, 8, 8))
    cost = CostModel(graph)
    check_counts(graph, model, cost)
    widths = cost.widths.copy()
    kept = {}
    for i, group in enumerate(graph.groups):
        if group.frozen is None:
            choices = Limits().choices(group.width, group.n_blocks)
            kept[group.name] = data.draw(st.sampled_from(choices), label=group.name)
            widths[i] = kept[group.name]
    check_counts(graph, cut(graph, kept), cost, widths)


@pytest.mark.parametrize("name", ["resnet20", "vgg16"])
def test_costs_of_real_networks(name: str):
    spec = models.resolve(name)
    model = models.build(name)
    graph = cp.trace(model, spec.example())
    cost = CostModel(graph)
    check_counts(graph, model, cost)
    kept = {g.name: Limits().choices(g.width, g.n_blocks)[g.width // 3] for g in graph.prunable if g.width > 3}
    widths = np.array([kept.get(g.name, g.width) for g in graph.groups], dtype=float)
    check_counts(graph, cut(graph, kept), cost, widths)


def test_gradients_are_the_cost_of_one_more_channel():
    graph = cp.trace(Many(8, 6, 4, 2), torch.zeros(1, 3, 8, 8))
    cost = CostModel(graph)
    for quantity in ("macs", "params"):
        gradient = cost.gradient(quantity, cost.widths)
        for i in range(len(cost.widths)):
            step = np.zeros_like(cost.widths)
            step[i] = 1e-4
            rise = cost.total(quantity, cost.widths + step) - cost.total(quantity, cost.widths - step)
            assert gradient[i] == pytest.approx(rise / 2e-4, rel=1e-5)


@pytest.mark.parametrize("quantity", ["macs", "params"])
@pytest.mark.parametrize("keep", [0.9, 0.5, 0.2])
def test_targets_are_never_exceeded_on_the_cut_model(quantity, keep: float):
    graph = cp.trace(models.build("resnet20"), torch.zeros(1, 3, 32, 32))
    cost = CostModel(graph)
    kept = solve(cost, quadratic_losses(graph), quantity, keep)
    small = cut(graph, kept)
    count = evaluate.macs(small, graph.args) if quantity == "macs" else evaluate.params(small)
    # One channel of a residual stream is worth about three percent of the network.
    assert keep - 0.03 <= count / cost.total(quantity) <= keep


@pytest.mark.parametrize("quantity", ["macs", "params"])
def test_targets_are_met_closely_where_steps_are_fine(quantity):
    graph = cp.trace(models.build("vgg16"), torch.zeros(1, 3, 32, 32))
    cost = CostModel(graph)
    for keep in (0.95, 0.7, 0.4, 0.15):
        kept = solve(cost, quadratic_losses(graph), quantity, keep)
        widths = np.array([kept.get(g.name, g.width) for g in graph.groups], dtype=float)
        assert keep - 0.01 <= cost.total(quantity, widths) / cost.total(quantity) <= keep


@settings(max_examples=examples(30), deadline=None)
@given(keep=st.floats(0.2, 1.0), round_to=st.sampled_from([1, 2, 3, 4, 8]), min_width=st.integers(1, 20))
def test_widths_keep_to_the_limits(keep: float, round_to: int, min_width: int):
    graph, cost = _small()
    limits = Limits(round_to, min_width)
    losses = quadratic_losses(graph)
    if keep < reachable(cost, "macs", limits) * (1 - 1e-9):
        with pytest.raises(BudgetError):
            solve(cost, losses, "macs", keep, limits)
        return
    kept = solve(cost, losses, "macs", keep, limits)
    assert kept.keys() == losses.keys()
    widths = cost.widths.copy()
    for i, group in enumerate(graph.groups):
        k = kept.get(group.name, group.width)
        widths[i] = k
        assert k == group.width or (k % round_to == 0 and k >= min(min_width, group.width))
        assert k % group.n_blocks == 0
    assert cost.total("macs", widths) <= keep * cost.total("macs") * (1 + 1e-9)


_CACHE: list[tuple[ChannelGraph, CostModel]] = []


def _small() -> tuple[ChannelGraph, CostModel]:
    if not _CACHE:
        graph = cp.trace(Many(24, 10, 8, 2), torch.zeros(1, 3, 8, 8))
        _CACHE.append((graph, CostModel(graph)))
    return _CACHE[0]


def test_all_of_the_budget_changes_nothing():
    graph, cost = _small()
    kept = solve(cost, quadratic_losses(graph), "macs", 1.0)
    assert kept == {group.name: group.width for group in graph.prunable}


def test_what_costs_least_goes_first():
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 1))
    graph = cp.trace(model, torch.zeros(1, 3, 4, 4))
    losses = {"0": np.arange(16.0) * 100, "1": np.zeros(16), "2": np.arange(16.0) * 100}
    kept = solve(CostModel(graph), losses, "macs", 0.7)
    assert kept["0"] == kept["2"] == 16
    assert kept["1"] < 16


@pytest.mark.parametrize("seed", range(4))
def test_close_to_the_best_of_all_choices(seed: int):
    rng = np.random.default_rng(seed)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 7, 1), nn.Conv2d(7, 5, 1), nn.Conv2d(5, 4, 1))
    graph = cp.trace(model, torch.zeros(1, 3, 4, 4))
    cost = CostModel(graph)
    losses = {g.name: np.cumsum(np.r_[0, np.sort(rng.random(g.width - 1))]) for g in graph.prunable}
    kept = solve(cost, losses, "macs", 0.5)

    def loss_of(widths: tuple[int, ...]) -> float:
        return sum(losses[g.name][g.width - k] for g, k in zip(graph.prunable, widths, strict=True))

    best = np.inf
    for widths in itertools.product(*(range(1, g.width + 1) for g in graph.prunable)):
        if cost.total("macs", np.array([*widths, 4.0])) <= 0.5 * cost.total("macs"):
            best = min(best, loss_of(widths))
    found = loss_of(tuple(kept[g.name] for g in graph.prunable))
    assert best <= found <= 1.5 * best


@pytest.mark.parametrize("limits", [Limits(), Limits(round_to=4), Limits(min_width=5)])
@pytest.mark.parametrize("quantity", ["macs", "params"])
def test_the_stated_minimum_can_be_asked_for(limits: Limits, quantity):
    graph, cost = _small()
    with pytest.raises(BudgetError, match=f"keep_{quantity}=1e-06 is below what can be reached") as caught:
        solve(cost, quadratic_losses(graph), quantity, 1e-6, limits)
    stated = float(str(caught.value).partition(f"Ask for keep_{quantity}>=")[2].partition(",")[0])
    least = reachable(cost, quantity, limits)
    assert least <= stated <= least + 2e-4
    kept = solve(cost, quadratic_losses(graph), quantity, stated, limits)
    assert all(k == limits.choices(graph.by_name[n].width, graph.by_name[n].n_blocks)[-1] for n, k in kept.items())


def test_nothing_to_cut_with_a_budget():
    graph, cost = _small()
    with pytest.raises(BudgetError, match=r"Ask for keep_macs>=1[,.]"):
        solve(cost, {}, "macs", 0.5)
    assert solve(cost, {}, "macs", 1.0) == {}
    assert graph.groups


@pytest.mark.parametrize("value", [0, -0.5, 1.0001, 50, float("nan"), float("inf")])
def test_budgets_that_are_no_fractions(value: float):
    with pytest.raises(ArgumentError, match="keep_macs must be a fraction"):
        check_fraction("keep_macs", value)


@pytest.mark.parametrize("value", [0, -1, 1.5, "8"])
def test_limits_that_are_no_widths(value):
    with pytest.raises(ArgumentError, match='round_to must be a whole number of at least 1 or "auto"'):
        Limits(round_to=value)
    with pytest.raises(ArgumentError, match="min_width must be a whole number"):
        Limits(min_width=value)


def test_choices():
    assert Limits().choices(4, 1) == [4, 3, 2, 1]
    assert Limits(round_to=4).choices(10, 1) == [10, 8, 4]
    assert Limits(min_width=8).choices(6, 1) == [6]
    assert Limits(round_to=4).choices(12, 6) == [12]
    assert Limits(min_width=3).choices(12, 2) == [12, 10, 8, 6, 4]


def test_what_runs_fast_is_coarse_where_a_group_is_wide_and_fine_where_it_is_narrow():
    auto = Limits("auto")
    assert auto.choices(64, 1) == [64, 56, 48, 40, 32, 24, 16, 8, 4, 2, 1]
    assert auto.choices(90, 1)[:3] == [90, 88, 80]
    assert auto.choices(16, 1) == [16, 12, 8, 4, 2, 1]
    assert auto.choices(8, 1) == [8, 6, 4, 2, 1]
    assert auto.choices(3, 1) == [3, 2, 1]
    # Depthwise layers leave their fast path where a width is no multiple of four.
    assert auto.choices(40, 1, carried=True) == [40, 32, 24, 16, 8, 4]
    assert auto.choices(16, 1, carried=True) == [16, 12, 8, 4]
    assert auto.choices(12, 1, carried=True) == [12, 8, 4]
    assert auto.choices(4, 1, carried=True) == [4]
    # Heads of 64 channels are as wide as they should be already; blocks keep equally many.
    assert auto.choices(8, 1, tied=64) == [8, 7, 6, 5, 4, 3, 2, 1]
    assert auto.choices(96, 3) == [96, 72, 48, 24, 12, 6, 3]
    assert Limits("auto", min_width=8).choices(64, 1)[-1] == 8


@pytest.mark.parametrize(
    ("name", "keep", "most"), [("resnet20", 0.5, 6), ("resnet20", 0.75, 2), ("vgg16", 0.5, 2), ("vgg16", 0.3, 2)]
)
def test_widths_that_run_fast_meet_a_budget_with_few_exceptions_where_groups_are_wide(
    name: str, keep: float, most: int
):
    graph = cp.trace(models.build(name), torch.zeros(1, 3, 32, 32))
    cost, limits = CostModel(graph), Limits("auto")
    kept = solve(cost, quadratic_losses(graph), "macs", keep, limits)
    left = cost.total("macs", cost.with_widths(kept)) / cost.total("macs")
    assert 0.99 * keep <= left <= keep * (1 + 1e-9)
    finer = [n for n, k in kept.items() if k not in limits.choices_of(graph, graph.by_name[n])]
    assert len(finer) <= most
    plan = cp.Plan.of(graph, tuple(cp.Merge(n, range(k)) for n, k in kept.items() if k < graph.by_name[n].width))
    told = limits.facts(graph, plan.widths)["widths"]
    assert told.startswith("multiples of 8 in " if name == "vgg16" else "multiples of ")
    assert Limits(1).facts(graph, plan.widths) == {}
    summary = str(cp.Plan.of(graph, plan.merges, **limits.facts(graph, plan.widths)).summary(graph))
    assert f"Widths: {told}" in summary


def test_batch_of_the_example():
    assert example_batch(cp.trace(nn.Conv2d(3, 4, 1), torch.zeros(3, 3, 4, 4))) == 3
