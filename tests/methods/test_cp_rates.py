"""CP's rates over the epochs and clusters over the layers, by hand-computed cases."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clusterprune.errors import ArgumentError
from clusterprune.methods.cp_rates import (
    SCHEDULES,
    Adaptive,
    Constant,
    Silhouette,
    adaptive_share,
    exponential,
    linear,
    pruning_rate,
    real_rate,
    replaced_count,
    usual_goal,
    usual_real_rate,
)


def test_linear_rate() -> None:
    assert [linear(0.5, t, 4) for t in range(5)] == [0.0, 0.125, 0.25, 0.375, 0.5]


def test_exponential_rate() -> None:
    # k2 = ln 2 per epoch over 3 epochs: k1 = 0.7 / (8 - 1) = 0.1, so that P = 0.1 * (2^t - 1).
    assert [exponential(0.7, t, 3, math.log(2)) for t in range(4)] == pytest.approx([0.0, 0.1, 0.3, 0.7])
    # k2 = -ln 2: k1 = 0.7 / (1/8 - 1) = -0.8, so that P = 0.8 * (1 - 2^-t).
    assert [exponential(0.7, t, 3, -math.log(2)) for t in range(4)] == pytest.approx([0.0, 0.4, 0.6, 0.7])


@given(
    schedule=st.sampled_from(SCHEDULES),
    goal=st.floats(0.01, 0.99),
    epochs=st.integers(1, 400),
    curvature=st.floats(0.01, 100),
)
def test_every_schedule_rises_to_exactly_its_goal(schedule: str, goal: float, epochs: int, curvature: float) -> None:
    rates = [pruning_rate(schedule, goal, epoch, epochs, curvature) for epoch in range(epochs + 1)]
    assert rates[0] == 0
    assert rates[-1] == goal
    assert rates == sorted(rates)


def test_fast_slow_is_above_linear_and_slow_fast_below() -> None:
    fast, slow, line = (pruning_rate(schedule, 0.6, 10, 40, 5.0) for schedule in ("fast-slow", "slow-fast", "linear"))
    assert fast > line > slow
    # A fast start is a slow end turned round.
    assert fast + pruning_rate("slow-fast", 0.6, 30, 40, 5.0) == pytest.approx(0.6)


def test_number_of_replaced_filters() -> None:
    assert [replaced_count(10, rate) for rate in (0.0, 0.09, 0.1, 0.75, 0.999)] == [0, 0, 1, 7, 9]
    # 0.29 * 100 is 28.999999999999996 in floating point.
    assert replaced_count(100, 0.29) == 29


def test_real_rate() -> None:
    # (0.75 * 16 - 4) + (0.5 * 32 - 2) = 8 + 14 of 48 filters.
    assert real_rate([0.75, 0.5], [4, 2], [16, 32]) == pytest.approx(22 / 48)


def test_adaptive_share_is_an_arctangent_that_ends_at_its_maximum() -> None:
    shares = [adaptive_share(layer, 3, 0.75, 0.5) for layer in (1, 2, 3)]
    # arctan 1 = pi/4, arctan 2 = 1.10715, arctan 3 = 1.24905.
    assert shares == pytest.approx([0.25 * 0.785398 / 1.249046, 0.25 * 1.107149 / 1.249046, 0.25], rel=1e-5)


def test_adaptive_counts() -> None:
    adaptive = Adaptive(real_rate=0.5)
    widths = [16, 32, 64]
    counts = [adaptive.of(torch.zeros(n, 3), layer, 3, 0.75) for layer, n in enumerate(widths, 1)]
    # Shares 0.1572, 0.2216 and 0.25 of 16, 32 and 64.
    assert counts == [2, 7, 16]
    assert real_rate([0.75] * 3, counts, widths) >= 0.5
    assert adaptive.of(torch.zeros(3, 3), 1, 9, 0.75) == 1


@given(goal=st.floats(0.01, 0.99))
def test_a_goal_is_enough(goal: float) -> None:
    """0.5 comes with a real rate of 1/3, 0.75 with 0.5, 0.9 with 0.8."""
    assert [usual_real_rate(g) for g in (0.5, 0.75, 0.9)] == pytest.approx([1 / 3, 0.5, 0.8])
    real = usual_real_rate(goal)
    assert 0 < real < goal
    assert usual_goal(real) == pytest.approx(goal)
    Adaptive().check(goal)
    assert Adaptive().of(torch.zeros(64, 1), 2, 3, goal) == Adaptive(real).of(torch.zeros(64, 1), 2, 3, goal)


def test_constant_counts() -> None:
    filters = torch.zeros(12, 3)
    assert Constant(number=5).of(filters, 1, 3, 0.5) == 5
    assert Constant(number=50).of(filters, 1, 3, 0.5) == 12
    assert Constant(share=0.25).of(filters, 1, 3, 0.5) == 3
    assert Constant(share=0.01).of(filters, 1, 3, 0.5) == 1


def test_silhouette_finds_the_number_of_heaps() -> None:
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    filters = centres.repeat(4, 1) + 0.1 * torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    every = Silhouette(shares=tuple(n / 12 for n in range(2, 12)))
    assert every.of(filters, 1, 1, 0.5) == 3
    assert every.of(torch.ones(12, 2), 1, 1, 0.5) == 1
    assert every.of(torch.tensor([[0.0], [1.0]]), 1, 1, 0.5) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Adaptive(1.0), r"real_rate must be .*real_rate=1\.0"),
        (lambda: Adaptive(0.5).check(0.5), r"real_rate=0\.5 must be below goal=0\.5.*Raise goal"),
        (Constant, "exactly one of number and share"),
        (lambda: Constant(3, 0.5), "exactly one of number and share"),
        (lambda: Constant(number=0), "number must be at least 1"),
        (lambda: Constant(share=1.5), "share must be above 0"),
        (lambda: Silhouette(()), "shares must be"),
        (lambda: Silhouette((0.5, 1.0)), "shares must be"),
    ],
)
def test_what_makes_no_sense_is_refused(make: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()
