"""Small networks that the one-shot compressor must cope with, one for each thing that could go wrong."""

import torch
from torch import Tensor, nn

import clusterprune as cp


def conv_norm(a: int, b: int, *, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(a, b, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(b), nn.ReLU()
    )


class Plain(nn.Sequential):
    """Three convolutions with batch norm and a linear head."""

    def __init__(self, width: int = 12):
        super().__init__(
            conv_norm(3, width),
            conv_norm(width, width, stride=2),
            conv_norm(width, width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, 5),
        )


class Grouped(nn.Module):
    """A residual bottleneck with a grouped convolution, as in RegNet."""

    def __init__(self):
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.a = conv_norm(8, 12, kernel=1)
        self.b = conv_norm(12, 12, groups=3)
        self.c = nn.Sequential(nn.Conv2d(12, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.relu(x + self.c(self.b(self.a(x)))).mean((2, 3)))


class Transposed(nn.Module):
    """An encoder and decoder; its output is an image."""

    def __init__(self):
        super().__init__()
        self.down = conv_norm(3, 12, stride=2)
        self.middle = conv_norm(12, 10)
        self.up = nn.ConvTranspose2d(10, 8, 2, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.out = nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.norm(self.up(self.middle(self.down(x))))))


class TwoInputs(nn.Module):
    """An image and a vector."""

    def __init__(self):
        super().__init__()
        self.image = conv_norm(3, 8)
        self.vector = nn.Linear(5, 8)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(torch.cat([self.image(x).mean((2, 3)), torch.relu(self.vector(y))], 1))


def trained_statistics(model: nn.Module, *inputs: Tensor) -> nn.Module:
    """Give batch norms the statistics of some inputs, and channels different strengths."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0.0, 0.3, generator=generator)
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(*inputs)
    return model.eval()


def smooth_images(count: int, size: int = 12, channels: int = 3, seed: int = 0) -> Tensor:
    """Return noise with some spatial structure."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, channels, size // 4, size // 4, generator=generator)
    return nn.functional.interpolate(coarse, size=(size, size), mode="bilinear") + 0.3 * torch.randn(
        count, channels, size, size, generator=generator
    )


def ready(model: nn.Module, seed: int = 0) -> tuple[nn.Module, cp.ChannelGraph, Tensor]:
    """Return a model of one image with plausible statistics, its graph, and images."""
    images = smooth_images(64, seed=seed)
    trained_statistics(model, images)
    return model, cp.trace(model, images[:1]), images
