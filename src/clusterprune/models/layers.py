"""Building blocks that the CIFAR networks share."""

from torch import nn


def conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int, *, bias: bool) -> list[nn.Module]:
    """Return a size-preserving convolution, its batch norm and a ReLU, for an ``nn.Sequential``.

    The ReLU is not in place, so that a hook may keep the batch norm's output.
    """
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]


def initialize_(model: nn.Module) -> None:
    """Draw the kernels from He's normal distribution, in place.

    The variance is 2 / fan-out (He et al. 2015, arXiv 1502.01852, Eq. 14), biases are zero. Batch
    norm and linear layers keep PyTorch's own initial values.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
