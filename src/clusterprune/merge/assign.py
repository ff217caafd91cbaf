"""Merges that give every removed channel to one kept channel, or to none: drop, add, scaled add."""

import numpy as np
import torch
from torch import Tensor


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
