import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clusterprune.errors import ArgumentError
from clusterprune.graph import ParameterSlice
from clusterprune.merge.least_squares import Ridge, dual_ridge_regression, mixing_matrix, positive_factor


def use_of(channels: int, multiplicity: int = 1, groups: int = 1) -> ParameterSlice:
    positions = np.arange(channels * multiplicity).reshape(channels, multiplicity)
    return ParameterSlice("layer.weight", 1, positions, "column", groups)


def moments_of(rows: Tensor) -> Tensor:
    """Second moments of rows with a constant appended."""
    rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
    return rows.T @ rows / len(rows)


def random_rows(channels: int, seed: int = 0, shift: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(600, channels, generator=generator, dtype=torch.float64) + shift


@settings(max_examples=examples(30), deadline=None)
@given(seed=st.integers(0, 1000), k=st.integers(1, 6), extra=st.integers(1, 5), with_offset=st.booleans())
def test_linear_combinations_are_recovered_exactly(seed: int, k: int, extra: int, with_offset: bool):
    generator = torch.Generator().manual_seed(seed)
    base = random_rows(k, seed)
    coefficients = torch.randn(extra, k, generator=generator, dtype=torch.float64)
    constants = torch.randn(extra, generator=generator, dtype=torch.float64) * with_offset
    order = torch.randperm(k + extra, generator=generator)
    rows = torch.cat([base, base @ coefficients.T + constants], 1)[:, order]
    kept = np.flatnonzero(order.numpy() < k)
    truth = torch.cat([torch.eye(k, dtype=torch.float64), coefficients])[order][:, order[kept]]
    mixing, offset = mixing_matrix(moments_of(rows), use_of(k + extra), kept, offset=with_offset, ridge=1e-12)
    torch.testing.assert_close(mixing, truth.float(), rtol=1e-4, atol=1e-4)
    expected = torch.cat([torch.zeros(k, dtype=torch.float64), constants])[order]
    torch.testing.assert_close(offset, expected.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rows[:, kept] @ mixing.double().T + offset.double(), rows, rtol=1e-3, atol=1e-3)


def test_kept_channels_stand_for_themselves_exactly():
    kept = np.array([0, 3, 4])
    mixing, offset = mixing_matrix(moments_of(random_rows(6)), use_of(6), kept, offset=True, ridge=0.5)
    assert torch.equal(mixing[kept], torch.eye(3))
    assert torch.equal(offset[kept], torch.zeros(3))


def test_no_offset_means_none():
    _, offset = mixing_matrix(moments_of(random_rows(5)), use_of(5), np.array([1, 2]), offset=False)
    assert torch.equal(offset, torch.zeros(5))


def test_convolution_groups_are_never_mixed():
    rows = random_rows(8)
    rows[:, 1] = 3 * rows[:, 4]  # a twin in the other group must not be used
    kept = np.array([0, 2, 4, 5])
    mixing, _ = mixing_matrix(moments_of(rows), use_of(8, groups=2), kept, offset=True)
    assert torch.equal(mixing[:4, 2:], torch.zeros(4, 2))
    assert torch.equal(mixing[4:, :2], torch.zeros(4, 2))
    alone, _ = mixing_matrix(moments_of(rows[:, :4]), use_of(4), kept[:2], offset=True)
    torch.testing.assert_close(mixing[:4, :2], alone)


def test_a_group_that_keeps_nothing_gets_only_its_mean():
    rows = random_rows(4, shift=2.0)
    mixing, offset = mixing_matrix(moments_of(rows), use_of(4, groups=2), np.array([0, 1]), offset=True)
    assert torch.equal(mixing[2:], torch.zeros(2, 2))
    torch.testing.assert_close(offset[2:], rows.mean(0)[2:].float())


def test_channels_that_fill_several_inputs_are_averaged_over_them():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(300, 3, 4, generator=generator, dtype=torch.float64)
    maps[:, 2] = maps[:, 0] - 0.5 * maps[:, 1] + 2
    mixing, offset = mixing_matrix(
        moments_of(maps.flatten(1)), use_of(3, multiplicity=4), np.array([0, 1]), offset=True, ridge=1e-12
    )
    torch.testing.assert_close(mixing[2], torch.tensor([1.0, -0.5]), atol=2e-3, rtol=0)
    assert float(offset[2]) == pytest.approx(2, abs=1e-2)


def test_a_dead_kept_channel_gives_finite_numbers():
    rows = random_rows(4, shift=0)
    rows[:, 0] = 0
    for kept in ([0], [0, 1]):
        mixing, offset = mixing_matrix(moments_of(rows), use_of(4), np.array(kept), offset=True)
        assert torch.isfinite(mixing).all()
        assert torch.isfinite(offset).all()


def test_positive_factor_repairs_rounding():
    gram = torch.diag(torch.tensor([1.0, 1.0, -1e-9], dtype=torch.float64))
    factor = positive_factor(gram, torch.full((3,), 1e-12, dtype=torch.float64))
    torch.testing.assert_close(factor @ factor.T, gram, atol=1e-4, rtol=0)


def test_positive_factor_refuses_nan():
    with pytest.raises(ArgumentError, match="NaN or infinity"):
        positive_factor(torch.full((2, 2), torch.nan), torch.ones(2))


def test_ridge_regression_minimises_its_objective():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    x[:, -1] = 1
    target = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    prior = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    gram = x.T @ x
    penalty = 0.1 * gram.diagonal()[:-1].mean()

    def objective(weight: Tensor) -> Tensor:
        return (x @ weight - target).square().sum() + penalty * (weight - prior)[:-1].square().sum()

    solution = Ridge(gram, prior, 0.1, constant=True).solve(x.T @ target).requires_grad_()
    (gradient,) = torch.autograd.grad(objective(solution), solution)
    assert float(gradient.abs().max()) < 1e-6
    assert objective(solution) < objective(prior)


def test_a_strong_ridge_returns_the_prior():
    gram = torch.eye(4, dtype=torch.float64)
    prior = torch.arange(8, dtype=torch.float64).view(4, 2)
    solution = Ridge(gram, prior, 1e9, constant=False).solve(torch.zeros(4, 2, dtype=torch.float64))
    torch.testing.assert_close(solution, prior, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("count", [5, 12, 40])
def test_the_dual_solves_the_same_problem(count: int, constant: bool):
    torch.manual_seed(count)
    x, t = torch.randn(count, 12).double() + 3, torch.randn(count, 4).double() - 1
    prior = torch.randn(12, 4).double()
    guess = x.mean(0)
    rows = torch.cat([x - guess, torch.ones(count, 1).double()], 1) if constant else x
    whole = torch.cat([prior, torch.zeros(1, 4).double()]) if constant else prior
    expected = Ridge(rows.T @ rows, whole, 0.01, constant=constant).solve(rows.T @ t)
    found, level = dual_ridge_regression(x, t, prior, 0.01, constant=constant)
    torch.testing.assert_close(found, expected[:12], rtol=1e-6, atol=1e-6)
    wanted = expected[12] - guess @ expected[:12] if constant else torch.zeros(4).double()
    torch.testing.assert_close(level, wanted, rtol=1e-6, atol=1e-6)
