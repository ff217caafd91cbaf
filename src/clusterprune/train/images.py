"""Where batches of images come from: the device's memory, or a split read again in every epoch."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from clusterprune.data import Split
from clusterprune.data.crops import resized_crop
from clusterprune.errors import ArgumentError

Targets = Callable[[Tensor], Any]
"""Puts the targets of a batch together, from the images' positions; see :meth:`clusterprune.tasks.Task.targets`."""


class Source(Protocol):
    """Images that can be read in batches, in any order.

    Attributes
    ----------
    count
        How many there are.
    shape
        Channels, height and width.
    targets
        Puts the targets of a batch together, on the CPU.
    """

    count: int
    shape: tuple[int, int, int]
    targets: Targets

    def batches(self, order: Tensor, batch_size: int, crops: Tensor | None = None) -> Iterator[tuple[Tensor, Any]]:
        """Yield images (b, c, h, w) uint8 and their targets on the device, in this order.

        With the draws of a :func:`clusterprune.data.crops.resized_crop` for each, (n, 5), a window of each.
        """
        ...


class InMemory:
    """All images of a split, decoded once and kept on the device.

    Files that cannot be read are replaced as `Split.images` does.

    Attributes
    ----------
    images
        (n, c, h, w) uint8, on the device.
    """

    def __init__(self, split: Split, targets: Targets, device: torch.device) -> None:
        self.images = split.images().to(device)
        self.count, self.shape, self.targets = len(split), split.shape, targets

    def batches(self, order: Tensor, batch_size: int, crops: Tensor | None = None) -> Iterator[tuple[Tensor, Any]]:
        """Yield images (b, c, h, w) uint8 and their targets on the device, in this order."""
        device = self.images.device
        there = order.to(device).split(batch_size)
        for number, (positions, indices) in enumerate(zip(order.split(batch_size), there, strict=True)):
            images = self.images[indices]
            if crops is not None:
                start = number * batch_size
                images = resized_crop(images, crops[start : start + len(indices)])
            yield images, _moved(self.targets(positions), device)


class Streamed:
    """Images of a split, decoded anew in every pass. Files that cannot be read are left out."""

    def __init__(self, split: Split, targets: Targets, device: torch.device) -> None:
        self._split = split.numbered()
        self._device = device
        self.count, self.shape, self.targets = len(split), split.shape, targets

    def batches(self, order: Tensor, batch_size: int, crops: Tensor | None = None) -> Iterator[tuple[Tensor, Any]]:
        """Yield images (b, c, h, w) uint8 and their targets on the device, in this order."""
        for images, positions in self._split.subset(order).batches(batch_size, crops=crops):
            yield images.to(self._device), _moved(self.targets(positions), self._device)


def source(
    split: Split, targets: Targets, *, name: str, channels: int, device: torch.device, limit: float, crops: bool = False
) -> Source:
    """Return a split as a source: in memory when it takes at most `limit` bytes and may stay as it is.

    Parameters
    ----------
    name
        The argument that errors name.
    channels
        Length of the mean; images must have as many channels, or one.
    crops
        Whether random windows are wanted, which are of whole files where images are files.

    Raises
    ------
    ArgumentError
        The images have another number of channels.
    """
    size = torch.Size(split.shape).numel() * len(split)
    if split.shape[0] not in (1, channels):
        raise ArgumentError(
            f"{name} has images of {split.shape[0]} channels, but mean and std have {channels} "
            "values; pass one value per channel"
        )
    streamed = size > limit or (crops and split.in_files)
    return (Streamed if streamed else InMemory)(split, targets, device)


def _moved(targets: Any, device: torch.device) -> Any:
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device, non_blocking=True), targets)
