"""Second moments: products by blocks and in portions equal the plain product."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import clusterprune as cp
from clusterprune.graph.program import named_tensors
from clusterprune.merge.statistics import RowBuffer, _unshift, output_importance, second_moment, with_constant


@pytest.mark.parametrize("size", [1, 255, 256, 257, 700, 2000])
def test_the_product_by_blocks_is_the_whole_product(size: int) -> None:
    rows = torch.randn(30, size, dtype=torch.float64)
    assert torch.allclose(second_moment(rows, None), rows.T @ rows, atol=1e-12)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 20))
def test_a_buffer_hands_over_every_row_once_and_in_order(lengths: list[int], least: int) -> None:
    handed = []
    buffer = RowBuffer(lambda a, b: handed.append((a, b)), rows=least)
    whole = torch.arange(sum(lengths))
    for part in whole.split(lengths):
        buffer.add(part, part * 2)
    buffer.flush()
    buffer.flush()
    assert all(len(a) >= least for a, _ in handed[:-1])
    assert torch.equal(torch.cat([a for a, _ in handed]), whole)
    assert torch.equal(torch.cat([b for _, b in handed]), whole * 2)


def test_moments_around_a_guess_become_moments_around_zero() -> None:
    rows, guess = torch.randn(50, 7, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    around = with_constant(rows, guess)
    plain = with_constant(rows, torch.zeros_like(guess))
    expected = plain.T @ plain
    assert torch.allclose(_unshift(around.T @ around, guess), expected)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_importance_is_the_fisher_information_of_the_prediction(temperature: float) -> None:
    """For a linear layer that makes the logits it is known: E[p (1 - p)]."""
    torch.manual_seed(0)
    model = nn.Linear(5, 4)
    graph = cp.trace(model, torch.zeros(1, 5))
    x = torch.randn(20000, 5)
    (call,) = graph.calls
    found = output_importance(
        graph, named_tensors(graph), x, [call.node], batch_size=1000, generator=torch.Generator().manual_seed(1),
        temperature=temperature,
    )  # fmt: skip
    p = (model(x) / temperature).softmax(1).detach()
    torch.testing.assert_close(found[call.node], (p * (1 - p)).mean(0).double(), rtol=0.03, atol=0)
