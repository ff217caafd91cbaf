"""Channels compared by what makes them: their filters (CP)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from clusterprune.errors import ArgumentError
from clusterprune.graph.ops.norm import fold
from clusterprune.similarity._base import (
    METRICS,
    Metric,
    as_rows,
    check_choice,
    pairwise_distances,
)


@dataclass(frozen=True, eq=False)
class BatchNormTensors:
    """The tensors of a batch norm at inference: γ·(x − mean)/√(var + ε) + β.

    Parameters
    ----------
    mean, var
        Running statistics, (c,).
    gamma, beta
        Scale and shift, (c,); None means 1 and 0, a batch norm without affine parameters.
    eps
        The batch norm's own ε.
    """

    mean: Tensor
    var: Tensor
    gamma: Tensor | None = None
    beta: Tensor | None = None
    eps: float = 1e-5

    def folding(self, channels: int) -> tuple[Tensor, Tensor]:
        """Return ``scale`` and ``shift``, both (c,) float64: the batch norm is x · scale + shift.

        Raises
        ------
        ArgumentError
            A tensor does not have ``channels`` finite values, or var + ε is not positive.
        """
        mean = _per_channel("batch_norm.mean", self.mean, channels)
        variance = _per_channel("batch_norm.var", self.var, channels) + self.eps
        if not (variance > 0).all():
            raise ArgumentError(
                f"batch_norm.var + eps must be positive, but got {variance.min().item():.3g}; "
                "running variances cannot be negative, so the weights are damaged."
            )
        affine = {"batch_norm.gamma": self.gamma, "batch_norm.beta": self.beta}
        gamma, beta = (None if v is None else _per_channel(k, v, channels).to(mean.device) for k, v in affine.items())
        return fold(mean, variance.to(mean.device), 0.0, gamma, beta)


@dataclass(frozen=True)
class Filters:
    """Distance between filters, flattened to vectors (CP, clustering step, Eq. 3).

    Parameters
    ----------
    metric
        One of ``euclidean`` (CP), ``cosine``, ``abs_cosine``, ``manhattan``, ``chebyshev``.
    fold_batch_norm
        Compare the channel as the next layer meets it: every filter is multiplied by γ/√(var + ε)
        and the folded bias, β + (b − mean)·γ/√(var + ε), is a further coordinate. Filters that are
        equal after folding give equal channels. A layer without batch norm is its own folding.

    Raises
    ------
    ArgumentError
        The metric is unknown, or fold_batch_norm is not a bool.
    """

    metric: Metric = "euclidean"
    fold_batch_norm: bool = False

    name: ClassVar[str] = "filters"
    reads: ClassVar[Literal["maps", "weights"]] = "weights"

    def __post_init__(self) -> None:
        check_choice("metric", self.metric, METRICS)
        if not isinstance(self.fold_batch_norm, bool):
            raise ArgumentError(
                f"fold_batch_norm must be True or False, but got fold_batch_norm={self.fold_batch_norm!r}."
            )

    def vectors(
        self,
        weight: Tensor,
        /,
        *,
        bias: Tensor | None = None,
        batch_norm: BatchNormTensors | None = None,
    ) -> Tensor:
        """Return every filter as a vector.

        Parameters
        ----------
        weight
            (c, ...), output channels first: transpose the weight of a transposed convolution.
        bias
            The layer's own bias (c,), if it has one. A further coordinate, since two channels with
            equal filters but different biases are different channels.
        batch_norm
            The batch norm behind the layer, if there is one. Read only with ``fold_batch_norm``.

        Returns
        -------
        Tensor
            (c, d) float64: the weights; then one coordinate for the bias if there is one, or always
            when folding.

        Raises
        ------
        ArgumentError
            There is no channel or no weight, sizes do not agree, or a value is not finite.
        """
        rows = as_rows("weight", weight)
        channels = rows.shape[0]
        shift = None if bias is None else _per_channel("bias", bias, channels).to(rows.device)
        if self.fold_batch_norm:
            shift = torch.zeros_like(rows[:, 0]) if shift is None else shift
            if batch_norm is not None:
                scale, offset = (part.to(rows.device) for part in batch_norm.folding(channels))
                rows, shift = rows * scale[:, None], shift * scale + offset
        return rows if shift is None else torch.cat([rows, shift[:, None]], dim=1)

    def distances(
        self,
        weight: Tensor,
        /,
        *,
        bias: Tensor | None = None,
        batch_norm: BatchNormTensors | None = None,
    ) -> Tensor:
        """Return (c, c) float64 distances between filters; takes and raises what vectors does."""
        rows = self.vectors(weight, bias=bias, batch_norm=batch_norm)
        return pairwise_distances(rows, self.metric)


def _per_channel(name: str, values: Tensor, channels: int) -> Tensor:
    if values.shape != (channels,):
        raise ArgumentError(
            f"{name} must have one value for each of the {channels} channels, but got shape {tuple(values.shape)}."
        )
    return as_rows(name, values)[:, 0]
