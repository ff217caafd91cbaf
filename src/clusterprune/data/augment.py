"""Random crops and flips of a whole batch at once, each image with its own draw."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from clusterprune.data.crops import DRAWS, resized_crop
from clusterprune.errors import ArgumentError

Augmentation = Literal["crop_flip", "crop", "resized_crop_flip", "none"]


def padding_for(size: int) -> int:
    """Return the crop's padding in pixels: 4 at the 32 pixels of CIFAR, and in proportion."""
    return max(1, round(size / 8))


def augment(
    images: Tensor, kind: Augmentation, generator: torch.Generator, total: int | None = None, share: slice | None = None
) -> Tensor:
    """Change each image of a batch at random.

    - ``"crop_flip"``: shift it within a black border, and mirror half of the images; ``"crop"`` does not mirror.
    - ``"resized_crop_flip"``: take a part of it, between 8 and 100 % of its area and up to 4 : 3 out of proportion, to
      the size of the whole, and mirror half of the images; the usual choice for ImageNet. In training, images that are
      files are cropped as they are decoded, at their own size and with antialiasing; here, an image is what it is.

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
        return resized_crop(images, torch.rand(drawn, DRAWS, generator=generator)[mine])
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
