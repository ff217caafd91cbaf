"""Random crops and flips of a whole batch at once, each image with its own draw."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from clusterprune.errors import ArgumentError
from clusterprune.train.config import Augmentation

SMALLEST_AREA = 0.08
MOST_STRETCHED = 4 / 3
"""Of a resized crop: least share of the image, and greatest ratio of its sides (Szegedy et al. 2015)."""


def padding_for(size: int) -> int:
    """Return the crop's padding in pixels: 4 at the 32 pixels of CIFAR, and in proportion."""
    return max(1, round(size / 8))


def augment(
    images: Tensor, kind: Augmentation, generator: torch.Generator, total: int | None = None, share: slice | None = None
) -> Tensor:
    """Change each image of a batch at random.

    - ``"crop_flip"``: shift it within a black border, and mirror half of the images; ``"crop"`` does not mirror.
    - ``"resized_crop_flip"``: take a part of it, between 8 and 100 % of its area and up to 4 : 3 out of proportion, to
      the size of the whole, and mirror half of the images; the usual choice for ImageNet.

    Parameters
    ----------
    images
        (n, c, h, w) of any data type, on any device.
    kind
        ``"crop_flip"``, ``"crop"``, ``"resized_crop_flip"`` or ``"none"``.
    generator
        A CPU generator, so that the draws do not depend on the device.
    total, share
        Draw for `total` images, and take the draws of this share of them for `images`. Several
        processes then draw what one would.

    Returns
    -------
    Tensor
        Of the same shape, data type and device. `images` itself when `kind` is ``"none"``.
    """
    if kind == "none":
        return images
    if kind not in ("crop", "crop_flip", "resized_crop_flip"):
        raise ArgumentError(f"augment must be 'crop_flip', 'crop', 'resized_crop_flip' or 'none', but got {kind!r}")
    count, _, height, width = images.shape
    drawn = count if total is None else total
    mine = torch.arange(drawn)[share or slice(None)][:count]
    if kind == "resized_crop_flip":
        return _resized_crop(images, torch.rand(drawn, 5, generator=generator)[mine])
    pad_y, pad_x = padding_for(height), padding_for(width)
    top = torch.randint(2 * pad_y + 1, (drawn, 1), generator=generator)[mine]
    left = torch.randint(2 * pad_x + 1, (drawn, 1), generator=generator)[mine]
    columns = torch.arange(width).expand(count, width)
    if kind == "crop_flip":
        flipped = torch.rand(drawn, 1, generator=generator)[mine] < 0.5
        columns = torch.where(flipped, columns.flip(1), columns)
    rows = (top + torch.arange(height)).to(images.device, non_blocking=True)
    columns = (left + columns).to(images.device, non_blocking=True)
    # Crop and flip are one gather. With the channels last it moves whole pixels, and its result
    # already has the memory format that convolutions prefer.
    padded = functional.pad(images, (pad_x, pad_x, pad_y, pad_y)).permute(0, 2, 3, 1)
    picked = torch.arange(count, device=images.device)
    return padded[picked[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _resized_crop(images: Tensor, draws: Tensor) -> Tensor:
    """Take a part of each image, bring it to the size of the whole by linear interpolation, and mirror half of them.

    Parameters
    ----------
    draws
        Area, proportion, place across and down, and mirroring, each in [0, 1): (n, 5).
    """
    if not len(images):
        return images.clone()
    area = SMALLEST_AREA + (1 - SMALLEST_AREA) * draws[:, 0]
    stretch = ((2 * draws[:, 1] - 1) * math.log(MOST_STRETCHED)).exp()
    across, down = (area * stretch).sqrt().clamp(max=1), (area / stretch).sqrt().clamp(max=1)
    # In coordinates from -1 to 1: half the length of a side is its share of the image's.
    place = (2 * draws[:, 2:4] - 1) * (1 - torch.stack([across, down], 1))
    across = torch.where(draws[:, 4] < 0.5, -across, across)
    zero = torch.zeros_like(down)
    maps = torch.stack([torch.stack([across, zero, place[:, 0]], 1), torch.stack([zero, down, place[:, 1]], 1)], 1)
    grid = functional.affine_grid(maps.to(images.device), list(images.shape), align_corners=False)
    floating = images if images.is_floating_point() else images.float()
    found = functional.grid_sample(floating, grid.to(floating.dtype), padding_mode="border", align_corners=False)
    return found if images.is_floating_point() else found.round().to(images.dtype)
