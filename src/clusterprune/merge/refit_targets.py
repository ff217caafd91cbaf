"""What every refitted layer should make: where its error can be seen, and which values do as well as the original's."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from clusterprune.graph import ChannelGraph, LayerCall
from clusterprune.graph.ops.norm import BatchNorm
from clusterprune.graph.ops.pointwise import bounds_of, is_addition
from clusterprune.graph.schedule import side_by_side
from clusterprune.merge.patches import PatchExtractor
from clusterprune.plan import Plan


@dataclass(frozen=True)
class Target:
    """A layer's calls, its batch norm, the addition that it feeds, and the range that a rectifier behind lets through.

    Several calls are run side by side, and feed no addition that counts.
    """

    calls: tuple[LayerCall, ...]
    norm: BatchNorm | None
    addition: fx.Node | None
    other: str
    range: tuple[float, float] | None = None

    @property
    def call(self) -> LayerCall:
        """The first of the calls, which share kernel, bias and kind."""
        return self.calls[0]


@dataclass(frozen=True, eq=False)
class Rows:
    """What a layer reads and what it should make, (rows, outputs), and where it may make more or less than that."""

    inputs: Tensor
    wanted: Tensor
    floor: Tensor | None = None
    ceiling: Tensor | None = None
    """Where the original is silenced: outputs from `floor` down, or from `ceiling` up, are all the same."""


def targets_of(
    graph: ChannelGraph, plan: Plan, *, all_layers: bool, through_additions: bool, rectified: bool
) -> tuple[list[Target], list[str]]:
    """List the layers to refit, in order, each with where its error can be seen; see :class:`.refit.Refit`.

    Returns
    -------
    tuple
        The targets, and the order in which the network has to run for them: names of all nodes.
    """
    touched = {use.path for merge in plan.merges for use in graph.by_name[merge.group].consumers}
    calls: dict[str, list[LayerCall]] = {}
    for call in graph.calls:
        calls.setdefault(call.weight, []).append(call)
    several = {
        weight: tuple(call.node for call in found)
        for weight, found in calls.items()
        if len(found) > 1 and len({call.bias for call in found}) == 1 and all(_solvable(graph, call) for call in found)
    }
    nodes, together = side_by_side(graph, several)
    order = {name: position for position, name in enumerate(nodes)}
    chosen: list[tuple[LayerCall, ...]] = []
    started = False
    for found in sorted(calls.values(), key=lambda found: order[found[0].node]):
        call = found[0]
        started = started or call.weight in touched
        wanted = started if all_layers else call.weight in touched
        # A layer that reads what it made itself would need both of its inputs at once; its mixing matrices stand.
        if wanted and (call.weight in together or (len(found) == 1 and _solvable(graph, call))):
            chosen.append(tuple(found))
    at = [order[found[0].node] for found in chosen]
    targets: list[Target] = []
    for found in chosen:
        start = order[found[0].node]
        alone = through_additions and len(found) == 1
        norm, addition, other = _behind(graph, found[0].node) if alone else (None, None, "")
        if addition is not None:
            end = order[addition.name]
            if order.get(other, 0) > end or any(start < position < end for position in at):
                addition, other = None, ""
        if addition is None:
            norm = _norm_of_all(graph, found)
        ends = [addition] if addition is not None else [_end(graph, call.node, norm) for call in found]
        ranges = {_range_behind(end) for end in ends} if rectified else {None}
        targets.append(Target(found, norm, addition, other, ranges.pop() if len(ranges) == 1 else None))
    return targets, nodes


def _solvable(graph: ChannelGraph, call: LayerCall) -> bool:
    """Tell whether a kernel can be solved for from what a call reads and should make."""
    plain = call.groups == 1 and call.row_dim == 0 and (call.by_row or call.slides) and not call.computed
    return (plain and PatchExtractor.of(graph, call).refittable) or _by_channel(graph, call)


def _norm_of(graph: ChannelGraph, node: str) -> BatchNorm | None:
    """Return the batch norm that alone reads a call's output, if it has all its tensors."""
    norm = graph.norm_behind.get(node)
    return norm if norm is not None and norm.complete else None


def _norm_of_all(graph: ChannelGraph, calls: tuple[LayerCall, ...]) -> BatchNorm | None:
    """Return the norm that reads every call's output, behind the first, if it is the same for all."""
    norms = [_norm_of(graph, call.node) for call in calls]
    return norms[0] if len({norm and (norm.paths, norm.eps) for norm in norms}) == 1 else None


def _end(graph: ChannelGraph, node: str, norm: BatchNorm | None) -> fx.Node:
    """Return what a rectifier behind a call reads: what the call makes, or its norm, if its layer has one."""
    own = None if norm is None else graph.norm_behind.get(node)
    return graph.nodes[node] if own is None else own.node


def _range_behind(node: fx.Node) -> tuple[float, float] | None:
    """Return between which bounds the only reader of a value lets it through, if that is a rectifier."""
    user = next(iter(node.users)) if len(node.users) == 1 else None
    return None if user is None else bounds_of(user)


def _by_channel(graph: ChannelGraph, call: LayerCall) -> bool:
    """Tell whether a call is a depthwise convolution with one kernel a channel, in up to two spatial dimensions."""
    if not call.depthwise or not call.slides or call.computed:
        return False
    shape = graph.model.get_parameter(call.weight).shape
    return shape[0] == call.groups and len(shape) in (3, 4)


def _behind(graph: ChannelGraph, node: str) -> tuple[BatchNorm | None, fx.Node | None, str]:
    """Follow a call's output through at most one batch norm to an addition, if that is where it goes."""
    norm = _norm_of(graph, node)
    current = graph.nodes[node] if norm is None else norm.node
    if len(current.users) == 1:
        user = next(iter(current.users))
        plain = is_addition(user) and not user.kwargs and len(user.args) == 2
        if plain and len(user.all_input_nodes) == 2:
            other = next(n for n in user.all_input_nodes if n is not current)
            same = tuple(other.meta["val"].shape) == tuple(current.meta["val"].shape)
            if same and other.op == "call_function":
                return norm, user, other.name
    return None, None, ""


def aimed(
    inputs: Tensor, made: Tensor, other: Tensor | None, affine: tuple[Tensor, Tensor] | None, target: Target
) -> Rows:
    """Return what a layer has to make so that what stands behind it is what the original has there.

    Parameters
    ----------
    made
        The original's values at the end: the sum, or the layer's own output.
    other
        The other side of the sum, in the compact network.
    affine
        Scale and shift of the norm between the layer and the end.
    """
    scale, shift = affine if affine is not None else (made.new_ones(()), made.new_zeros(()))
    scale = torch.where(silenced(scale), 1, scale)

    def before(end: Tensor) -> Tensor:
        """Return the layer's own output behind which the end has some value."""
        return (end - (0 if other is None else other) - shift) / scale

    end = made if target.addition is not None else made * scale + shift
    wanted = before(made) if target.addition is not None else made
    if target.range is None:
        return Rows(inputs, wanted)
    low, high = target.range
    # Everything from a bound on is alike; which side that is in the layer's own output, the sign of the norm says.
    floor, ceiling = torch.full_like(wanted, -torch.inf), torch.full_like(wanted, torch.inf)
    for bound, beyond, upwards in ((low, end <= low, scale < 0), (high, end >= high, scale > 0)):
        if math.isfinite(bound):
            edge = before(torch.full_like(end, bound)).expand_as(wanted)
            upwards = upwards.expand_as(wanted)
            ceiling = torch.where(beyond & upwards, edge, ceiling)
            floor = torch.where(beyond & ~upwards, edge, floor)
    return Rows(inputs, wanted, floor, ceiling)


def nearest(made: Tensor, rows: Rows) -> Tensor:
    """Return, of all outputs that will do as well as the wanted ones, those nearest to what is made."""
    if rows.floor is None or rows.ceiling is None:
        return rows.wanted
    found = torch.where(rows.floor.isfinite(), torch.minimum(made, rows.floor), rows.wanted)
    return torch.where(rows.ceiling.isfinite(), torch.maximum(made, rows.ceiling), found)


def silenced(scale: Tensor) -> Tensor:
    """Tell which outputs a norm scales down to next to nothing: dividing by that makes no sense."""
    return scale.abs() <= 1e-3 * scale.abs().max()
