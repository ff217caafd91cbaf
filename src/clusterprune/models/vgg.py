"""VGG with batch norm for 32 x 32 images (Simonyan & Zisserman 2015, arXiv 1409.1556)."""

from collections.abc import Sequence

from torch import Tensor, nn

from clusterprune.models.layers import conv_bn_relu, initialize_

# Widths of the convolutions, one tuple per resolution; a max-pool stands between two tuples.
VGG16_WIDTHS = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)
VGG19_WIDTHS = ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4)


class VGG(nn.Module):
    """A plain chain of conv-BN-ReLU with max-pools, a global average and one linear layer.

    Layers are named ``features.N`` and ``classifier``. The convolutions have no bias. The input is
    (batch, 3, height, width) with sides of 16 or more; the output is (batch, num_classes) logits.
    No size is written down outside the layers, so a network cut to any width runs the same
    ``forward``.

    Parameters
    ----------
    widths
        Output channels of each convolution, one sequence per resolution.
    num_classes
        Number of logits.
    """

    def __init__(self, widths: Sequence[Sequence[int]], num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for index, stage in enumerate(widths):
            if index > 0:
                layers.append(nn.MaxPool2d(2))
            for width in stage:
                layers += conv_bn_relu(channels, width, 3, bias=False)
                channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        initialize_(self)

    @property
    def compared_stages(self) -> tuple[str, ...]:
        """Those whose maps ICP's authors compare with the original's: the last before each of three poolings."""
        pools = [index for index, layer in enumerate(self.features) if isinstance(layer, nn.MaxPool2d)]
        return tuple(f"features.{index - 1}" for index in pools[1:4])

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, 3, height, width) to logits (batch, num_classes)."""
        return self.classifier(self.pool(self.features(x)).flatten(1))


def vgg16(num_classes: int = 10) -> VGG:
    """Build VGG-16: 13 convolutions, 14.72 M parameters and 313.20 M MACs at 32 x 32."""
    return VGG(VGG16_WIDTHS, num_classes)


def vgg19(num_classes: int = 10) -> VGG:
    """Build VGG-19: 16 convolutions, 20.04 M parameters and 398.14 M MACs at 32 x 32."""
    return VGG(VGG19_WIDTHS, num_classes)
