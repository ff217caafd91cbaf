"""GoogLeNet for 32 x 32 images, as the pruning papers use it.

Szegedy et al. 2015 (arXiv 1409.4842) gives the widths; each 5 x 5 convolution is two 3 x 3 ones
(Inception-v2, arXiv 1512.00567), and one 3 x 3 convolution replaces the stem. The convolutions keep
their biases: the published 6.17 M parameters include them.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from clusterprune.models.layers import conv_bn_relu, initialize_


class InceptionWidths(NamedTuple):
    """Output channels of the convolutions of one inception block.

    ``reduce`` is the 1 x 1 convolution in front of the 3 x 3 and of the double 3 x 3 branch.
    """

    one: int
    three_reduce: int
    three: int
    five_reduce: int
    five: int
    pool: int

    @property
    def total(self) -> int:
        """Channels of the concatenated output."""
        return self.one + self.three + self.five + self.pool


STEM_WIDTH = 192
WIDTHS = {
    "a3": InceptionWidths(64, 96, 128, 16, 32, 32),
    "b3": InceptionWidths(128, 128, 192, 32, 96, 64),
    "a4": InceptionWidths(192, 96, 208, 16, 48, 64),
    "b4": InceptionWidths(160, 112, 224, 24, 64, 64),
    "c4": InceptionWidths(128, 128, 256, 24, 64, 64),
    "d4": InceptionWidths(112, 144, 288, 32, 64, 64),
    "e4": InceptionWidths(256, 160, 320, 32, 128, 128),
    "a5": InceptionWidths(256, 160, 320, 32, 128, 128),
    "b5": InceptionWidths(384, 192, 384, 48, 128, 128),
}


class Inception(nn.Module):
    """Four branches on one input, concatenated: 1x1; 1x1-3x3; 1x1-3x3-3x3; pool-1x1."""

    def __init__(self, in_channels: int, widths: InceptionWidths) -> None:
        super().__init__()
        w = widths
        self.branch1x1 = nn.Sequential(*conv_bn_relu(in_channels, w.one, 1, bias=True))
        self.branch3x3 = nn.Sequential(
            *conv_bn_relu(in_channels, w.three_reduce, 1, bias=True),
            *conv_bn_relu(w.three_reduce, w.three, 3, bias=True),
        )
        self.branch5x5 = nn.Sequential(
            *conv_bn_relu(in_channels, w.five_reduce, 1, bias=True),
            *conv_bn_relu(w.five_reduce, w.five, 3, bias=True),
            *conv_bn_relu(w.five, w.five, 3, bias=True),
        )
        self.branch_pool = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1),
            *conv_bn_relu(in_channels, w.pool, 1, bias=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the four branches along the channels."""
        branches = (self.branch1x1, self.branch3x3, self.branch5x5, self.branch_pool)
        return torch.cat([branch(x) for branch in branches], dim=1)


class GoogLeNet(nn.Module):
    """A 3 x 3 stem, nine inception blocks at three resolutions, a global average, one linear layer.

    Layers carry the names that CIFAR checkpoints of this network have: ``pre_layers``,
    ``inception_a3`` ... ``inception_b5`` with ``branch1x1, branch3x3, branch5x5, branch_pool``,
    and ``linear``; what the original paper calls 3b, 4e and 5b is inception_b3, inception_e4 and
    inception_b5. The input is (batch, 3, height, width), the output (batch, num_classes) logits.

    Parameters
    ----------
    num_classes
        Number of logits.
    """

    compared_stages = ("inception_b3", "inception_e4", "inception_b5")
    """Those whose maps ICP's authors compare with the original's."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.pre_layers = nn.Sequential(*conv_bn_relu(3, STEM_WIDTH, 3, bias=True))
        channels = STEM_WIDTH
        for name, widths in WIDTHS.items():
            self.add_module(f"inception_{name}", Inception(channels, widths))
            channels = widths.total
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, num_classes)
        initialize_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, 3, height, width) to logits (batch, num_classes)."""
        x = self.pre_layers(x)
        for name in WIDTHS:
            if name in ("a4", "a5"):
                x = self.maxpool(x)
            x = self.get_submodule(f"inception_{name}")(x)
        return self.linear(self.pool(x).flatten(1))


def googlenet(num_classes: int = 10) -> GoogLeNet:
    """Build the CIFAR GoogLeNet: 6.17 M parameters and 1,521.76 M MACs at 32 x 32."""
    return GoogLeNet(num_classes)
