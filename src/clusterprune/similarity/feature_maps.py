"""Channels compared by what they compute: their mean feature maps (ICP, ACP)."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from clusterprune.errors import ArgumentError
from clusterprune.similarity._base import (
    METRICS,
    Metric,
    as_rows,
    check_choice,
    check_finite,
    pairwise_distances,
)

Place = Literal["conv_output", "consumer_input"]
PLACES: tuple[Place, ...] = get_args(Place)


class MeanMaps:
    """The mean feature map of every channel, gathered batch by batch.

    Sums are kept in float64, so the result does not depend on how the samples were split, up to
    rounding, and only one batch of maps is in memory at a time.

    Examples
    --------
    >>> gathered = MeanMaps()
    >>> gathered.update(torch.ones(2, 3, 4, 4))
    >>> gathered.update(torch.zeros(2, 3, 4, 4))
    >>> gathered.mean.shape, gathered.mean.unique().item()
    (torch.Size([3, 4, 4]), 0.5)
    """

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._count = 0

    @property
    def count(self) -> int:
        """Number of samples seen."""
        return self._count

    @property
    def mean(self) -> Tensor:
        """Mean over the samples: (c, ...) float64. Raises ArgumentError before the first batch."""
        if self._total is None:
            raise ArgumentError("MeanMaps has seen 0 samples; call update(batch) before reading mean.")
        return self._total / self._count

    def update(self, batch: Tensor) -> None:
        """Add the maps of a batch: (s, c, h, w), (s, c), or any other (s, c, ...).

        Raises
        ------
        ArgumentError
            The batch is empty, holds NaN or Inf, or its channels or map size differ from the
            batches before. The batches before are kept as they were.
        """
        if batch.ndim < 2 or batch.numel() == 0:
            raise ArgumentError(
                "maps must have shape (samples, channels, ...) with at least one of each, but got "
                f"{tuple(batch.shape)}."
            )
        shape = batch.shape[1:]
        if self._total is not None and self._total.shape != shape:
            raise ArgumentError(
                f"maps of one layer must all have the same size, but got {tuple(shape)} after "
                f"{tuple(self._total.shape)}; resize the images to one size."
            )
        batch = batch.detach()
        if batch.device.type == "mps":  # no float64 there
            batch = batch.cpu()
        total = batch.sum(dim=0, dtype=torch.float64)
        check_finite("maps, summed over the samples,", total)
        self._total = total if self._total is None else self._total + total.to(self._total.device)
        self._count += batch.shape[0]


@dataclass(frozen=True)
class FeatureMaps:
    """Distance between mean feature maps (ACP Eq. 1).

    Each channel's map is averaged over the samples and flattened; with the default metric

        d(i, j) = 1 − cos( (1/s) Σ_r M_r[i] , (1/s) Σ_r M_r[j] )

    The paper prints |cos|, which is a similarity; the released code of ICP and ACP clusters on 1 −
    cos. ``metric="abs_cosine"`` is 1 − |cos|: it also puts a map and its negative together. The
    other metrics are those of ACP Fig. 8. For maps of a single pixel, (s, c), cosine only sees the
    sign.

    Parameters
    ----------
    metric
        One of ``cosine``, ``abs_cosine``, ``euclidean``, ``manhattan``, ``chebyshev``.
    at
        Where the caller takes the maps: ``conv_output``, the raw output of the convolution before
        batch norm, as in the papers; or ``consumer_input``, what the next layer reads.

    Raises
    ------
    ArgumentError
        An option has a value outside its list.
    """

    metric: Metric = "cosine"
    at: Place = "conv_output"

    name: ClassVar[str] = "feature_maps"
    reads: ClassVar[Literal["maps", "weights"]] = "maps"

    def __post_init__(self) -> None:
        check_choice("metric", self.metric, METRICS)
        check_choice("at", self.at, PLACES)

    def vectors(self, maps: Tensor | MeanMaps, /) -> Tensor:
        """Return the flattened mean map of every channel.

        Parameters
        ----------
        maps
            Maps of s samples, (s, c, h, w) or (s, c), or a :class:`MeanMaps` that has seen them.

        Returns
        -------
        Tensor
            (c, h·w) float64; (c, 1) for maps without a spatial extent.

        Raises
        ------
        ArgumentError
            There are no samples or channels, or a value is not finite.
        """
        if not isinstance(maps, MeanMaps):
            gathered = MeanMaps()
            gathered.update(maps)
            maps = gathered
        return as_rows("maps", maps.mean)

    def distances(self, maps: Tensor | MeanMaps, /) -> Tensor:
        """Return (c, c) float64 distances between mean maps; takes and raises what vectors does."""
        return pairwise_distances(self.vectors(maps), self.metric)
