"""Scores by chance: what a criterion is worth shows beside them."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from clusterprune.criteria._base import ScoreInputs


@dataclass(frozen=True)
class Random:
    """Scores that are drawn, evenly from [0, 1)."""

    name: ClassVar[str] = "random"

    def __call__(self, inputs: ScoreInputs) -> dict[str, Tensor]:
        """Return the scores by name of group, (channels,) float32."""
        drawn = {group.name: torch.rand(group.width, generator=inputs.generator) for group in inputs.groups}
        return {name: scores.to(inputs.device) for name, scores in drawn.items()}
