import pytest
import torch
from torch import nn

from clusterprune.models import VGG
from clusterprune.models.vgg import VGG16_WIDTHS, VGG19_WIDTHS, vgg16, vgg19


@pytest.mark.parametrize(
    ("factory", "exact", "published"),
    [
        # The published VGG-16 keeps the convolutions' 4,224 biases.
        (vgg16, (14_724_042, 313_201_664), (14.73e6, 314.59e6)),
        (lambda: vgg19(100), (20_081_188, 398_182_400), (20.09e6, 399.52e6)),
    ],
)
def test_size_is_the_published_one(measure, factory, exact, published):
    size = measure(factory)
    params, macs = published
    assert (size.params, size.macs) == exact
    assert size.params == pytest.approx(params, rel=0.001)
    assert size.macs == pytest.approx(macs, rel=0.01)
    assert size.macs_with_batch_norm == pytest.approx(macs, rel=0.001)


@pytest.mark.parametrize(
    ("widths", "convolutions"),
    [
        (VGG16_WIDTHS, [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40]),
        (VGG19_WIDTHS, [0, 3, 7, 10, 14, 17, 20, 23, 27, 30, 33, 36, 40, 43, 46, 49]),
    ],
)
def test_layers_have_the_names_of_the_baselines(widths, convolutions):
    with torch.device("meta"):
        model = VGG(widths)
    expected = {f"classifier.{kind}" for kind in ("weight", "bias")}
    for index in convolutions:
        expected.add(f"features.{index}.weight")
        for kind in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            expected.add(f"features.{index + 1}.{kind}")
    assert set(model.state_dict()) == expected


def test_max_pools_stand_after_convolutions_2_4_7_and_10():
    with torch.device("meta"):
        layers = list(vgg16().features)
    after = [
        sum(isinstance(layer, nn.Conv2d) for layer in layers[:index])
        for index, layer in enumerate(layers)
        if isinstance(layer, nn.MaxPool2d)
    ]
    assert after == [2, 4, 7, 10]
    assert isinstance(layers[-1], nn.ReLU)


@pytest.mark.parametrize("side", [16, 32, 50])
def test_any_side_and_any_width_runs(side):
    model = VGG([[5], [7, 3], [4], [6], [9]], num_classes=11).eval()
    assert model(torch.randn(2, 3, side, side)).shape == (2, 11)
