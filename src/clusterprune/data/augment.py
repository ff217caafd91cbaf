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


def draw(kind: Augmentation, count: int, size: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Draw what :func:`augmented` does to `count` images: tensors on the CPU, a row an image.

    Parameters
    ----------
    kind
        See :func:`augment`.
    size
        Height and width of the images, in pixels.
    generator
        A CPU generator.

    Returns
    -------
    tuple
        Nothing for ``"none"``; draws (n, 5) of a :func:`clusterprune.data.crops.resized_crop`; or the first row and
        column of a crop, int64 (n, 1) each, and with ``"crop_flip"`` whether to mirror, bool (n, 1).

    Raises
    ------
    ArgumentError
        `kind` is none of these.
    """
    if kind == "none":
        return ()
    if kind == "resized_crop_flip":
        return (torch.rand(count, DRAWS, generator=generator),)
    if kind not in ("crop", "crop_flip"):
        raise ArgumentError(f"augment must be 'crop_flip', 'crop', 'resized_crop_flip' or 'none', but got {kind!r}")
    pad_y, pad_x = (padding_for(side) for side in size)
    top = torch.randint(2 * pad_y + 1, (count, 1), generator=generator)
    left = torch.randint(2 * pad_x + 1, (count, 1), generator=generator)
    if kind == "crop":
        return top, left
    return top, left, torch.rand(count, 1, generator=generator) < 0.5


def augmented(images: Tensor, kind: Augmentation, draws: tuple[Tensor, ...]) -> Tensor:
    """Change a batch by what :func:`draw` drew for it, on any device; nothing here waits for the device.

    Returns
    -------
    Tensor
        Of the shape, data type and device of `images`; `images` itself when `kind` is ``"none"``.
    """
    if kind == "none":
        return images
    if kind == "resized_crop_flip":
        return resized_crop(images, *draws)
    count, _, height, width = images.shape
    top, left, *flips = (draw.to(images.device, non_blocking=True) for draw in draws)
    columns = torch.arange(width, device=images.device).expand(count, width)
    if flips:
        columns = torch.where(flips[0], columns.flip(1), columns)
    rows, columns = top + torch.arange(height, device=images.device), left + columns
    # Crop and flip are one gather. With the channels last it moves whole pixels, and its result
    # already has the memory format that convolutions prefer.
    pad_y, pad_x = padding_for(height), padding_for(width)
    padded = functional.pad(images, (pad_x, pad_x, pad_y, pad_y)).permute(0, 2, 3, 1)
    picked = torch.arange(count, device=images.device)
    return padded[picked[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


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
    count, _, height, width = images.shape
    drawn = draw(kind, count if total is None else total, (height, width), generator)
    mine = share or slice(None)
    return augmented(images, kind, tuple(one[mine][:count] for one in drawn))
