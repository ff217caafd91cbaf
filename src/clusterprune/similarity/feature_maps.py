"""Channels compared by what they compute: their mean feature maps (ICP, ACP)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from clusterprune.arguments import renamed
from clusterprune.errors import ArgumentError
from clusterprune.graph import ChannelGraph, Group
from clusterprune.graph.images import Images, Progress, as_inputs, batch_size_for, batches
from clusterprune.graph.program import Program, named_tensors
from clusterprune.similarity._base import (
    METRICS,
    ChannelPoints,
    Metric,
    as_rows,
    check_choice,
    check_finite,
    pairwise_distances,
    to_float64,
)

Place = Literal["conv_output", "consumer_input"]
PLACES: tuple[Place, ...] = get_args(Place)


class MeanMaps:
    """The mean feature map of every channel, gathered batch by batch.

    A batch is summed in its own precision and the sums of batches in float64, so the result does not
    depend on how the samples were split, up to rounding, and only one batch of maps is in memory at a time.

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
        total = to_float64(batch.detach().sum(0))
        check_finite("maps, summed over the samples,", total)
        self._total = total if self._total is None else self._total + total.to(self._total.device)
        self._count += batch.shape[0]


@renamed(at="place")
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
    place
        Where the maps are taken: ``conv_output``, the raw output of the convolution before
        batch norm, as in the papers; or ``consumer_input``, what the next layer reads.

    Raises
    ------
    ArgumentError
        An option has a value outside its list.
    """

    metric: Metric = "cosine"
    place: Place = "conv_output"

    name: ClassVar[str] = "feature_maps"

    def __post_init__(self) -> None:
        check_choice("metric", self.metric, METRICS)
        check_choice("place", self.place, PLACES)

    def points(
        self,
        graph: ChannelGraph,
        groups: Sequence[Group],
        images: Images | None,
        progress: Progress | None = None,
    ) -> dict[str, ChannelPoints]:
        """Return every group's mean maps as points, by its name; a channel that several layers make is one long point.

        Raises
        ------
        ArgumentError
            There are no images, a group has no maps, or a value is not finite.
        """
        if images is None:
            raise ArgumentError(
                "images=None does not go with similarity=FeatureMaps, which looks at feature maps; give images, or use "
                "Filters with merging='drop' or 'add'"
            )
        places = {group.name: self._places(graph, group) for group in groups}
        gathered = _gather(graph, images, {name: dim for at in places.values() for name, _, dim in at}, progress)
        rows = {name: self.vectors(maps) for name, maps in gathered.items()}
        found: dict[str, ChannelPoints] = {}
        for name, at in places.items():
            parts = [rows[node][torch.as_tensor(positions)].flatten(1) for node, positions, _ in at]
            vectors = torch.cat(parts, 1).cpu()
            found[name] = ChannelPoints(vectors, pairwise_distances(vectors, self.metric))
        return found

    def _places(self, graph: ChannelGraph, group: Group) -> list[tuple[str, np.ndarray, int]]:
        """Return the values that hold a group's maps: the name, where its channels are, and along which dimension."""
        raw = self.place == "conv_output"
        found = [
            (call.node if raw else call.input, use.positions, call.channel_dim)
            for use in (group.producers if raw else group.consumers)
            for call in graph.calls
            if call.weight == use.path
        ]
        if not found:
            raise ArgumentError(
                f"{group.name} has no feature maps to compare, since only training runs its layers; ignore it "
                f"(ignore=[{group.name!r}]) or use Filters"
            )
        return found

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


def _gather(
    graph: ChannelGraph, images: Images, dims: Mapping[str, int], progress: Progress | None
) -> dict[str, MeanMaps]:
    """Average values of the network over the images, by name, channels first; `dims` says where each has them."""
    program = Program(graph)
    weights = program.weights(named_tensors(graph))
    found = {name: MeanMaps() for name in dims if name in program.index}
    count, done = len(as_inputs(images)[0]), 0
    with torch.no_grad():
        for batch in batches(images, batch_size_for(graph)):
            values: dict[str, Any] = program.bind(batch) | weights
            for name, value in program.visit(values, found):
                found[name].update(value.movedim(dims[name], 1))
            done += len(batch[0])
            if progress:
                progress("mean feature maps", done, count)
    return found
