"""CIFAR ResNets with option-A shortcuts (He et al. 2016, arXiv 1512.03385, section 4.2)."""

import torch
from torch import Tensor, nn

from clusterprune.models.layers import initialize_


class PaddedShortcut(nn.Module):
    """Option-A shortcut: skip pixels, then pad the channels with zeros. It has no parameters.

    (batch, c, h, w) becomes (batch, before + c + after, ceil(h / stride), ceil(w / stride)).
    ``before`` and ``after`` are plain attributes: whoever cuts the residual stream sets them to the
    number of zero channels that stay on either side.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.before = before
        self.after = after
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Subsample and pad ``x``."""
        x = x[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(x, (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        """Show the three numbers when the model is printed."""
        return f"before={self.before}, after={self.after}, stride={self.stride}"


class BasicBlock(nn.Module):
    """relu(x' + bn2(conv2(relu(bn1(conv1(x)))))), where x' is the shortcut of x."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        if stride == 1 and in_channels == channels:
            self.shortcut = nn.Identity()
        else:
            # A doubled width leaves a quarter of the new width on either side.
            before = (channels - in_channels) // 2
            self.shortcut = PaddedShortcut(before, channels - in_channels - before, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's correction to the shortcut of ``x``."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A CIFAR ResNet of 6n + 2 layers: three stages of n blocks, 16, 32 and 64 channels wide.

    Layers are named ``conv1, bn1, layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}, linear``. The input is
    (batch, 3, height, width), the output (batch, num_classes) logits.

    Parameters
    ----------
    blocks
        Blocks per stage (n).
    num_classes
        Number of logits.
    """

    compared_stages = ("layer1", "layer2", "layer3")
    """Those whose maps ICP's authors compare with the original's."""

    def __init__(self, blocks: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, num_classes)
        initialize_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, 3, height, width) to logits (batch, num_classes)."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.pool(x).flatten(1))


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (BasicBlock(channels, channels, 1) for _ in range(blocks - 1))
    return nn.Sequential(BasicBlock(in_channels, channels, stride), *rest)


def resnet20(num_classes: int = 10) -> ResNet:
    """Build ResNet-20: 0.27 M parameters and 40.55 M MACs at 32 x 32."""
    return ResNet(3, num_classes)


def resnet32(num_classes: int = 10) -> ResNet:
    """Build ResNet-32: 0.46 M parameters and 68.86 M MACs at 32 x 32."""
    return ResNet(5, num_classes)


def resnet44(num_classes: int = 10) -> ResNet:
    """Build ResNet-44: 0.66 M parameters and 97.17 M MACs at 32 x 32."""
    return ResNet(7, num_classes)


def resnet56(num_classes: int = 10) -> ResNet:
    """Build ResNet-56: 0.85 M parameters and 125.49 M MACs at 32 x 32."""
    return ResNet(9, num_classes)


def resnet110(num_classes: int = 10) -> ResNet:
    """Build ResNet-110: 1.73 M parameters and 252.89 M MACs at 32 x 32."""
    return ResNet(18, num_classes)
