"""Ways to choose a plan, and to train on the way to it.

ACP stays in :mod:`clusterprune.methods.acp`: it needs Optuna, which takes a while to import.
"""

from clusterprune.methods._base import Method
from clusterprune.methods._registry import METHODS, find
from clusterprune.methods._work import Network, Outcome, Work
from clusterprune.methods.clustered import cluster
from clusterprune.methods.compressing import compress
from clusterprune.methods.cp import CP
from clusterprune.methods.cuts import ClusterCut, CriterionCut, Cut, Keep, OneShotCut
from clusterprune.methods.icp import ICP
from clusterprune.methods.layers import inner_groups
from clusterprune.methods.once import CutOnce
from clusterprune.methods.oneshot import OneShot, oneshot
from clusterprune.methods.planner import Planner, measure
from clusterprune.methods.prune_by import prune_by
from clusterprune.methods.soft_pruning import Soft, SoftPruning
from clusterprune.methods.sweep import Candidate

__all__ = [
    "CP",
    "ICP",
    "METHODS",
    "Candidate",
    "ClusterCut",
    "CriterionCut",
    "Cut",
    "CutOnce",
    "Keep",
    "Method",
    "Network",
    "OneShot",
    "OneShotCut",
    "Outcome",
    "Planner",
    "Soft",
    "SoftPruning",
    "Work",
    "cluster",
    "compress",
    "find",
    "inner_groups",
    "measure",
    "oneshot",
    "prune_by",
]
