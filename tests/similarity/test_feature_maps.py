"""ACP Eq. 1 by hand, and the streamed mean."""

import math

import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterprune.errors import ArgumentError
from clusterprune.similarity import FeatureMaps, MeanMaps


def test_equation_1_by_hand() -> None:
    # Two samples, three channels, maps of 1 x 2. The means are (1, 0), (1, 1) and (-2, 0).
    first = torch.tensor([[[2.0, 0.0]], [[0.0, 3.0]], [[-4.0, 1.0]]])
    second = torch.tensor([[[0.0, 0.0]], [[2.0, -1.0]], [[0.0, -1.0]]])
    maps = torch.stack([first, second])

    assert FeatureMaps().vectors(maps).tolist() == [[1.0, 0.0], [1.0, 1.0], [-2.0, 0.0]]
    half = math.sqrt(0.5)
    expected = torch.tensor([[0, 1 - half, 2], [1 - half, 0, 1 + half], [2, 1 + half, 0]], dtype=torch.float64)
    torch.testing.assert_close(FeatureMaps().distances(maps), expected, rtol=1e-14, atol=1e-14)
    expected = torch.tensor([[0, 1 - half, 0], [1 - half, 0, 1 - half], [0, 1 - half, 0]], dtype=torch.float64)
    torch.testing.assert_close(FeatureMaps("abs_cosine").distances(maps), expected, rtol=1e-14, atol=1e-14)


def test_the_mean_is_taken_before_the_distance() -> None:
    # In each sample the two channels are at right angles; their means are the same.
    maps = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]], [[[0.0, 1.0]], [[1.0, 0.0]]]])
    assert FeatureMaps().distances(maps)[0, 1].item() == 0.0


def test_maps_without_spatial_extent_are_single_numbers() -> None:
    maps = torch.tensor([[1.0, -2.0, 3.0], [3.0, -4.0, 5.0]])
    similarity = FeatureMaps("euclidean")
    assert similarity.vectors(maps).tolist() == [[2.0], [-3.0], [4.0]]
    assert similarity.distances(maps)[0].tolist() == [0.0, 5.0, 2.0]
    assert FeatureMaps("cosine").distances(maps)[0].tolist() == [0.0, 2.0, 0.0]


@settings(deadline=None, max_examples=examples(30))
@given(samples=st.integers(1, 9), cuts=st.sets(st.integers(1, 8)), seed=st.integers(0, 2**31))
def test_streamed_mean_does_not_depend_on_the_batches(samples: int, cuts: set[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(samples, 3, 2, 2, generator=generator, dtype=torch.float64)
    gathered = MeanMaps()
    for batch in torch.tensor_split(maps, sorted(cut for cut in cuts if cut < samples)):
        gathered.update(batch)
    assert gathered.count == samples
    assert gathered.mean.shape == (3, 2, 2)
    torch.testing.assert_close(gathered.mean, maps.mean(dim=0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(FeatureMaps().distances(gathered), FeatureMaps().distances(maps), rtol=1e-9, atol=1e-9)


def test_sums_of_low_precision_batches_are_added_in_float64() -> None:
    gathered = MeanMaps()
    for _ in range(40):
        gathered.update(torch.full((100, 1, 1, 1), 3.0, dtype=torch.bfloat16))
    assert gathered.mean.item() == 3.0


def test_a_refused_batch_leaves_the_mean_as_it_was() -> None:
    gathered = MeanMaps()
    gathered.update(torch.ones(2, 3, 4, 4))
    with pytest.raises(ArgumentError, match="NaN or Inf"):
        gathered.update(torch.full((1, 3, 4, 4), math.nan))
    with pytest.raises(ArgumentError, match=r"\(3, 2, 2\) after \(3, 4, 4\)"):
        gathered.update(torch.ones(2, 3, 2, 2))
    assert gathered.count == 2
    assert torch.equal(gathered.mean, torch.ones(3, 4, 4, dtype=torch.float64))


def test_mean_before_the_first_batch_is_refused() -> None:
    with pytest.raises(ArgumentError, match="seen 0 samples; call update"):
        _ = MeanMaps().mean
    with pytest.raises(ArgumentError, match="seen 0 samples"):
        FeatureMaps().vectors(MeanMaps())


@pytest.mark.parametrize("shape", [(3,), (0, 3, 2, 2), (2, 0, 2, 2), (2, 3, 0, 2)])
def test_maps_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match=r"\(samples, channels, \.\.\.\)"):
        FeatureMaps().vectors(torch.ones(shape))
