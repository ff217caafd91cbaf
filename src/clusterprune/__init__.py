"""Make trained convolutional networks smaller and faster by clustering channels."""

from clusterprune.graph import ChannelGraph, trace
from clusterprune.plan import Merge, Plan
from clusterprune.surgery import apply

__all__ = ["ChannelGraph", "Merge", "Plan", "apply", "trace"]
