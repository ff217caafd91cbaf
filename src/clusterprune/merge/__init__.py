"""What the kept channels take over from the removed ones."""

from clusterprune.merge._base import Kept, Merging, Moments
from clusterprune.merge._registry import FreeMergingName, MergingName, create, names, read_merging
from clusterprune.merge.assembly import assemble, channel_moments, check_merging, merged
from clusterprune.merge.assign import Add, Drop, ScaledAdd
from clusterprune.merge.least_squares import LeastSquares
from clusterprune.merge.refit import Refit

__all__ = [
    "Add",
    "Drop",
    "FreeMergingName",
    "Kept",
    "LeastSquares",
    "Merging",
    "MergingName",
    "Moments",
    "Refit",
    "ScaledAdd",
    "assemble",
    "channel_moments",
    "check_merging",
    "create",
    "merged",
    "names",
    "read_merging",
]
