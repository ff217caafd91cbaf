"""Make trained convolutional networks smaller and faster by clustering channels."""

from clusterprune.checkpoint import load, save
from clusterprune.graph import ChannelGraph, trace

# `plan` the function shadows `plan` the module here, as `import clusterprune as cp; cp.plan(...)` reads best.
from clusterprune.plan import Merge, Plan  # isort: skip
from clusterprune.methods import OneShot, oneshot, plan  # isort: skip
from clusterprune.surgery import apply

__all__ = ["ChannelGraph", "Merge", "OneShot", "Plan", "apply", "load", "oneshot", "plan", "save", "trace"]
