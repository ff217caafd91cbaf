"""Which channels of a network belong together."""

from clusterprune.graph.channels import ChannelGraph
from clusterprune.graph.groups import Group, ParameterSlice
from clusterprune.graph.ops import Op, by_channel, register_op
from clusterprune.graph.trace import trace
from clusterprune.graph.walk import LayerCall

__all__ = ["ChannelGraph", "Group", "LayerCall", "Op", "ParameterSlice", "by_channel", "register_op", "trace"]
