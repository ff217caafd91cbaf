"""Scale of the batch norm behind a layer."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from clusterprune.criteria._base import ScoreInputs
from clusterprune.errors import ArgumentError
from clusterprune.graph.program import named_tensors


@dataclass(frozen=True)
class BatchNormScale:
    """|γ|, summed over the batch norms of a channel (Liu et al. 2017, arXiv 1708.06519)."""

    name: ClassVar[str] = "bn_scale"

    def __call__(self, inputs: ScoreInputs) -> dict[str, Tensor]:
        """Return the scores by name of group, (channels,) float64.

        Raises
        ------
        ArgumentError
            A group has no batch norm.
        """
        tensors = named_tensors(inputs.graph)
        scales = {norm.weight for norm in inputs.graph.batch_norms}
        found: dict[str, Tensor] = {}
        for group in inputs.groups:
            uses = [use for use in group.carriers if use.path in scales]
            if not uses:
                raise ArgumentError(
                    f"criterion='bn_scale' needs a batch norm behind every layer, but {group.name} has none; "
                    f"ignore it (ignore=[{group.name!r}]) or take criterion='l1'"
                )
            parts = [tensors[use.path].detach().double()[torch.as_tensor(use.positions)].abs().sum(1) for use in uses]
            found[group.name] = torch.stack(parts).sum(0)
        return found
