"""The public names, as type checkers read them; at run time each is imported when it is first asked for."""

from clusterprune.exporters import export as export
from clusterprune.graph import ChannelGraph as ChannelGraph
from clusterprune.graph import Op as Op
from clusterprune.graph import register_op as register_op
from clusterprune.graph import trace as trace
from clusterprune.merge.bn_images import FromNorms as FromNorms
from clusterprune.merge.bn_images import images_from_norms as images_from_norms
from clusterprune.methods import CP as CP
from clusterprune.methods import ICP as ICP
from clusterprune.methods import ClusterCut as ClusterCut
from clusterprune.methods import CriterionCut as CriterionCut
from clusterprune.methods import CutOnce as CutOnce
from clusterprune.methods import Method as Method
from clusterprune.methods import Network as Network
from clusterprune.methods import OneShot as OneShot
from clusterprune.methods import OneShotCut as OneShotCut
from clusterprune.methods import Outcome as Outcome
from clusterprune.methods import Planner as Planner
from clusterprune.methods import Soft as Soft
from clusterprune.methods import Work as Work
from clusterprune.methods import cluster as cluster
from clusterprune.methods import compress as compress
from clusterprune.methods import inner_groups as inner_groups
from clusterprune.methods import measure as measure
from clusterprune.methods import oneshot as oneshot
from clusterprune.methods import prune_by as prune_by
from clusterprune.methods.acp import ACP as ACP
from clusterprune.methods.distil import Distil as Distil
from clusterprune.methods.distil import distil as distil
from clusterprune.models.artifact import Origin as Origin
from clusterprune.models.artifact import load as load
from clusterprune.models.artifact import save as save
from clusterprune.models.hub import from_hub as from_hub
from clusterprune.models.hub import push_to_hub as push_to_hub
from clusterprune.plan import Merge as Merge
from clusterprune.plan import Plan as Plan
from clusterprune.report import draw_graph as draw_graph
from clusterprune.surgery.apply import apply as apply

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
    "Origin",
    "Outcome",
    "Plan",
    "Planner",
    "Soft",
    "Work",
    "apply",
    "cluster",
    "compress",
    "distil",
    "draw_graph",
    "export",
    "from_hub",
    "images_from_norms",
    "inner_groups",
    "load",
    "measure",
    "oneshot",
    "prune_by",
    "push_to_hub",
    "register_op",
    "save",
    "trace",
]
