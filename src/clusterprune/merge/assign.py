# pyright: reportUnknownMemberType=false
"""Merges that give every removed channel to one kept channel, or to none: drop, add, scaled add."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from clusterprune.errors import ArgumentError
from clusterprune.graph import ChannelGraph, Group
from clusterprune.merge._base import Kept, Moments, OfGroups
from clusterprune.plan import Merge


@dataclass(frozen=True)
class Drop(OfGroups):
    """Nothing: what is removed is gone, as in the released code of ICP and ACP."""

    name: ClassVar[str] = "drop"
    by_cluster: ClassVar[bool] = False
    needs_images: ClassVar[bool] = False

    def merge(self, graph: ChannelGraph, group: Group, kept: Kept, moments: Moments) -> Merge:
        """Return a merge without matrices."""
        return Merge(group.name, kept.channels)


@dataclass(frozen=True)
class Add(OfGroups):
    """The columns of a consumer that read a cluster are added up (channel addition, CP Eq. 8)."""

    name: ClassVar[str] = "add"
    by_cluster: ClassVar[bool] = True
    needs_images: ClassVar[bool] = False

    def merge(self, graph: ChannelGraph, group: Group, kept: Kept, moments: Moments) -> Merge:
        """Return a merge in which each channel becomes its representative."""
        mixing = add(representative_of(kept), kept.channels)
        return Merge(group.name, kept.channels, {use.path: mixing for use in group.consumers if use.mixable})


@dataclass(frozen=True)
class ScaledAdd(OfGroups):
    """Channel addition with a positive factor for each channel, found from what the consumer reads."""

    name: ClassVar[str] = "scaled_add"
    by_cluster: ClassVar[bool] = True
    needs_images: ClassVar[bool] = True

    def merge(self, graph: ChannelGraph, group: Group, kept: Kept, moments: Moments) -> Merge:
        """Return a merge in which each channel becomes a multiple of its representative."""
        mixing: dict[str, Tensor] = {}
        for use in group.consumers:
            if (read := moments(use)) is not None:
                index = torch.from_numpy(read[1].positions[:, 0])
                mixing[use.path] = scaled_add(representative_of(kept), kept.channels, read[0][index][:, index])
        return Merge(group.name, kept.channels, mixing)


def representative_of(kept: Kept) -> np.ndarray:
    """Return which kept channel stands for each.

    Raises
    ------
    ArgumentError
        If that is not known.
    """
    if kept.representative is None:
        raise ArgumentError("channels can only be added where clusters say to which; use drop or least_squares")
    return kept.representative


def drop(channels: int, kept: np.ndarray) -> Tensor:
    """Return the mixing matrix that simply drops the removed channels: a 0/1 selection (channels, k)."""
    mixing = torch.zeros(channels, len(kept))
    mixing[torch.from_numpy(kept), torch.arange(len(kept))] = 1
    return mixing


def add(representative: np.ndarray, kept: np.ndarray) -> Tensor:
    """Return the mixing matrix of channel addition (CP, Eq. 8): each channel becomes its representative.

    Exact where channels of a cluster are identical.

    Parameters
    ----------
    representative
        For every channel the kept channel that stands for it, shape (channels,); a kept one stands for itself.
    kept
        Kept channels, ascending.
    """
    mixing = torch.zeros(len(representative), len(kept))
    mixing[torch.arange(len(representative)), torch.from_numpy(np.searchsorted(kept, representative))] = 1
    return mixing


def scaled_add(representative: np.ndarray, kept: np.ndarray, moments: Tensor) -> Tensor:
    """Return channel addition with a positive factor per channel, a = ⟨F, F_rep⟩ / ⟨F_rep, F_rep⟩.

    Exact through ReLU where folded filters are proportional.

    Parameters
    ----------
    moments
        Second moments of the group's channels, (channels, channels).
    """
    whole = torch.from_numpy(representative)
    index = torch.arange(len(representative))
    factor = moments[index, whole] / moments[whole, whole].clamp_min(1e-30)
    return add(representative, kept) * factor.clamp_min(0).float()[:, None]
