"""One rule for bringing an image to a square of a given size."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from clusterprune.errors import ArgumentError

#: From this size on, the ImageNet evaluation convention applies.
CONVENTION_FROM = 96


class Geometry(NamedTuple):
    """Resize to ``height`` x ``width``, then cut a square whose corner is at ``top``, ``left``."""

    height: int
    width: int
    top: int
    left: int


def geometry(height: int, width: int, size: int) -> Geometry:
    """How an image of ``height`` x ``width`` becomes ``size`` x ``size``.

    An image that already is ``size`` x ``size`` is left alone. Otherwise its shorter side is
    resized, keeping the aspect ratio, and the centre is cut out. The shorter side becomes ``size``
    below 96 pixels, and ``size * 256 / 224`` from there on: the convention under which ImageNet
    accuracies are quoted (a 224 crop of a 256 image).
    """
    if height == size and width == size:
        return Geometry(height, width, 0, 0)
    short = size if size < CONVENTION_FROM else int(size * 256 / 224)
    if height <= width:
        new_height, new_width = short, int(short * width / height)
    else:
        new_height, new_width = int(short * height / width), short
    return Geometry(new_height, new_width, round((new_height - size) / 2), round((new_width - size) / 2))


def resize_batch(images: Tensor, size: int) -> Tensor:
    """Bring ``uint8`` images (n, c, h, w) to (n, c, size, size): bilinear, antialiased."""
    height, width = images.shape[-2:]
    target = geometry(height, width, size)
    if (target.height, target.width) != (height, width):
        images = functional.interpolate(images, (target.height, target.width), mode="bilinear", antialias=True)
    rows = slice(target.top, target.top + size)
    return images[..., rows, target.left : target.left + size].contiguous()


def check_size(size: int | None, name: str = "image_size") -> int | None:
    """Return ``size`` when it is a usable image size or None.

    Raises
    ------
    ArgumentError
        When it is not a whole number of at least 1.
    """
    if size is None:
        return None
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ArgumentError(f"{name} must be a whole number of pixels, at least 1, but got {name}={size!r}.")
    return size


def empty_images(count: int, shape: tuple[int, int, int]) -> Tensor:
    """Uninitialised room for ``count`` ``uint8`` images of ``shape`` (c, h, w)."""
    return torch.empty((count, *shape), dtype=torch.uint8)
