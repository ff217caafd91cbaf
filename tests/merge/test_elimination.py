import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clusterprune.errors import ArgumentError
from clusterprune.merge.elimination import LayerInput, RemovalOrder, eliminate
from clusterprune.merge.elimination import refitted as snapshots


def random_input(channels: int, taps: int, outputs: int, seed: int = 0) -> tuple[LayerInput, Tensor]:
    """Return a read with the rows that its moments come from."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(400, channels * taps, generator=generator, dtype=torch.float64)
    rows = rows @ torch.randn(channels * taps, channels * taps, generator=generator, dtype=torch.float64)
    weight = torch.randn(channels * taps, outputs, generator=generator, dtype=torch.float64)
    return LayerInput(rows.T @ rows / len(rows), weight, taps), rows


def refitted(read: LayerInput, alive: list[int], damping: float) -> tuple[Tensor, float]:
    """Solve the damped regression of what is read on the living channels by brute force; return it and its error."""
    size = len(read.moments)
    damped = read.moments + damping * read.moments.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    inside = torch.tensor([c * read.taps + t for c in alive for t in range(read.taps)])
    weight = torch.zeros_like(read.weight)
    weight[inside] = torch.linalg.solve(damped[inside][:, inside], damped[inside] @ read.weight)
    error = weight - read.weight
    return weight, float((error * (damped @ error)).sum())


def alive_after(path: RemovalOrder, removals: int, channels: int) -> list[int]:
    return [c for c in range(channels) if c not in set(path.order[:removals].tolist())]


@pytest.mark.parametrize(("taps", "outputs"), [(1, 5), (1, 40), (9, 4), (9, 70)])
def test_losses_equal_the_errors_of_brute_force_regressions(taps: int, outputs: int):
    read, _ = random_input(6, taps, outputs)
    path = eliminate([read], damping=1e-3)
    for removals in range(6):
        _, error = refitted(read, alive_after(path, removals, 6), 1e-3)
        assert path.loss[removals] == pytest.approx(error, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("taps", [1, 9])
def test_the_cheapest_channel_goes_first(taps: int):
    read, _ = random_input(5, taps, 7, seed=3)
    path = eliminate([read], damping=1e-4)
    alive = list(range(5))
    for gone in path.order:
        errors = {c: refitted(read, [a for a in alive if a != c], 1e-4)[1] for c in alive}
        assert min(errors, key=errors.__getitem__) == gone
        alive.remove(int(gone))


@pytest.mark.parametrize("taps", [1, 4])
def test_a_linear_combination_goes_first_at_almost_no_cost(taps: int):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(500, 8, taps, generator=generator, dtype=torch.float64)
    rows[:, 5] = 0.5 * rows[:, 1] - 2.0 * rows[:, 3]
    rows = rows.flatten(1)
    # Only the combination is cheap, whatever the weights: all others are independent.
    weight = torch.randn(8 * taps, 6, generator=generator, dtype=torch.float64)
    weight.view(8, taps, 6)[[1, 3]] *= 10
    path = eliminate([LayerInput(rows.T @ rows / 500, weight, taps)], damping=1e-9)
    assert path.order[0] == 5
    assert path.loss[1] < 1e-6 * path.loss[-1]
    assert path.loss[2] > 1e-3 * path.loss[-1]


@settings(max_examples=examples(25), deadline=None)
@given(
    channels=st.integers(2, 12),
    taps=st.sampled_from([1, 3, 9]),
    outputs=st.integers(1, 30),
    rank=st.integers(1, 30),
    seed=st.integers(0, 1000),
)
def test_losses_never_fall_and_every_channel_goes_once(channels: int, taps: int, outputs: int, rank: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    size = channels * taps
    rows = torch.randn(50, min(rank, size), generator=generator) @ torch.randn(
        min(rank, size), size, generator=generator
    )
    weight = torch.randn(size, outputs, generator=generator)
    path = eliminate([LayerInput((rows.T @ rows).double(), weight.double(), taps)], keep=1)
    assert len(set(path.order.tolist())) == len(path.order) == channels - 1
    assert path.loss[0] == 0
    assert np.isfinite(path.loss).all()
    assert (np.diff(path.loss) >= 0).all()


def test_wide_groups_lose_several_at_once_and_still_end_right():
    read, _ = random_input(150, 1, 8)
    path = eliminate([read], keep=3)
    assert len(set(path.order.tolist())) == 147
    weight, error = refitted(read, alive_after(path, 147, 150), 1e-3)
    assert path.loss[-1] == pytest.approx(error, rel=1e-5)
    assert (weight != 0).any(1).sum() == 3
    expected, _ = refitted(read, alive_after(path, 70, 150), 1e-3)
    torch.testing.assert_close(snapshots([read], path.order, [70])[70][0], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("taps", [1, 9])
def test_snapshots_equal_brute_force_regressions(taps: int):
    first, _ = random_input(6, taps, 5, seed=1)
    second, _ = random_input(6, 1, 80, seed=2)
    path = eliminate([first, second])
    found = snapshots([first, second], path.order, [2, 4])
    assert sorted(found) == [2, 4]
    for removals, weights in found.items():
        for read, weight in zip((first, second), weights, strict=True):
            expected, _ = refitted(read, alive_after(path, removals, 6), 1e-3)
            torch.testing.assert_close(weight, expected, rtol=1e-7, atol=1e-9)


def test_the_losses_of_several_inputs_add_up():
    inputs = [random_input(6, taps, 5, seed=taps)[0] for taps in (1, 4)]
    path = eliminate(inputs)
    for removals in range(6):
        errors = [refitted(read, alive_after(path, removals, 6), 1e-3)[1] for read in inputs]
        assert path.loss[removals] == pytest.approx(sum(errors), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("per_block", [4, 120])
def test_blocks_lose_equally_at_every_step(per_block: int):
    read, _ = random_input(3 * per_block, 1, 4)
    blocks = np.arange(3 * per_block) % 3
    path = eliminate([read], blocks=blocks, keep=1)
    assert len(path.order) == 3 * (per_block - 1)
    for removals in range(0, len(path.order) + 1, 3):
        gone = np.bincount(blocks[path.order[:removals]], minlength=3)
        assert (gone == removals // 3).all()


def test_dead_inputs_cost_nothing():
    read, rows = random_input(4, 1, 3)
    rows[:, 2] = 0
    path = eliminate([LayerInput(rows.T @ rows, read.weight, 1)])
    assert path.order[0] == 2
    assert path.loss[1] <= 1e-2 * path.loss[2]


def test_all_inputs_dead():
    path = eliminate([LayerInput(torch.zeros(4, 4), torch.ones(4, 2), 1)])
    assert len(path.order) == 3
    assert np.isfinite(path.loss).all()


def test_moments_with_nan_are_refused():
    with pytest.raises(ArgumentError, match="NaN or infinity"):
        eliminate([LayerInput(torch.full((4, 4), torch.nan), torch.ones(4, 2), 1)])
