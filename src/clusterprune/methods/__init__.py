"""Ways to choose a plan."""

from clusterprune.methods.clustered import plan
from clusterprune.methods.oneshot import OneShot, oneshot

__all__ = ["OneShot", "oneshot", "plan"]
