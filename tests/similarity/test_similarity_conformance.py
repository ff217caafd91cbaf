"""What every similarity must satisfy. A new one is added to CASES and nothing else."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clusterprune.errors import ArgumentError
from clusterprune.similarity import (
    METRICS,
    BatchNormTensors,
    FeatureMaps,
    Filters,
    MeanMaps,
    Similarity,
    create,
    names,
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A similarity and how its input is made from (c, 2, 3) values, one block per channel."""

    similarity: Similarity
    arrange: Callable[[Tensor], tuple[Tensor | MeanMaps, dict[str, Any]]]

    def vectors(self, channels: Tensor) -> Tensor:
        source, options = self.arrange(channels)
        return self.similarity.vectors(source, **options)

    def distances(self, channels: Tensor) -> Tensor:
        source, options = self.arrange(channels)
        return self.similarity.distances(source, **options)


def _maps(channels: Tensor) -> tuple[Tensor, dict[str, Any]]:
    return torch.stack([channels, 2 * channels, channels.square()]), {}


def _flat_maps(channels: Tensor) -> tuple[Tensor, dict[str, Any]]:
    return channels.flatten(1).T, {}


def _mean_maps(channels: Tensor) -> tuple[MeanMaps, dict[str, Any]]:
    gathered = MeanMaps()
    gathered.update(channels[None])
    gathered.update(torch.stack([channels, 3 * channels]))
    return gathered, {}


def _weight(channels: Tensor) -> tuple[Tensor, dict[str, Any]]:
    return channels[..., None], {}


def _weight_and_bias(channels: Tensor) -> tuple[Tensor, dict[str, Any]]:
    return channels, {"bias": channels.sum(dim=(1, 2))}


def _weight_and_batch_norm(channels: Tensor) -> tuple[Tensor, dict[str, Any]]:
    flat = channels.flatten(1)
    return channels, {
        "bias": flat[:, 0],
        "batch_norm": BatchNormTensors(mean=flat[:, 1], var=flat[:, 2].square(), gamma=flat[:, 3], beta=flat[:, 4]),
    }


CASES = {
    **{f"feature_maps-{metric}": Case(FeatureMaps(metric), _maps) for metric in METRICS},
    "feature_maps-flat": Case(FeatureMaps(), _flat_maps),
    "feature_maps-streamed": Case(FeatureMaps(place="consumer_input"), _mean_maps),
    **{f"filters-{metric}": Case(Filters(metric), _weight) for metric in METRICS},
    "filters-bias": Case(Filters(), _weight_and_bias),
    **{
        f"filters-folded-{metric}": Case(Filters(metric, fold_batch_norm=True), _weight_and_batch_norm)
        for metric in METRICS
    },
    "filters-folded-no-batch-norm": Case(Filters(fold_batch_norm=True), _weight),
}


@st.composite
def channel_values(draw: st.DrawFn) -> Tensor:
    """(c, 2, 3) float32 with zero channels, repeated channels and small integers among them."""
    count = draw(st.integers(1, 10))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    if draw(st.booleans()):
        values = torch.randn(count, 2, 3, generator=generator)
    else:
        values = torch.randint(-1, 2, (count, 2, 3), generator=generator).float()
    repeats = draw(st.lists(st.integers(0, count - 1), min_size=count, max_size=count))
    return values[repeats] if draw(st.booleans()) else values


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
class TestEverySimilarity:
    @settings(deadline=None, max_examples=examples(20))
    @given(channels=channel_values())
    def test_distances_are_distances(self, case: Case, channels: Tensor) -> None:
        distances = case.distances(channels)
        assert distances.dtype == torch.float64
        assert distances.shape == (len(channels), len(channels))
        assert torch.isfinite(distances).all()
        assert torch.equal(distances, distances.T)
        assert torch.equal(distances.diagonal(), torch.zeros(len(channels), dtype=torch.float64))
        assert (distances >= 0).all()

    @settings(deadline=None, max_examples=examples(20))
    @given(channels=channel_values(), seed=st.integers(0, 2**31))
    def test_reordered_channels_reorder_the_distances(self, case: Case, channels: Tensor, seed: int) -> None:
        order = torch.randperm(len(channels), generator=torch.Generator().manual_seed(seed))
        expected = case.distances(channels)[order][:, order]
        torch.testing.assert_close(case.distances(channels[order]), expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(case.vectors(channels[order]), case.vectors(channels)[order])

    @settings(deadline=None, max_examples=examples(20))
    @given(channels=channel_values())
    def test_identical_channels_are_at_distance_zero(self, case: Case, channels: Tensor) -> None:
        distances = case.distances(torch.cat([channels, channels]))
        count = len(channels)
        assert distances[:count, count:].diagonal().abs().max().item() == 0.0

    @settings(deadline=None, max_examples=examples(10))
    @given(channels=channel_values())
    def test_same_input_same_result_and_input_untouched(self, case: Case, channels: Tensor) -> None:
        before = channels.clone()
        assert torch.equal(case.distances(channels), case.distances(channels))
        assert torch.equal(channels, before)

    def test_vectors_are_float64_rows_without_gradient(self, case: Case) -> None:
        channels = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
        vectors = case.vectors(channels.requires_grad_())
        assert vectors.dtype == torch.float64
        assert vectors.ndim == 2
        assert vectors.shape[0] == 4
        assert not vectors.requires_grad
        assert not case.distances(channels).requires_grad

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_not_finite_is_refused(self, case: Case, bad: float) -> None:
        channels = torch.ones(3, 2, 3)
        channels[1, 1, 2] = bad
        with pytest.raises(ArgumentError, match="finite"):
            case.distances(channels)

    def test_no_channels_are_refused(self, case: Case) -> None:
        with pytest.raises(ArgumentError, match=r"at least one|shape"):
            case.distances(torch.ones(0, 2, 3))

    def test_can_be_made_again_from_its_name_and_options(self, case: Case) -> None:
        similarity = case.similarity
        assert similarity.name in names()
        options = {
            field.name: getattr(similarity, field.name)
            for field in dataclasses.fields(similarity)  # pyright: ignore[reportArgumentType]
        }
        assert create(similarity.name, **options) == similarity
        assert isinstance(similarity, Similarity)


def test_every_similarity_is_covered() -> None:
    assert {case.similarity.name for case in CASES.values()} == set(names())


def test_unknown_name_lists_the_names() -> None:
    with pytest.raises(ArgumentError, match="feature_maps, filters, but got name='maps'"):
        create("maps")


def test_unknown_option_lists_the_options() -> None:
    with pytest.raises(ArgumentError, match="'eps'; its options are metric, place"):
        create("feature_maps", eps=0.1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("feature_maps", {"metric": "dot"}, "metric must be one of .* metric='dot'"),
        ("feature_maps", {"place": "relu"}, "conv_output, consumer_input.* place='relu'"),
        ("filters", {"metric": None}, "metric must be one of .* metric=None"),
        ("filters", {"fold_batch_norm": 1}, "True or False.* fold_batch_norm=1"),
    ],
)
def test_bad_option_value_states_the_rule(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        create(name, **options)
