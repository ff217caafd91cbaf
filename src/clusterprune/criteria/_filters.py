"""Criteria that measure filters: a measure of one layer's filters, summed over the layers that make a group."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from clusterprune.criteria._base import ScoreInputs
from clusterprune.graph import Group
from clusterprune.graph.program import named_tensors


class OfFilters:
    """A criterion that needs nothing but the filters that make a channel."""

    def measure(self, filters: Tensor) -> Tensor:
        """Return how much each filter of a layer matters: (channels, numbers) float64 to (channels,)."""
        raise NotImplementedError

    def __call__(self, inputs: ScoreInputs) -> dict[str, Tensor]:
        """Return the scores by name of group, (channels,) float64."""
        return by_filter(self.measure, inputs.groups, named_tensors(inputs.graph))


def by_filter(
    measure: Callable[[Tensor], Tensor], groups: Sequence[Group], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Sum a measure of filters, (channels, numbers) to (channels,), over the layers that make each group."""
    found: dict[str, Tensor] = {}
    for group in groups:
        parts: list[Tensor] = []
        for use in group.producers:
            rows = tensors[use.path].detach().movedim(use.dim, 0)[torch.as_tensor(use.positions)]
            parts.append(measure(rows.flatten(1).double()))
        found[group.name] = torch.stack(parts).sum(0)
    return found
