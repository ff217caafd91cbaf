"""Where batches of images come from: the device's memory, or a split read again in every epoch."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from clusterprune.data import Split
from clusterprune.data.crops import resized_crop
from clusterprune.errors import ArgumentError

Images = Split | tuple[Tensor, Tensor]


class Source(Protocol):
    """Images that can be read in batches, in any order.

    Attributes
    ----------
    labels
        Class of each image, int64 (n,).
    shape
        Channels, height and width.
    """

    labels: Tensor
    shape: tuple[int, int, int]

    def batches(self, order: Tensor, batch_size: int, crops: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (b, c, h, w) uint8 and labels (b,) on the device, in this order.

        With the draws of a :func:`clusterprune.data.crops.resized_crop` for each, (n, 5), a window of each.
        """
        ...


class InMemory:
    """All images of a split, decoded once and kept on the device.

    Files that cannot be read are replaced as `Split.images` does.
    """

    def __init__(self, split: Split, labels: Tensor, device: torch.device) -> None:
        self._images = split.images().to(device)
        self._labels = labels.to(device)
        self.labels = labels
        self.shape = split.shape

    def batches(self, order: Tensor, batch_size: int, crops: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (b, c, h, w) uint8 and labels (b,) on the device, in this order."""
        for number, indices in enumerate(order.to(self._labels.device).split(batch_size)):
            images = self._images[indices]
            if crops is not None:
                start = number * batch_size
                images = resized_crop(images, crops[start : start + len(indices)])
            yield images, self._labels[indices]


class Streamed:
    """Images of a split, decoded anew in every pass. Files that cannot be read are left out."""

    def __init__(self, split: Split, labels: Tensor, device: torch.device) -> None:
        self._split = split
        self._device = device
        self.labels = labels
        self.shape = split.shape

    def batches(self, order: Tensor, batch_size: int, crops: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (b, c, h, w) uint8 and labels (b,) on the device, in this order."""
        for images, labels in self._split.subset(order).batches(batch_size, crops=crops):
            yield images.to(self._device), labels.to(self._device)


def source(
    images: Images, *, name: str, channels: int, device: torch.device, limit: float, crops: bool = False
) -> Source:
    """Return `images` as a source: in memory when they take at most `limit` bytes and may stay as they are.

    Parameters
    ----------
    images
        A split with labels, or a pair of uint8 images (n, c, h, w) and integer labels (n,).
    name
        The argument that errors name.
    channels
        Length of the mean; images must have as many channels, or one.
    crops
        Whether random windows are wanted, which are of whole files where images are files.

    Raises
    ------
    ArgumentError
        `images` are not uint8 images with a label each, or have another number of channels.
    """
    split = _as_split(images, name)
    labels = split.labels
    if labels is None:
        raise ArgumentError(f"{name} has no labels; training needs a class for every image")
    if len(split) == 0:
        raise ArgumentError(f"{name} holds no images")
    size = torch.Size(split.shape).numel() * len(split)
    if split.shape[0] not in (1, channels):
        raise ArgumentError(
            f"{name} has images of {split.shape[0]} channels, but mean and std have {channels} "
            "values; pass one value per channel"
        )
    streamed = size > limit or (crops and split.in_files)
    return (Streamed if streamed else InMemory)(split, labels, device)


def _as_split(images: Images, name: str) -> Split:
    if isinstance(images, Split):
        return images
    try:
        pixels, labels = images
        # Narrower integers are as good; Split refuses what is no integer.
        whole = not (labels.is_floating_point() or labels.is_complex())
        return Split.from_tensors(pixels, labels.to(torch.int64) if whole else labels)
    except ArgumentError as error:
        raise ArgumentError(f"{name}: {error}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise ArgumentError(
            f"{name} must be a Split or a pair of image and label tensors, but got {type(images).__name__}"
        ) from error
