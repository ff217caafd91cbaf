# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Least squares: every removed channel becomes the best linear combination of the kept ones."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from clusterprune.arguments import check_number
from clusterprune.errors import ArgumentError
from clusterprune.graph import ChannelGraph, Group, ParameterSlice
from clusterprune.merge._base import Kept, Moments, OfGroups
from clusterprune.plan import Merge
from clusterprune.surgery.bias_homes import bias_home


@dataclass(frozen=True)
class LeastSquares(OfGroups):
    """Each consumer rebuilds all channels from the kept ones as well as it can.

    Attributes
    ----------
    ridge
        Relative to the mean power of the kept channels, above 0.
    """

    ridge: float = 1e-3

    name: ClassVar[str] = "least_squares"
    by_cluster: ClassVar[bool] = False
    needs_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the ridge."""
        check_number("ridge", self.ridge)
        if not self.ridge > 0:
            raise ArgumentError(f"ridge must be above 0, but got ridge={self.ridge!r}; 1e-3 is usual")

    def merge(self, graph: ChannelGraph, group: Group, kept: Kept, moments: Moments) -> Merge:
        """Return a merge with the matrices, and the offsets where a consumer can take them up."""
        mixing: dict[str, Tensor] = {}
        offset: dict[str, Tensor] = {}
        for use in group.consumers:
            read = moments(use)
            if read is None or use.path in mixing:
                continue
            home = bias_home(graph, use.path)
            mixing[use.path], constant = mixing_matrix(*read, kept.channels, offset=home is not None, ridge=self.ridge)
            if home is not None:
                offset[use.path] = constant
        return Merge(group.name, kept.channels, mixing, offset)


def mixing_matrix(
    moments: Tensor, use: ParameterSlice, kept: np.ndarray, *, offset: bool, ridge: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """Regress all channels of a group on the kept ones.

    Parameters
    ----------
    moments
        Second moments of a consumer's input channels with a constant appended, (inputs + 1, inputs + 1).
    use
        Where the group sits in the consumer. Channels that fill several inputs are averaged over them;
        channels of different convolution groups are never mixed.
    kept
        Kept channels, ascending.
    offset
        Whether the consumer can take up a constant; without it the regression passes through zero.
    ridge
        Relative to the mean diagonal of the kept channels' moments.

    Returns
    -------
    tuple
        mixing (channels, k) and offset (channels,), float32.
    """
    channels, multiplicity = use.positions.shape
    gram = torch.zeros(channels, channels, dtype=torch.float64)
    mean = torch.zeros(channels, dtype=torch.float64)
    for t in range(multiplicity):
        index = torch.from_numpy(use.positions[:, t])
        gram += moments[index][:, index] / multiplicity
        mean += moments[index, -1] / multiplicity
    if offset:
        gram = gram - torch.outer(mean, mean)
    block = np.zeros(channels, dtype=int)
    if use.groups > 1:
        block = use.positions[:, 0] // ((len(moments) - 1) // use.groups)
    mixing = torch.zeros(channels, len(kept), dtype=torch.float64)
    for number in np.unique(block):
        columns = np.flatnonzero(block[kept] == number)
        if not len(columns):
            continue
        members = torch.from_numpy(np.flatnonzero(block == number))
        survivors = torch.from_numpy(kept[columns])
        small = gram[survivors][:, survivors]
        small = small + (ridge * small.diagonal().mean() + 1e-12) * torch.eye(len(small), dtype=torch.float64)
        mixing[members[:, None], torch.from_numpy(columns)[None]] = torch.linalg.solve(
            small, gram[survivors][:, members]
        ).T
    # A kept channel stands for itself, exactly.
    mixing[torch.from_numpy(kept)] = torch.eye(len(kept), dtype=torch.float64)
    constant = mean - mixing @ mean[torch.from_numpy(kept)] if offset else torch.zeros_like(mean)
    return mixing.float(), constant.float()


def positive_factor(gram: Tensor, ridge: Tensor) -> Tensor:
    """Return the Cholesky factor of gram + diag(ridge).

    Moments that were multiplied in float32 can miss being positive definite by rounding; then the ridge is
    raised tenfold until they are.

    Raises
    ------
    ArgumentError
        If no ridge helps, because the moments hold NaN or infinity.
    """
    for _ in range(8):
        factor, failed = torch.linalg.cholesky_ex(gram + torch.diag(ridge))
        if not int(failed) and bool(torch.isfinite(factor).all()):
            return factor
        ridge = ridge * 10
    raise ArgumentError("the layer inputs hold NaN or infinity, or overflow; check the images and the weights")


class Ridge:
    """Minimise ‖X W − T‖² + λ‖W − prior‖² for one X and any T, with λ = ridge · mean diagonal of XᵀX.

    Parameters
    ----------
    gram
        XᵀX (inputs, inputs), float64.
    prior
        What W is pulled to, (inputs, outputs).
    constant
        Whether the last input is the constant 1, which is not pulled.
    """

    def __init__(self, gram: Tensor, prior: Tensor, ridge: float, *, constant: bool) -> None:
        """Factor XᵀX + λ once."""
        penalty = torch.full((len(gram),), ridge * float(gram.diagonal()[: len(gram) - constant].mean()) + 1e-12)
        penalty = penalty.double()
        if constant:
            penalty[-1] = 1e-9 * float(gram[-1, -1]) + 1e-12
        self._factor = positive_factor(gram, penalty.to(gram.device))
        self._pull = penalty[:, None].to(gram.device) * prior

    def solve(self, cross: Tensor) -> Tensor:
        """Return W for XᵀT, both (inputs, outputs), float64."""
        return torch.cholesky_solve(cross + self._pull, self._factor)


def dual_ridge_regression(
    rows: Tensor, targets: Tensor, prior: Tensor, ridge: float, *, constant: bool
) -> tuple[Tensor, Tensor]:
    """Solve the problem of :class:`Ridge` where there are fewer rows than inputs.

    W = prior + Xᵀ (X Xᵀ + λ)⁻¹ (T - X prior): a system of as many equations as rows.

    Parameters
    ----------
    rows, targets
        X (rows, inputs) without a constant, and T (rows, outputs).
    prior
        What W is pulled to, (inputs, outputs).
    constant
        Whether a constant is fitted beside W; it is not pulled.

    Returns
    -------
    tuple
        W (inputs, outputs) and the constant (outputs,), zero if none is fitted; float64.
    """
    rows, targets = rows.double(), targets.double()
    centre = rows.mean(0) if constant else rows.new_zeros(rows.shape[1])
    middle = targets.mean(0) if constant else targets.new_zeros(targets.shape[1])
    rows = rows - centre
    penalty = ridge * float(rows.square().sum()) / rows.shape[1] + 1e-12
    factor = positive_factor(rows @ rows.T, torch.full((len(rows),), penalty, dtype=rows.dtype, device=rows.device))
    missing = targets - middle - rows @ prior
    solution = prior + rows.T @ torch.cholesky_solve(missing, factor)
    return solution, middle - centre @ solution
