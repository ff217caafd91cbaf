"""SSD on VGG-16 (Liu et al. 2016, arXiv 1512.02325): a detector in one pass, from maps of several resolutions."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clusterprune.errors import ArgumentError
from clusterprune.models.layers import initialize_
from clusterprune.models.vgg import VGG16_WIDTHS

SCALES = (0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05)
"""Side of the default boxes of each map, and of the one after the last, as fractions of the image: SSD300's on VOC,
30, 60, 111, 162, 213, 264 and 315 pixels of 300."""

RATIOS = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
"""Aspect ratios of the default boxes of each map, beside 1; each stands for its inverse, too."""

# Extra layers: channels of the 1 x 1 and of the 3 x 3 convolution, and the latter's stride; padded where it is 2.
_EXTRAS = ((256, 512, 2), (128, 256, 2), (128, 256, 1), (128, 256, 1))


class L2Norm(nn.Module):
    """Bring the channels at each position to a length of 1, then scale each by what is learned, at first 20."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels, 1, 1), 20.0))

    def forward(self, x: Tensor) -> Tensor:
        """Return maps (n, c, h, w) of the same shape."""
        return functional.normalize(x, dim=1) * self.weight


class SSD(nn.Module):
    """VGG-16 up to conv5_3, conv6 (dilated) and conv7 in place of its linear layers, extra layers, two heads per map.

    The input is (n, 3, size, size); the outputs are the `locations` (n, boxes, 4) of all default boxes, as offsets of
    centre and logarithms of size in units of the variances (0.1 and 0.2), and their `scores` (n, boxes, num_classes),
    logits with the background as class 0. :attr:`default_boxes` says which boxes these are. At 300 pixels there are
    six maps and 8,732 boxes; smaller images have fewer maps, for a map below 3 pixels is the last.

    Parameters
    ----------
    num_classes
        The background included: 21 for VOC.
    width
        Factor of the number of channels of all layers.
    size
        Height and width of the images in pixels, from 64 on.
    batch_norm
        Whether a batch norm stands behind each convolution but the heads'; the paper has none.
    scales
        See :data:`SCALES`.
    features
        A backbone, such as a classifier's `features`: 13 convolutions of any width with four max-pools between them;
        copied, weights included.

    Raises
    ------
    ArgumentError
        An argument is out of range, or the backbone is another.
    """

    def __init__(
        self,
        num_classes: int = 21,
        *,
        width: float = 1.0,
        size: int = 300,
        batch_norm: bool = False,
        scales: Sequence[float] = SCALES,
        features: nn.Sequential | None = None,
    ) -> None:
        super().__init__()
        if not 0 < width <= 4 or size < 64:
            raise ArgumentError(f"width must be above 0 and size at least 64, but got width={width}, size={size}")

        def layers(inputs: int, channels: int, kernel: int, **options: int) -> nn.Sequential:
            return nn.Sequential(*_layers(inputs, channels, kernel, batch_norm=batch_norm, **options))

        def wide(channels: int) -> int:
            return max(8, round(width * channels))

        whole = _vgg(wide, batch_norm=batch_norm) if features is None else copy.deepcopy(features)
        pools = [at for at, layer in enumerate(whole) if isinstance(layer, nn.MaxPool2d)]
        if len(pools) != 4 or sum(isinstance(layer, nn.Conv2d) for layer in whole) != 13:
            raise ArgumentError(
                f"features must be those of VGG-16, 13 convolutions with four max-pools between them, but got {whole}"
            )
        whole[pools[2]] = nn.MaxPool2d(2, ceil_mode=True)  # 75 pixels become 38
        self.features, rest = whole[: pools[3]], whole[pools[3] :]
        first, deep = (_channels(part) for part in (self.features, rest))
        self.norm = L2Norm(first)
        after = nn.Sequential(*layers(deep, wide(1024), 3, padding=6, dilation=6), *layers(wide(1024), wide(1024), 1))
        self.deep = nn.Sequential(*rest, nn.MaxPool2d(3, 1, 1), *after)
        channels, sides = [first, wide(1024)], [math.ceil(size // 4 / 2)]
        sides.append(sides[0] // 2)
        self.extras = nn.ModuleList()
        for inner, outer, stride in _EXTRAS:
            if sides[-1] < 3:
                break
            strided = layers(wide(inner), wide(outer), 3, stride=stride, padding=stride - 1)
            self.extras.append(nn.Sequential(*layers(channels[-1], wide(inner), 1), *strided))
            sides.append((sides[-1] + 2 * (stride - 1) - 3) // stride + 1)
            channels.append(wide(outer))
        if len(scales) <= len(sides):
            raise ArgumentError(
                f"scales must be one for each of the {len(sides)} maps and one more, but got scales={tuple(scales)}"
            )
        self.num_classes = num_classes
        self._sides, self._scales = tuple(sides), tuple(scales)
        cells = [2 + 2 * len(ratios) for ratios, _ in zip(RATIOS, sides, strict=False)]
        heads = list(zip(channels, cells, strict=True))
        self.locations = nn.ModuleList(nn.Conv2d(inputs, 4 * n, 3, padding=1) for inputs, n in heads)
        self.scores = nn.ModuleList(nn.Conv2d(inputs, num_classes * n, 3, padding=1) for inputs, n in heads)
        for part in (after, self.extras, *((whole,) if features is None else ())):
            initialize_(part)
        with torch.no_grad():
            for head in (*self.locations.parameters(), *self.scores.parameters()):
                head.normal_(std=0.01)  # every box begins as its default, of no class in particular

    @property
    def default_boxes(self) -> Tensor:
        """Centre and size of each default box as fractions of the image, float32 (boxes, 4), in the outputs' order."""
        return default_boxes(self._sides, self._scales)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (n, 3, size, size) to `locations` (n, boxes, 4) and `scores` (n, boxes, num_classes)."""
        x = self.features(x)
        maps = [self.norm(x)]
        x = self.deep(x)
        maps.append(x)
        for extra in self.extras:
            x = extra(x)
            maps.append(x)
        locations = [_rows(head(one), 4) for head, one in zip(self.locations, maps, strict=True)]
        scores = [_rows(head(one), self.num_classes) for head, one in zip(self.scores, maps, strict=True)]
        return torch.cat(locations, 1), torch.cat(scores, 1)


def ssd300(num_classes: int = 21, *, features: nn.Sequential | None = None) -> SSD:
    """Build SSD300 as in the paper, without batch norm: 26.29 M parameters and 31.37 G MACs at 21 classes."""
    return SSD(num_classes, features=features)


def ssd300_bn(num_classes: int = 21, *, features: nn.Sequential | None = None) -> SSD:
    """Build SSD300 with batch norm behind each convolution, as the backbones of CIFAR are built."""
    return SSD(num_classes, batch_norm=True, features=features)


def default_boxes(sides: Sequence[int], scales: Sequence[float]) -> Tensor:
    """Return centre and size of the default boxes, float32 (boxes, 4) as fractions: map by map, row by row.

    At each position: a square of the map's scale s, one of √(s·s′) with the next map's s′, and for each aspect ratio a
    box of the area s² and its upright or lying counterpart (the paper's §2.2).
    """
    made: list[Tensor] = []
    for at, side in enumerate(sides):
        scale, after = scales[at], scales[at + 1]
        shapes = [(scale, scale), (math.sqrt(scale * after),) * 2]
        for ratio in RATIOS[at]:
            root = math.sqrt(ratio)
            shapes += [(scale * root, scale / root), (scale / root, scale * root)]
        centres = (torch.arange(side, dtype=torch.float32) + 0.5) / side
        grid = torch.cartesian_prod(centres, centres).flip(1)  # x, y; rows first
        sizes = torch.tensor(shapes)
        made.append(
            torch.cat([grid[:, None].expand(-1, len(sizes), 2), sizes.expand(len(grid), -1, 2)], 2).flatten(0, 1)
        )
    return torch.cat(made)


def _rows(maps: Tensor, length: int) -> Tensor:
    """Return (n, boxes, length) of a head's maps (n, boxes per cell · length, h, w)."""
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, length)


def _channels(layers: nn.Sequential) -> int:
    """Return how many maps the last convolution makes."""
    return [layer.out_channels for layer in layers if isinstance(layer, nn.Conv2d)][-1]


def _layers(inputs: int, channels: int, kernel: int, *, batch_norm: bool, **options: Any) -> list[nn.Module]:
    options.setdefault("padding", kernel // 2)
    convolution = nn.Conv2d(inputs, channels, kernel, bias=not batch_norm, **options)
    return [convolution, *([nn.BatchNorm2d(channels)] if batch_norm else []), nn.ReLU()]


def _vgg(wide: Callable[[int], int], *, batch_norm: bool) -> nn.Sequential:
    made: list[nn.Module] = []
    channels = 3
    for index, stage in enumerate(VGG16_WIDTHS):
        made += [nn.MaxPool2d(2)] if index else []
        for width in stage:
            made += _layers(channels, wide(width), 3, batch_norm=batch_norm)
            channels = wide(width)
    return nn.Sequential(*made)
