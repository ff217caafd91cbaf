"""What every similarity must make of a network's groups. A new one is added to SIMILARITIES and nothing else."""

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from networks import make_twins, reordered, residual_network
from torch import Tensor

import clusterprune as cp
from clusterprune.clustering import DBSCAN, KMeans
from clusterprune.errors import ArgumentError
from clusterprune.similarity import ChannelPoints, FeatureMaps, Filters, Similarity, names, read_similarity

SIMILARITIES: tuple[Similarity, ...] = (
    FeatureMaps(), FeatureMaps("euclidean", place="consumer_input"), Filters(), Filters("cosine", fold_batch_norm=True),
)  # fmt: skip
LOOKING = {"feature_maps"}
"""Those that need images."""
IMAGES = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def graph() -> Iterator[cp.ChannelGraph]:
    model = residual_network()
    before = copy.deepcopy(model.state_dict())
    yield cp.trace(model, IMAGES[:1])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def points_of(similarity: Similarity, graph: cp.ChannelGraph) -> dict[str, ChannelPoints]:
    return dict(similarity.points(graph, graph.prunable, IMAGES))


@pytest.mark.parametrize("similarity", SIMILARITIES, ids=repr)
class TestEverySimilarity:
    def test_every_group_has_points_and_distances_between_them(
        self, graph: cp.ChannelGraph, similarity: Similarity
    ) -> None:
        found = points_of(similarity, graph)
        assert set(found) == {group.name for group in graph.prunable} == {"stem", "inner"}
        for group in graph.prunable:
            distances, vectors = found[group.name].distances, found[group.name].vectors
            assert distances.dtype == torch.float64
            assert distances.device == torch.device("cpu")
            assert distances.shape == (group.width, group.width)
            assert torch.equal(distances, distances.T)
            assert (distances.diagonal() == 0).all()
            assert (distances >= 0).all()
            assert vectors is None or (len(vectors) == group.width and not vectors.requires_grad)
        again = points_of(similarity, graph)
        assert all(torch.equal(found[name].distances, again[name].distances) for name in found)

    def test_reordered_channels_reorder_the_distances(self, graph: cp.ChannelGraph, similarity: Similarity) -> None:
        other, orders = reordered(graph.model, graph.prunable)
        before, after = points_of(similarity, graph), points_of(similarity, cp.trace(other, IMAGES[:1]))
        for name, order in orders.items():
            expected = before[name].distances[order][:, order]
            torch.testing.assert_close(after[name].distances, expected, rtol=1e-4, atol=1e-5)

    def test_channels_that_are_made_alike_are_at_no_distance(self, similarity: Similarity) -> None:
        graph = cp.trace(residual_network().requires_grad_(False), IMAGES[:1])
        twins = {group.name: make_twins(graph, group, np.random.default_rng(0)) for group in graph.prunable}
        for name, found in points_of(similarity, graph).items():
            for copied, original in twins[name].items():
                assert found.distances[copied, original] < 1e-6 < found.distances.median()

    def test_it_needs_images_or_does_not(self, graph: cp.ChannelGraph, similarity: Similarity) -> None:
        if similarity.name in LOOKING:
            with pytest.raises(ArgumentError, match="images=None does not go with"):
                similarity.points(graph, graph.prunable, None)
        else:
            found = similarity.points(graph, graph.prunable, None)
            assert torch.equal(found["inner"].distances, points_of(similarity, graph)["inner"].distances)

    def test_it_can_be_given_by_name_or_as_an_object(self, graph: cp.ChannelGraph, similarity: Similarity) -> None:
        assert isinstance(similarity, Similarity)
        assert read_similarity(similarity) is similarity
        usual = read_similarity(similarity.name)
        given: dict[str, Any] = {"clustering": KMeans(n_clusters=3), "merging": "drop"}
        assert cp.cluster(graph, IMAGES, similarity=usual, **given) == cp.cluster(
            graph, IMAGES, similarity=similarity.name, **given
        )


def test_every_similarity_is_covered() -> None:
    assert {similarity.name for similarity in SIMILARITIES} == set(names())


def test_feature_maps_are_the_mean_of_what_the_layer_makes(graph: cp.ChannelGraph) -> None:
    maps, told = [], []
    model = copy.deepcopy(graph.model)
    model.inner.register_forward_hook(lambda module, args, output: maps.append(output))
    model(IMAGES)
    found = FeatureMaps().points(graph, graph.prunable, IMAGES, lambda *args: told.append(args))["inner"]
    torch.testing.assert_close(found.vectors, FeatureMaps().vectors(maps[0]), rtol=1e-5, atol=1e-6)
    assert told[-1] == ("mean feature maps", 20, 20)


def test_a_channel_that_two_layers_make_is_one_long_point(graph: cp.ChannelGraph) -> None:
    vectors = Filters().points(graph, graph.prunable)["stem"].vectors
    assert vectors is not None
    # The stem and its bias, what the stream adds, and the depthwise layer and its bias.
    assert vectors.shape == (8, (27 + 1) + 6 + (9 + 1))


@dataclasses.dataclass(frozen=True)
class Numbered:
    """A similarity of one's own: channels are as far apart as their numbers."""

    answer: object = None

    def points(self, graph, groups, images, progress=None) -> Any:
        if self.answer is not None:
            return self.answer
        numbers = {group.name: torch.arange(group.width)[:, None].float() for group in groups}
        return {name: ChannelPoints(None, (rows - rows.T).abs()) for name, rows in numbers.items()}


def test_a_similarity_of_ones_own_needs_no_base_class(graph: cp.ChannelGraph) -> None:
    own = Numbered()
    plan = cp.cluster(graph, similarity=own, clustering=DBSCAN(eps=1.0, min_samples=2), merging="drop")
    assert plan.widths == {"stem": 1, "inner": 1}
    assert plan.notes["similarity"] == repr(own)
    with pytest.raises(ArgumentError, match=r"kmeans reads vectors, but got vectors=None; pass .* or use a clustering"):
        cp.cluster(graph, similarity=own, clustering=KMeans(n_clusters=2), merging="drop")  # type: ignore[arg-type]


def apart(count: int) -> Tensor:
    return 1 - torch.eye(count)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (apart(8), "ChannelPoints by name of group, but its method points returned a Tensor"),
        ({"stem": ChannelPoints(None, apart(8))}, "for inner it returned None"),
        ({"stem": apart(8)}, "for stem it returned tensor"),
        ({"stem": ChannelPoints(None, apart(6))}, r"8 channels of stem, but returned shape \(6, 6\)"),
        ({"stem": ChannelPoints(apart(6), apart(8))}, r"8 channels of stem, but returned shape \(6, 6\)"),
        ({"stem": ChannelPoints(None, -apart(8))}, "at least 0, .* those of stem are not"),
        ({"stem": ChannelPoints(None, apart(8).triu())}, "symmetric, .* those of stem are not"),
        ({"stem": ChannelPoints(None, torch.full((8, 8), torch.nan))}, "distances of stem must be finite"),
    ],
)
def test_bad_points_are_refused_by_the_name_of_their_group(graph: cp.ChannelGraph, answer: object, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        cp.cluster(graph, similarity=Numbered(answer), merging="drop")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["maps", ["filters"], Filters, object()])
def test_what_is_no_similarity_is_refused(graph: cp.ChannelGraph, wrong: Any) -> None:
    with pytest.raises(ArgumentError, match="similarity must be one of feature_maps, filters, or an object"):
        cp.cluster(graph, IMAGES, similarity=wrong)
