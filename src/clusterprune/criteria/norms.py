"""Norms of filters: a filter of small numbers adds little."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from clusterprune.criteria._filters import OfFilters


@dataclass(frozen=True)
class L1(OfFilters):
    """Sum of a filter's magnitudes (Li et al. 2017, arXiv 1608.08710)."""

    name: ClassVar[str] = "l1"

    def measure(self, filters: Tensor) -> Tensor:
        """Return Σ |w| of every row."""
        return filters.abs().sum(1)


@dataclass(frozen=True)
class L2(OfFilters):
    """Euclidean norm of a filter (He et al. 2018, arXiv 1808.06866)."""

    name: ClassVar[str] = "l2"

    def measure(self, filters: Tensor) -> Tensor:
        """Return √(Σ w²) of every row."""
        return filters.norm(dim=1)  # pyright: ignore
