"""Make trained convolutional networks smaller and faster by clustering channels."""

from clusterprune.checkpoint import load, save
from clusterprune.graph import ChannelGraph, trace
from clusterprune.methods import OneShot, oneshot
from clusterprune.plan import Merge, Plan
from clusterprune.surgery import apply

__all__ = ["ChannelGraph", "Merge", "OneShot", "Plan", "apply", "load", "oneshot", "save", "trace"]
