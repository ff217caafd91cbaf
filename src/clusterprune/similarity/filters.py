"""Channels compared by what makes them: their filters (CP)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from clusterprune.errors import ArgumentError
from clusterprune.graph import ChannelGraph, Group
from clusterprune.graph.images import Images, Progress
from clusterprune.graph.ops.norm import BatchNorm, fold
from clusterprune.graph.program import named_tensors
from clusterprune.similarity._base import (
    METRICS,
    ChannelPoints,
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

    def __post_init__(self) -> None:
        check_choice("metric", self.metric, METRICS)
        if not isinstance(self.fold_batch_norm, bool):
            raise ArgumentError(
                f"fold_batch_norm must be True or False, but got fold_batch_norm={self.fold_batch_norm!r}."
            )

    def points(
        self,
        graph: ChannelGraph,
        groups: Sequence[Group],
        images: Images | None = None,
        progress: Progress | None = None,
    ) -> dict[str, ChannelPoints]:
        """Return all that makes every group's channels as points, by its name; images are not looked at.

        Two channels with equal filters are not equal if their biases, depthwise filters or slopes differ, and a layer
        that is used twice makes its channels twice, maybe with another bias each time.

        Raises
        ------
        ArgumentError
            A value is not finite, or a running variance is negative.
        """
        del images, progress
        tensors = {path: tensor.detach() for path, tensor in named_tensors(graph).items()}
        found: dict[str, ChannelPoints] = {}
        for group in groups:
            vectors = self._vectors_of(graph, group, tensors).cpu()
            found[group.name] = ChannelPoints(vectors, pairwise_distances(vectors, self.metric))
        return found

    def _vectors_of(self, graph: ChannelGraph, group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return a vector for every channel of a group: (channels, values), float64.

        The layers that make the group stand side by side, each as :meth:`vectors` has it, a depthwise layer that
        follows like those. Behind them comes every other parameter along the channels, such as the slopes of a PReLU.
        Batch norms count where they are folded: into the layer that they alone read, or else as scale and shift.
        """
        in_norms = {path for norm in graph.batch_norms for path in norm.paths}
        folded: set[str] = set()
        used: set[str | None] = set()
        parts: list[Tensor] = []
        for use in (*group.producers, *group.carriers):
            calls = [call for call in graph.calls if call.weight == use.path]
            weight = tensors[use.path].movedim(use.dim, 0)
            # Once for every way in which the layer is used.
            ways = dict.fromkeys((call.bias, graph.norm_behind.get(call.node)) for call in calls)
            if not ways and use in group.producers:
                ways = {(None, None): None}  # a layer that only training applies
            for bias, norm in ways:
                own = None if bias is None or len(tensors[bias]) != len(weight) else tensors[bias]
                batch_norm = _tensors_of(norm, tensors) if norm is not None and self.fold_batch_norm else None
                if norm is not None and batch_norm is not None:
                    folded.add(norm.name)
                rows = self.vectors(weight, bias=own, batch_norm=batch_norm)
                parts.append(rows[_on(use.positions, rows)].flatten(1))
                used |= {use.path, bias if own is not None else None}
        if self.fold_batch_norm:
            for norm in (norm for norm in graph.batch_norms if norm.name not in folded):
                uses = [use for use in group.carriers if use.path in norm.paths]
                batch_norm = _tensors_of(norm, tensors)
                if uses and batch_norm is not None:
                    scale_and_shift = torch.stack(batch_norm.folding(len(batch_norm.mean)), 1)
                    parts.append(scale_and_shift[_on(uses[0].positions, scale_and_shift)].flatten(1))
        for use in group.carriers:
            if use.path not in used | in_norms:
                values = tensors[use.path].movedim(use.dim, 0).double()
                parts.append(values[_on(use.positions, values)].flatten(1))
        return torch.cat([part.to(parts[0].device) for part in parts], 1)

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


def _tensors_of(norm: BatchNorm, tensors: Mapping[str, Tensor]) -> BatchNormTensors | None:
    """Return a batch norm's tensors, or None if it has no running statistics."""
    paths = (norm.weight, norm.bias, norm.mean, norm.variance)
    gamma, beta, mean, variance = (tensors[path] if path else None for path in paths)
    if mean is None or variance is None:
        return None
    return BatchNormTensors(mean, variance, gamma, beta, norm.eps)


def _on(positions: object, tensor: Tensor) -> Tensor:
    return torch.as_tensor(positions, device=tensor.device)
