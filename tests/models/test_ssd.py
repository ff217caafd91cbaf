import copy

import pytest
import torch
from networks import difference, masked_reference, random_plan
from torch import nn

import clusterprune as cp
from clusterprune import evaluate
from clusterprune.errors import ArgumentError
from clusterprune.models import SSD
from clusterprune.models.ssd import RATIOS, default_boxes, ssd300, ssd300_bn
from clusterprune.models.vgg import VGG


@pytest.mark.parametrize("factory", [ssd300, ssd300_bn])
def test_size_is_the_published_one(factory) -> None:
    """Liu et al. 2016, Table 7 and later counts: 8,732 boxes; 26.3 M parameters and 31.4 G MACs for VOC."""
    with torch.device("meta"):
        model = factory()
        image = torch.zeros(1, 3, 300, 300)
    locations, scores = model.eval()(image)
    assert locations.shape == (1, 8732, 4)
    assert scores.shape == (1, 8732, 21)
    assert evaluate.params(model) == pytest.approx(26.3e6, rel=0.01)
    assert evaluate.macs(model, image) == pytest.approx(31.4e9, rel=0.01)


def test_default_boxes_are_those_of_ssd300() -> None:
    boxes = default_boxes((38, 19, 10, 5, 3, 1), (0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05))
    assert boxes.shape == (8732, 4)
    pixels = 300 * boxes
    # The first cell: 30 x 30, √(30·60) square, then 2 : 1 lying and upright of the same area.
    half = 300 / 38 / 2
    expected = [[30, 30], [42.4264, 42.4264], [42.4264, 21.2132], [21.2132, 42.4264]]
    torch.testing.assert_close(pixels[:4, 2:], torch.tensor(expected))
    assert pixels[:4, :2].flatten().tolist() == pytest.approx([half] * 8)
    # Row by row: the next cell lies to the right.
    assert pixels[4, :2].tolist() == pytest.approx([3 * half, half])
    assert pixels[-4:, :2].unique().tolist() == pytest.approx([150])
    assert pixels[-4, 2:].tolist() == pytest.approx([264, 264])
    assert [2 + 2 * len(ratios) for ratios in RATIOS] == [4, 6, 6, 6, 4, 4]


@pytest.mark.parametrize(("size", "maps"), [(64, 3), (96, 4), (160, 5), (192, 5), (256, 5), (300, 6), (320, 6)])
def test_maps_of_other_input_sizes_have_their_default_boxes(size: int, maps: int) -> None:
    model = SSD(4, width=0.02, size=size, batch_norm=True).eval()
    assert len(model.extras) == maps - 2
    locations, scores = model(torch.zeros(2, 3, size, size))
    assert locations.shape == (2, len(model.default_boxes), 4)
    assert scores.shape == (2, len(model.default_boxes), 4)


def test_any_vgg_16_can_be_its_backbone() -> None:
    vgg = VGG(((4, 5), (6, 7), (8, 9, 10), (11, 12, 13), (14, 15, 16)))
    before = copy.deepcopy(vgg.state_dict())
    model = SSD(4, width=0.02, size=64, batch_norm=True, features=vgg.features)
    assert [layer.out_channels for layer in model.features if isinstance(layer, nn.Conv2d)] == list(range(4, 14))
    made = [layer.weight for layer in (*model.features, *model.deep) if isinstance(layer, nn.Conv2d)][:13]
    taken = [layer.weight for layer in vgg.features if isinstance(layer, nn.Conv2d)]
    assert all(torch.equal(one, other) for one, other in zip(made, taken, strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in vgg.state_dict().items())
    assert model(torch.zeros(2, 3, 64, 64))[0].shape == (2, len(model.default_boxes), 4)
    with pytest.raises(ArgumentError, match="13 convolutions with four max-pools"):
        SSD(4, features=nn.Sequential(nn.Conv2d(3, 8, 3)))


@pytest.mark.parametrize("arguments", [{"width": 0.0}, {"size": 32}, {"scales": (0.1, 0.2)}])
def test_arguments_are_checked(arguments) -> None:
    with pytest.raises(ArgumentError, match=next(iter(arguments))):
        SSD(4, **{"size": 64, "width": 0.02, **arguments})


def test_a_cut_detector_is_of_its_own_class_and_equals_the_masked_one() -> None:
    """All but conv4_3, whose channels are normalised together."""
    torch.manual_seed(0)
    model = SSD(4, width=0.03, size=64, batch_norm=True).double().eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    graph = cp.trace(model, images[:1])
    assert len(graph.prunable) == sum(isinstance(layer, nn.Conv2d) for layer in model.modules()) - 6 - 1
    assert "features.30" not in {group.name for group in graph.prunable}
    plan = random_plan(graph, 0)
    small = cp.apply(model, plan, graph=graph)
    assert isinstance(small, SSD)
    assert torch.equal(small.default_boxes, model.default_boxes)
    for found, expected in zip(small(images), masked_reference(model, graph, plan)(images), strict=True):
        assert difference(found, expected) < 1e-12
