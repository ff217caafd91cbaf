import pytest
import torch
from torch import nn

from clusterprune.models import PaddedShortcut, ResNet
from clusterprune.models.resnet import resnet20, resnet32, resnet44, resnet56, resnet110


@pytest.mark.parametrize(
    ("factory", "params", "macs"),
    [
        (resnet20, 269_722, 40_551_040),
        (resnet32, 464_154, 68_862_592),
        (resnet44, 658_586, 97_174_144),
        (resnet56, 853_018, 125_485_696),
        (resnet110, 1_727_962, 252_887_680),
    ],
)
def test_size(measure, factory, params, macs):
    size = measure(factory)
    assert (size.params, size.macs) == (params, macs)


@pytest.mark.parametrize(
    ("factory", "params", "macs", "macs_of_layers"),
    [(resnet56, 0.85e6, 127.62e6, 125.49e6), (resnet110, 1.73e6, 256.04e6, 252.89e6)],
)
def test_size_is_the_published_one(measure, factory, params, macs, macs_of_layers):
    size = measure(factory)
    assert size.params == pytest.approx(params, rel=0.01)
    # The published figures count batch norm, which is 1.7 % of ResNet-56; ours do not.
    assert size.macs_with_batch_norm == pytest.approx(macs, rel=0.01)
    assert size.macs == pytest.approx(macs_of_layers, rel=0.0001)


def test_layers_have_the_names_of_the_baselines():
    with torch.device("meta"):
        model = resnet20()
    kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"conv1.weight", "linear.weight", "linear.bias", *(f"bn1.{kind}" for kind in kinds)}
    for stage in (1, 2, 3):
        for block in range(3):
            for unit in (1, 2):
                path = f"layer{stage}.{block}"
                expected.add(f"{path}.conv{unit}.weight")
                expected |= {f"{path}.bn{unit}.{kind}" for kind in kinds}
    assert set(model.state_dict()) == expected


def test_shortcut_keeps_every_second_pixel_between_two_quarters_of_zeros():
    shortcut = PaddedShortcut(before=8, after=8, stride=2)
    x = torch.randn(2, 16, 7, 6)
    y = shortcut(x)
    assert y.shape == (2, 32, 4, 3)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert y[:, :8].abs().sum() == 0
    assert y[:, 24:].abs().sum() == 0
    assert list(shortcut.state_dict()) == []
    assert repr(shortcut) == "PaddedShortcut(before=8, after=8, stride=2)"


def test_shortcut_follows_its_attributes():
    shortcut = PaddedShortcut(before=8, after=8, stride=2)
    x = torch.randn(1, 5, 4, 4)
    shortcut.before, shortcut.after = 0, 3
    y = shortcut(x)
    assert y.shape == (1, 8, 2, 2)
    assert torch.equal(y[:, :5], x[:, :, ::2, ::2])


def test_only_the_first_blocks_of_stages_2_and_3_pad():
    model = ResNet(blocks=2)
    padded = {
        name: (module.before, module.after, module.stride)
        for name, module in model.named_modules()
        if isinstance(module, PaddedShortcut)
    }
    assert padded == {"layer2.0.shortcut": (8, 8, 2), "layer3.0.shortcut": (16, 16, 2)}
    assert isinstance(model.get_submodule("layer1.0.shortcut"), nn.Identity)


def test_a_block_without_correction_is_its_shortcut():
    model = ResNet(blocks=1).eval()
    block = model.layer2[0]
    assert isinstance(block.bn2, nn.BatchNorm2d)
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 16, 8, 8)
    assert torch.equal(block(x)[:, 8:24], x[:, :, ::2, ::2])


def test_one_batch_trains_every_parameter():
    model = ResNet(blocks=1, num_classes=4)
    loss = nn.functional.cross_entropy(model(torch.randn(3, 3, 12, 12)), torch.tensor([0, 1, 3]))
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_option_a_survives_export():
    model = ResNet(blocks=1).eval()
    x = torch.randn(2, 3, 32, 32)
    exported = torch.export.export(model, (x,)).module()
    assert torch.allclose(exported(x), model(x), atol=1e-6)
