"""Distances between rows: hand-computed values, zero vectors, extreme and bad input."""

import math

import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import pairwise_distances as reference

from clusterprune.errors import ArgumentError
from clusterprune.similarity import METRICS, Metric, pairwise_distances

COSINES: tuple[Metric, ...] = ("cosine", "abs_cosine")


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("cosine", 1 - 24 / 25),
        ("abs_cosine", 1 - 24 / 25),
        ("euclidean", math.sqrt(2)),
        ("manhattan", 2.0),
        ("chebyshev", 1.0),
    ],
)
def test_hand_computed_distance(metric: Metric, expected: float) -> None:
    distances = pairwise_distances(torch.tensor([[3.0, 4.0], [4.0, 3.0]]), metric)
    assert distances[0, 1].item() == pytest.approx(expected, rel=1e-14)


def test_opposite_vectors_are_far_by_cosine_and_together_by_abs_cosine() -> None:
    rows = torch.tensor([[1.0, 2.0], [-2.0, -4.0]])
    assert pairwise_distances(rows, "cosine")[0, 1].item() == pytest.approx(2.0, rel=1e-14)
    assert pairwise_distances(rows, "abs_cosine")[0, 1].item() == 0.0


@pytest.mark.parametrize("metric", COSINES)
def test_zero_vectors_are_together_and_at_distance_one_from_the_rest(metric: Metric) -> None:
    rows = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-0.0, 0.0], [0.0, -5.0]])
    distances = pairwise_distances(rows, metric)
    assert distances[0, 2].item() == 0.0
    assert distances[0, 1].item() == 1.0
    assert distances[3, 2].item() == 1.0
    assert torch.isfinite(distances).all()


@pytest.mark.parametrize("metric", COSINES)
@pytest.mark.parametrize("length", [3, 4608, 50_176])
def test_proportional_vectors_are_at_distance_zero(metric: Metric, length: int) -> None:
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(length, dtype=torch.float64, generator=generator)
    factors = torch.rand(8, 1, dtype=torch.float64, generator=generator) + 0.1
    assert pairwise_distances(factors * row, metric).max().item() == 0.0


@pytest.mark.parametrize("metric", COSINES)
@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e200, 1e307])
def test_cosine_does_not_overflow_or_underflow(metric: Metric, scale: float) -> None:
    rows = torch.tensor([[3.0, 4.0], [4.0, 3.0]], dtype=torch.float64)
    distances = pairwise_distances(rows * scale, metric)
    torch.testing.assert_close(distances, pairwise_distances(rows, metric), rtol=1e-9, atol=0)


def test_euclidean_keeps_the_digits_of_small_distances() -> None:
    rows = torch.full((2, 100), 1000.0, dtype=torch.float64)
    rows[1, 0] += 1e-9
    expected = (rows[1, 0] - rows[0, 0]).item()
    assert pairwise_distances(rows, "euclidean")[0, 1].item() == expected


@settings(deadline=None, max_examples=examples(30))
@given(
    metric=st.sampled_from(["cosine", "euclidean", "manhattan", "chebyshev"]),
    count=st.integers(1, 12),
    length=st.integers(1, 9),
    seed=st.integers(0, 2**31),
)
def test_agrees_with_scikit_learn(metric: Metric, count: int, length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, length, dtype=torch.float64, generator=generator)
    expected = torch.from_numpy(reference(rows.numpy(), metric=metric))
    torch.testing.assert_close(pairwise_distances(rows, metric), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64])
def test_any_dtype_gives_float64(metric: Metric, dtype: torch.dtype) -> None:
    distances = pairwise_distances(torch.tensor([[1, 0], [0, 1], [2, 0]]).to(dtype), metric)
    assert distances.dtype == torch.float64
    assert distances.shape == (3, 3)


@pytest.mark.parametrize("metric", METRICS)
def test_one_row_gives_a_single_zero(metric: Metric) -> None:
    assert pairwise_distances(torch.tensor([[1.0, 2.0]]), metric).tolist() == [[0.0]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("metric", METRICS)
def test_not_finite_is_refused(metric: Metric, bad: float) -> None:
    with pytest.raises(ArgumentError, match="NaN or Inf in 1 of 4 values"):
        pairwise_distances(torch.tensor([[1.0, bad], [0.0, 1.0]]), metric)


def test_distances_that_overflow_are_refused() -> None:
    rows = torch.tensor([[1e308], [-1e308]], dtype=torch.float64)
    with pytest.raises(ArgumentError, match=r"magnitude is 1e\+308 .* rescale"):
        pairwise_distances(rows, "manhattan")


def test_unknown_metric_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"cosine, abs_cosine, euclidean.*metric='dot'"):
        pairwise_distances(torch.ones(2, 2), "dot")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2)])
def test_rows_must_be_a_matrix(shape: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match="channels, coordinates"):
        pairwise_distances(torch.ones(shape))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match="at least one channel"):
        pairwise_distances(torch.ones(shape))
