"""Operations whose results nobody reads. They would freeze or break what they look at, to no purpose."""

import operator
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
LAYERS = frozenset(
    packet
    for name in "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution linear".split()
    if (packet := getattr(aten, name, None)) is not None
)


def drop_dead_code(graph: fx.Graph) -> None:
    """Erase operations without effect from an exported graph, and checks of shapes that a cut may change.

    Layers stay, so that a report can say of each of them that nothing reads it.
    """
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users and _without_effect(node.target):
            graph.erase_node(node)


def _without_effect(target: Any) -> bool:
    if target is operator.getitem:
        return True
    if not isinstance(target, torch._ops.OpOverload):
        return False
    packet = target.overloadpacket
    if packet is aten._assert_tensor_metadata:
        return True
    return (
        not target._schema.is_mutable and not packet.__name__.startswith(("_assert", "sym_")) and packet not in LAYERS
    )
