# What type checkers see of the public names, which are imported when they are first asked for.

from clusterprune.graph import ChannelGraph, Op, register_op, trace
from clusterprune.merge.bn_images import FromNorms, images_from_norms
from clusterprune.methods import (
    CP,
    ICP,
    ClusterCut,
    CriterionCut,
    CutOnce,
    Method,
    Network,
    OneShot,
    OneShotCut,
    Outcome,
    Soft,
    Work,
    cluster,
    inner_groups,
    oneshot,
    prune_by,
)
from clusterprune.methods.acp import ACP
from clusterprune.methods.distil import Distil, distil
from clusterprune.plan import Merge, Plan
from clusterprune.surgery.apply import apply
from clusterprune.surgery.compact import load, save

__all__ = [
    "ACP",
    "CP",
    "ICP",
    "ChannelGraph",
    "ClusterCut",
    "CriterionCut",
    "CutOnce",
    "Distil",
    "FromNorms",
    "Merge",
    "Method",
    "Network",
    "OneShot",
    "OneShotCut",
    "Op",
    "Outcome",
    "Plan",
    "Soft",
    "Work",
    "apply",
    "cluster",
    "distil",
    "images_from_norms",
    "inner_groups",
    "load",
    "oneshot",
    "prune_by",
    "register_op",
    "save",
    "trace",
]
