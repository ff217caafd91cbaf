"""Random windows of images: the resized crops that ImageNet networks are trained on (Szegedy et al. 2015)."""

import math

import torch
from torch import Tensor
from torch.nn import functional

SMALLEST_AREA = 0.08
"""Least share of an image's area that a window has."""
MOST_STRETCHED = 4 / 3
"""Greatest ratio of a window's sides, either way."""
DRAWS = 5
"""Numbers in [0, 1) that a crop takes: area, ratio of the sides, place across and down, and whether to mirror."""


def windows(draws: Tensor, height: int, width: int) -> Tensor:
    """Return where windows lie in an image, as shares of its sides.

    Parameters
    ----------
    draws
        (n, 5); see `DRAWS`.
    height, width
        Of the image, in pixels.

    Returns
    -------
    Tensor
        Left, top, width and height, each in [0, 1]: (n, 4). A window that would be longer than the image ends with it.
    """
    area = SMALLEST_AREA + (1 - SMALLEST_AREA) * draws[:, 0]
    stretch = ((2 * draws[:, 1] - 1) * math.log(MOST_STRETCHED)).exp() * height / width
    sides = torch.stack([(area * stretch).sqrt(), (area / stretch).sqrt()], 1).clamp(max=1)
    return torch.cat([draws[:, 2:4] * (1 - sides), sides], 1)


def mirrored(draws: Tensor) -> Tensor:
    """Return which crops are mirrored: half of them, bool (n,)."""
    return draws[:, 4] < 0.5


def resized_crop(images: Tensor, draws: Tensor) -> Tensor:
    """Take a window of each image, bring it to the size of the whole by linear interpolation, and mirror half of them.

    Parameters
    ----------
    images
        (n, c, h, w) of any data type, on any device.
    draws
        (n, 5); see `DRAWS`.
    """
    if not len(images):
        return images.clone()
    corner, sides = windows(draws, *images.shape[-2:]).split(2, 1)
    # In coordinates from -1 to 1, half the length of a side is its share of the image's.
    middle = 2 * corner + sides - 1
    across, down = sides.unbind(1)
    across = torch.where(mirrored(draws), -across, across)
    zero = torch.zeros_like(down)
    maps = torch.stack([torch.stack([across, zero, middle[:, 0]], 1), torch.stack([zero, down, middle[:, 1]], 1)], 1)
    grid = functional.affine_grid(maps.to(images.device), list(images.shape), align_corners=False)
    floating = images if images.is_floating_point() else images.float()
    found = functional.grid_sample(floating, grid.to(floating.dtype), padding_mode="border", align_corners=False)
    return found if images.is_floating_point() else found.round().to(images.dtype)
