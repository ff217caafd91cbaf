"""Distance to the geometric median: what lies near the middle of the filters can be replaced by the others."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from clusterprune.criteria._filters import OfFilters


@dataclass(frozen=True)
class FPGM(OfFilters):
    """Sum of the Euclidean distances to the group's other filters (He et al. 2019, arXiv 1811.00250, Eq. 4)."""

    name: ClassVar[str] = "fpgm"

    def measure(self, filters: Tensor) -> Tensor:
        """Return each row's distances to all others, summed."""
        # The fast way, through products, leaves identical filters a distance apart.
        return torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
