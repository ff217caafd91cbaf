"""Norms: which of them cut with their channels, and which read all channels at once.

A norm of each channel by itself (batch, instance) is cut with its channels. A norm over the channels takes its
statistics from all of them: a cut there changes what the kept channels are divided by. Such channels stay, unless the
trace allows approximate cuts; then the cut network's norm is the norm over the kept channels.
"""

from typing import Any

import torch
from torch import Tensor, fx

from clusterprune.graph.labels import varying_dims
from clusterprune.graph.movement import IDENTITY, MOVEMENT
from clusterprune.graph.rules import rule
from clusterprune.graph.stored import Stored
from clusterprune.graph.walk import Parameter, Walk

aten = torch.ops.aten
REMEDY = "approximate=True would cut them and change its statistics"
OVER_CHANNELS = f"a norm over the channels reads all of them; {REMEDY}"
STATISTICS = frozenset(
    packet
    for name in "mean var std var_mean std_mean linalg_vector_norm norm nanmean".split()
    if (packet := getattr(aten, name, None)) is not None
)
"""Reductions that norms are written with: what they tell of some channels stands for what they tell of all."""


@rule("batch_norm instance_norm _native_batch_norm_legit_no_training")
def batch_norm(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Any:
    """Scale and shift every channel on its own: its four statistics are cut with the channel."""
    x = walk.as_data(a["input"])
    channels = walk.vector(x, 1)
    for name in ("weight", "bias", "running_mean", "running_var"):
        parameter = a.get(name)
        if isinstance(parameter, (Parameter, Stored)):
            walk.bind(parameter, 0, channels)
        elif isinstance(parameter, Tensor):
            return walk.opaque(node, [x, parameter], f"{node.name}: its {name} is computed from activations")
    return x


@rule("group_norm")
def group_norm(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Any:
    """Normalise groups of channels together: a normalisation group stays or goes as a whole.

    A single group is a norm over the channels.
    """
    x, groups = walk.as_data(a["input"]), a["num_groups"]
    channels = walk.vector(x, 1)
    if groups == 1:
        _over_channels(walk, node, x)
    else:
        walk.space.unite_along(channels.view(groups, -1), 1)
        walk.norm_groups[node.name] = groups
    return _affine(walk, node, a, x, {0: channels})


@rule("layer_norm rms_norm")
def layer_norm(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Any:
    """Normalise over the last dimensions; if channels run along them, their statistics need all channels."""
    x = walk.as_data(a["input"])
    count = len(a["normalized_shape"])
    dims = range(x.ndim - count, x.ndim)
    varying = set(dims) & set(varying_dims(walk.space.root_tensor(x)))
    if varying:
        _over_channels(walk, node, x)
    affine = {dim - dims[0]: walk.vector(x, dim) for dim in dims if dim in varying or count == 1}
    return _affine(walk, node, a, x, affine)


def _affine(walk: Walk, node: fx.Node, a: dict[str, Any], x: Tensor, channels: dict[int, Tensor]) -> Any:
    """Bind a norm's scale and shift to the channels that their dimensions run along."""
    for name in ("weight", "bias"):
        parameter = a.get(name)
        if isinstance(parameter, Tensor):
            return walk.opaque(node, [x, parameter], f"{node.name}: its {name} is computed, not stored")
        for dim, labels in channels.items():
            walk.bind(parameter, dim, labels)
    return x


def _over_channels(walk: Walk, node: fx.Node, x: Tensor) -> None:
    if walk.allow_approximate:
        walk.note_approximate(node, x, "the norm of the kept channels in place of the norm of all")
    else:
        walk.space.freeze(x, f"{node.name}: {OVER_CHANNELS}")


def is_statistic(node: fx.Node) -> bool:
    """Tell whether a reduction over channels is one of a norm: it only scales or shifts the channels it was taken from.

    What it makes must flow, through operations that work element by element or move data, into operations whose
    result is as wide as what was reduced.
    """
    source = node.args[0]
    if getattr(node.target, "overloadpacket", None) not in STATISTICS or not isinstance(source, fx.Node):
        return False
    whole = source.meta["val"].numel()
    waiting, seen = list(node.users), set()
    if not waiting:
        return False
    while waiting:
        user = waiting.pop()
        if user in seen:
            continue
        seen.add(user)
        if user.op != "call_function" or not _passes_elements(user.target):
            return False
        made = user.meta["val"]
        # var_mean makes a pair, whose parts are picked first.
        if isinstance(made, Tensor) and made.numel() >= whole:
            continue
        if not user.users:
            return False
        waiting.extend(user.users)
    return True


def _passes_elements(target: Any) -> bool:
    packet = getattr(target, "overloadpacket", None)
    if packet is None:
        return getattr(target, "__name__", "") == "getitem"
    return torch.Tag.pointwise in target.tags or packet in MOVEMENT or packet in IDENTITY
