"""Ways to choose a plan, and to train on the way to it.

ACP stays in :mod:`clusterprune.methods.acp`: it needs Optuna, which takes a while to import.
"""

from clusterprune.methods.clustered import cluster
from clusterprune.methods.cp import CP, ClusterPruning, CPResult, cluster_prune
from clusterprune.methods.criteria import prune_by
from clusterprune.methods.icp import ICP, ICPResult, ICPStep, icp
from clusterprune.methods.layers import inner_groups
from clusterprune.methods.oneshot import OneShot, oneshot
from clusterprune.methods.soft_pruning import SoftPruning

__all__ = [
    "CP",
    "ICP",
    "CPResult",
    "ClusterPruning",
    "ICPResult",
    "ICPStep",
    "OneShot",
    "SoftPruning",
    "cluster",
    "cluster_prune",
    "icp",
    "inner_groups",
    "oneshot",
    "prune_by",
]
