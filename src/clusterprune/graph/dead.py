"""Operations whose results nobody reads. They would freeze or break what they look at, to no purpose."""

import operator

import torch
from torch import fx
from torch._ops import OpOverload

from clusterprune.graph.nest import schema_of
from clusterprune.graph.ops import op_of

aten = torch.ops.aten


def drop_dead_code(graph: fx.Graph) -> None:
    """Erase operations without effect from an exported graph, and checks of shapes that a cut may change.

    Layers stay, so that a report can say of each of them that nothing reads it.
    """
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users and _without_effect(node):
            graph.erase_node(node)


def _without_effect(node: fx.Node) -> bool:
    target, op = node.target, op_of(node)
    if target is operator.getitem:
        return True
    if not isinstance(target, OpOverload):
        return False
    packet = target.overloadpacket
    if packet is aten._assert_tensor_metadata:
        return True
    layer = op is not None and op.layer
    return not schema_of(target).is_mutable and not packet.__name__.startswith(("_assert", "sym_")) and not layer
