# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
r"""Which channels the others can stand in for: backward elimination under least squares.

A consumer computes Y = X W from inputs with second moments G = E[XᵀX]. Once some inputs are gone and the
rest solves the regression anew, removing one more channel j (a block of rows, one per kernel tap) raises
the squared error by

.. math:: \Delta_j = \operatorname{tr}\bigl(B_j^\top H_{jj}^{-1} B_j\bigr),\qquad H = G^{-1},\; B = W\text{ refitted}

(the block form of Hassibi and Stork's Optimal Brain Surgeon, 1993). Both H and B are updated in place after
every removal, so the whole path from all channels to one costs about as much as one matrix inversion.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clusterprune.merge.least_squares import positive_factor


@dataclass(frozen=True, eq=False)
class LayerInput:
    """What one consumer reads of a group.

    Attributes
    ----------
    moments
        G, shape (channels · taps, channels · taps), float64, channel by channel.
    weight
        W, shape (channels · taps, outputs), each output scaled by the square root of its importance.
    taps
        Rows per channel.
    rows
        From how many rows of inputs G was estimated; None if it is exact.
    """

    moments: Tensor
    weight: Tensor
    taps: int
    rows: int | None = None


@dataclass(frozen=True, eq=False)
class RemovalOrder:
    """An order of removal and what it costs.

    Attributes
    ----------
    order
        Channels in the order in which they go, shape (removable,).
    loss
        Loss after 0, 1, 2, … removals, shape (removable + 1,), non-decreasing.
    """

    order: np.ndarray
    loss: np.ndarray


def eliminate(
    inputs: list[LayerInput],
    *,
    blocks: np.ndarray | None = None,
    keep: int = 1,
    damping: float = 1e-3,
) -> RemovalOrder:
    """Remove channels, always those whose loss the others make good best.

    Parameters
    ----------
    inputs
        One per consumer of the group; their losses add up.
    blocks
        Block of each channel; all blocks lose channels in step.
    keep
        Channels that stay in every block.
    damping
        Ridge added to every G, relative to its mean diagonal.
    """
    channels = inputs[0].moments.shape[0] // inputs[0].taps
    block = torch.zeros(channels, dtype=torch.long) if blocks is None else torch.from_numpy(blocks)
    n_blocks = int(block.max()) + 1
    states = [_State(one, damping) for one in inputs]
    alive = torch.ones(channels, dtype=torch.bool)
    order: list[int] = []
    loss = [0.0]
    while int(alive.sum()) > keep * n_blocks:
        total = torch.stack([state.costs() for state in states]).sum(0)
        total[~alive] = torch.inf
        # Wide groups lose several channels between two looks; the last few go one at a time.
        left = int(alive.sum()) // n_blocks
        looks = _LOOKS if channels <= _WIDE else _LOOKS // 2
        at_once = min(max(1, left // looks), left - keep)
        gone = torch.cat([_cheapest(total, block == number, at_once) for number in range(n_blocks)])
        before = sum(state.error() for state in states)
        for state in states:
            state.remove(gone)
        rise = max(float(sum(state.error() for state in states)) - float(before), 0.0)
        gone = gone.view(n_blocks, -1).T.reshape(-1)
        order += gone.tolist()
        loss += [loss[-1] + rise * (i + 1) / len(gone) for i in range(len(gone))]
        alive[gone] = False
    return RemovalOrder(np.array(order, dtype=np.int64), np.array(loss))


_LOOKS = 48
"""Costs are looked at anew after about 1/48 of a block's remaining channels went; in wide groups half as often."""
_WIDE = 256
_SHRINK = 0.8
"""Matrices are made smaller when no more than this share of their channels is left."""


def _cheapest(total: Tensor, inside: Tensor, count: int) -> Tensor:
    """Return the `count` cheapest channels of one block, cheapest first."""
    return torch.where(inside, total, torch.inf).topk(count, largest=False, sorted=True).indices


class _State:
    """H and B of one consumer while its channels go.

    Both are kept for the channels in `inside` only. What is gone is neutral (an identity block and zero rows) until
    so much is gone that smaller matrices pay.
    """

    def __init__(self, one: LayerInput, damping: float) -> None:
        moments, weight = one.moments.double(), one.weight.double()
        size, outputs = weight.shape
        self.inverse = torch.cholesky_inverse(positive_factor(moments, ridge_of(one, damping)))
        # Only B Bᵀ matters for the costs, so a wide B may be exchanged for a square one with the same.
        self.weight = weight.clone() if outputs <= size else torch.linalg.qr(weight.T, mode="r").R.T
        self.taps = one.taps
        self.channels = size // one.taps
        self.inside = torch.arange(self.channels)
        self.alive = torch.ones(self.channels, dtype=torch.bool)
        self._error = 0.0

    def costs(self) -> Tensor:
        """Return Δ for every channel, shape (channels,); meaningless for those already gone."""
        count, taps = len(self.inside), self.taps
        if taps == 1:
            found = self.weight.square().sum(1) / self.inverse.diagonal().clamp_min(1e-30)
        else:
            index = torch.arange(count)
            blocks = self.inverse.view(count, taps, count, taps)[index, :, index]
            rows = self.weight.view(count, taps, -1)
            found = (rows * torch.linalg.solve(blocks, rows)).sum((1, 2))
        return torch.zeros(self.channels, dtype=found.dtype).index_copy_(0, self.inside, found)

    def error(self) -> float:
        """Return the squared error so far."""
        return self._error

    def remove(self, gone: Tensor) -> None:
        """Take channels out and let the others take over their work."""
        rows = self._rows(torch.searchsorted(self.inside, gone))
        column = self.inverse[:, rows]
        corner = column[rows]
        gain = torch.linalg.solve(corner, column.T)
        lost = self.weight[rows]
        self._error += float((lost * torch.linalg.solve(corner, lost)).sum())
        self.weight.addmm_(gain.T, lost, alpha=-1)
        self.inverse.addmm_(column, gain, alpha=-1)
        # What is gone must neither act nor divide by zero any more.
        self.inverse[rows] = 0
        self.inverse[:, rows] = 0
        self.inverse[rows, rows] = 1
        self.weight[rows] = 0
        self.alive[gone] = False
        left = self.alive[self.inside]
        if int(left.sum()) < _SHRINK * len(left):
            rows = self._rows(left.nonzero().squeeze(1))
            self.inverse, self.weight = self.inverse[rows][:, rows], self.weight[rows]
            self.inside = self.inside[left]

    def _rows(self, channels: Tensor) -> Tensor:
        return (channels[:, None] * self.taps + torch.arange(self.taps)).reshape(-1)


def ridge_of(one: LayerInput, damping: float) -> Tensor:
    """Return what is added to the diagonal of G, shape (channels · taps,).

    Beside `damping`, relative to the mean power of the inputs, as much again as moments from few rows leave open: n
    rows of p inputs that have nothing to do with each other show eigenvalues spread over sqrt(p / n) of their mean.
    """
    moments = one.moments.double()
    size = len(moments)
    uncertain = 0.0 if one.rows is None else SHRINKAGE * size / max(one.rows, 1)
    return ((damping + uncertain) * moments.diagonal().mean().clamp_min(1e-12)).expand(size)


SHRINKAGE = 0.1
"""Ridge per unknown and row, relative to the mean power of the inputs."""


def refitted(
    inputs: list[LayerInput], order: np.ndarray, levels: Collection[int], *, damping: float = 1e-3
) -> dict[int, list[Tensor]]:
    """Return every input's weights as the remaining channels would have them, after some numbers of removals.

    Parameters
    ----------
    inputs
        One per consumer of the group; their moments may be of other images than those by which the order was found.
    order
        Channels in the order in which they go.
    levels
        After how many removals; rows of removed channels are zero.
    """
    found: dict[int, list[Tensor]] = {}
    for level in sorted(set(levels)):
        alive = torch.ones(inputs[0].moments.shape[0] // inputs[0].taps, dtype=torch.bool)
        alive[torch.from_numpy(order[:level])] = False
        channels = alive.nonzero().squeeze(1)
        found[level] = []
        for one in inputs:
            inside = (channels[:, None] * one.taps + torch.arange(one.taps)).reshape(-1)
            moments, original, ridge = one.moments.double(), one.weight.double(), ridge_of(one, damping)
            factor = positive_factor(moments[inside][:, inside], ridge[inside])
            # The ridge pulls to the original weights.
            wanted = moments[inside] @ original + ridge[inside, None] * original[inside]
            solved = torch.zeros_like(original)
            solved[inside] = torch.cholesky_solve(wanted, factor)
            found[level].append(solved)
    return found
