"""The drawing of a network's groups, on random networks and on real ones."""

import itertools
from xml.etree import ElementTree as ET

import pytest
import torch
from hypothesis import given, settings
from networks import PROFILE, Network, Recipe, recipes, residual_network

import clusterprune as cp
from clusterprune import models
from clusterprune.graph.walk import layer_of
from clusterprune.report.lanes import Lane, draw_graph, lanes, layers_of

NAME = "{http://www.w3.org/2000/svg}"


def check_drawing(graph: cp.ChannelGraph) -> None:
    """Check that no two lanes are in each other's way, and that every layer and every mark is drawn."""
    layers, found = layers_of(graph), lanes(graph)
    assert sorted(lane.group.name for lane in found) == sorted(graph.by_name)
    for one, other in itertools.combinations(found, 2):
        assert one.column != other.column or one.last < other.first or other.last < one.first
    for lane in found:
        assert _made(layers, lane) == {layer_of(use.path) for use in lane.group.producers}
    picture = ET.fromstring(draw_graph(graph))
    texts = ["".join(text.itertext()) for text in picture.iter(f"{NAME}text")]
    assert all(text.startswith(layer) for text, layer in zip(texts, layers, strict=False))
    marks = [
        mark for part in picture.iter(f"{NAME}g") for mark in part.iter(f"{NAME}circle") if part[0].tag != mark.tag
    ]
    filled = [mark for mark in marks if mark.get("class") == "makes"]
    assert len(filled) == sum(len(lane.makers) for lane in found)
    assert len(marks) == sum(len(lane.makers) + len(lane.readers) for lane in found)
    width, height = float(picture.get("width", 0)), float(picture.get("height", 0))
    assert all(0 < float(mark.get("cx", -1)) < width and 0 < float(mark.get("cy", -1)) < height for mark in marks)


def _made(layers: list[str], lane: Lane) -> set[str]:
    return {layers[row] for row in lane.makers}


@settings(PROFILE, max_examples=PROFILE.max_examples // 10)
@given(recipe=recipes())
def test_every_group_of_a_random_network_has_a_lane_of_its_own(recipe: Recipe):
    network = Network(recipe).eval()
    check_drawing(cp.trace(network, network.inputs(1)))


@pytest.mark.parametrize("name", ["resnet20", "torchvision:mobilenet_v2", "torchvision:shufflenet_v2_x1_0"])
def test_real_networks_are_drawn(name: str):
    spec = models.resolve(name)
    check_drawing(cp.trace(models.build(spec, seed=0).eval(), spec.example()))


def test_a_residual_stream_is_one_long_lane():
    graph = cp.trace(residual_network(), torch.zeros(1, 3, 8, 8))
    longest = max(lanes(graph), key=lambda lane: lane.last - lane.first)

    assert longest.column == 0
    assert len(longest.makers) > 1
    assert set(longest.makers).isdisjoint(longest.readers)
