"""What a trace finds: a network's operations, and its channels in groups."""

import fnmatch
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from clusterprune.arguments import globs
from clusterprune.errors import ArgumentError
from clusterprune.graph.batch import BatchSize, find_batch_size
from clusterprune.graph.groups import Group, find_links, made_and_read, size_of
from clusterprune.graph.ops.norm import BatchNorm, find_batch_norms
from clusterprune.graph.walk import LayerCall, TraceState, layer_of
from clusterprune.tables import few, html_lines, html_part, html_table, plural


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """A traced model: its operations, and its channels in groups.

    Attributes
    ----------
    model
        The model that was traced; never changed.
    args, kwargs
        The example input.
    fx
        The exported graph of ATen operations, one node each.
    groups
        Every group in the order in which its channels are made, frozen ones included.
    calls
        Every application of a convolution or linear layer, in order of execution.
    unknown
        Operations without a rule, each with the nodes where it was met; what they read is frozen.
    unused
        Parameters that neither evaluation nor training touches.
    training
        The exported graph of the training mode, traced with two images, where it touches parameters that evaluation
        does not (auxiliary heads). Its layers belong to the groups too, and are cut with them.
    training_unknown
        Why the training mode could not be followed although there are parameters that evaluation does not touch,
        or None.
    bound
        Pairs of names of groups, a leader and a follower: whoever chooses widths gives the follower its leader's.
        A trace has none; see :func:`clusterprune.methods.layers.published_layers`.
    """

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    fx: Graph
    inputs: dict[str, str]
    constants: dict[str, Any]
    groups: tuple[Group, ...]
    calls: tuple[LayerCall, ...]
    walk: TraceState
    values: dict[str, Any]
    unknown: dict[str, list[str]]
    unused: tuple[str, ...]
    out_spec: Any
    training: Graph | None = None
    training_unknown: str | None = None
    bound: tuple[tuple[str, str], ...] = ()

    @cached_property
    def by_name(self) -> dict[str, Group]:
        """The groups by name."""
        return {group.name: group for group in self.groups}

    @cached_property
    def nodes(self) -> dict[str, Node]:
        """The nodes of the exported graph by name."""
        return {node.name: node for node in self.fx.nodes}

    @cached_property
    def call_of(self) -> dict[str, LayerCall]:
        """The layer calls by the names of their nodes."""
        return {call.node: call for call in self.calls}

    @cached_property
    def batch_norms(self) -> tuple[BatchNorm, ...]:
        """The batch norms in order of execution."""
        return tuple(find_batch_norms(self.fx, self.inputs))

    @cached_property
    def norm_behind(self) -> dict[str, BatchNorm]:
        """The batch norm that alone reads a node's value, by the node's name."""
        return {norm.input.name: norm for norm in self.batch_norms if norm.alone}

    def norms_of(self, group: Group) -> list[BatchNorm]:
        """Return the batch norms that carry the channels of a group, in order of execution."""
        carried = {use.path for use in group.carriers}
        return [norm for norm in self.batch_norms if carried.intersection(norm.paths)]

    @cached_property
    def links(self) -> tuple[frozenset[str], ...]:
        """Names of groups that should keep equally many channels, so that the model's own code still fits.

        A plan that keeps different numbers is valid; :func:`clusterprune.apply` then rewires the model. A follower is
        linked to its leader, whatever the code has.
        """
        found = [set(link) for link in find_links(self.walk, self.groups)]
        for pair in self.leaders.items():
            joined = [link for link in found if link & set(pair)]
            found = [link for link in found if link not in joined] + [set(pair).union(*joined)]
        return tuple(map(frozenset, found))

    @cached_property
    def leaders(self) -> dict[str, str]:
        """The leader of every follower; a pair of which one is frozen is none."""
        free = {group.name for group in self.prunable}
        return {follower: leader for leader, follower in self.bound if {leader, follower} <= free}

    @cached_property
    def batch_size(self) -> BatchSize:
        """Which numbers in the graph follow the batch size (found by a second export when first asked for)."""
        return find_batch_size(self.model, self.args, self.kwargs, self.fx, self.user_inputs)

    @property
    def prunable(self) -> tuple[Group, ...]:
        """The groups that may be cut."""
        return tuple(group for group in self.groups if group.frozen is None)

    @cached_property
    def user_inputs(self) -> tuple[str, ...]:
        """Names of the graph's tensor inputs, in order."""
        placeholders = [node for node in self.fx.nodes if node.op == "placeholder"]
        known = self.inputs.keys() | self.constants.keys()
        return tuple(n.name for n in placeholders if n.name not in known and isinstance(n.meta.get("val"), Tensor))

    @property
    def example_tensors(self) -> list[Tensor]:
        """The tensors among the inputs that the model was traced with, in the order of the call."""
        return [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, Tensor)]

    @property
    def example(self) -> tuple[Any, ...] | dict[str, Any]:
        """The example inputs: the positional ones, or those by keyword (a trace has either)."""
        return self.kwargs or self.args

    def freeze(self, ignore: Iterable[str], reason: str = "left alone on request") -> "ChannelGraph":
        """Return the same graph with every group frozen whose name or layers match one of the globs.

        Raises
        ------
        ArgumentError
            If a glob matches nothing, or is no text.
        """
        patterns = globs(ignore)
        if not patterns:
            return self
        groups = list(self.groups)
        for pattern in patterns:
            matched = False
            for index, group in enumerate(groups):
                names = {group.name, *(layer_of(use.path) for use in group.producers)}
                if any(fnmatch.fnmatchcase(name, pattern) for name in names):
                    matched = True
                    if group.frozen is None:
                        groups[index] = replace(group, frozen=reason)
            if not matched:
                known = ", ".join(group.name for group in self.groups[:8])
                raise ArgumentError(
                    f"ignore={pattern!r} matches no group or layer; groups are named like {known}. "
                    "Print the graph to see all of them."
                )
        frozen = replace(self, groups=tuple(groups))
        if "batch_size" in vars(self):
            vars(frozen)["batch_size"] = self.batch_size  # found by an export, which need not be made again
        return frozen

    def only(self, names: Collection[str]) -> "ChannelGraph":
        """Return the same graph with every group frozen but those named.

        Examples
        --------
        >>> import torch, clusterprune as cp
        >>> from clusterprune.models import build
        >>> graph = cp.trace(build("resnet20"), torch.zeros(1, 3, 32, 32))
        >>> len(graph.only(cp.inner_groups(graph)).prunable)
        9

        Raises
        ------
        ArgumentError
            If a name is not that of a group that may be cut, or there is none.
        """
        names = {names} if isinstance(names, str) else set(names)
        known = {group.name for group in self.prunable}
        if not names or not known.issuperset(names):
            wrong = ", ".join(sorted(names - known)) or "nothing"
            raise ArgumentError(
                f"names={wrong} cannot be cut; name some of {', '.join(sorted(known)[:8]) or 'no group at all'}. "
                "Print the graph to see all groups, and why some are frozen."
            )
        why = "outside the chosen layers"
        groups = (g if g.frozen is not None or g.name in names else replace(g, frozen=why) for g in self.groups)
        return replace(self, groups=tuple(groups))

    def __repr__(self) -> str:
        """Say of what network it is, and how much of it may be cut; printing it says the rest."""
        free = self.prunable
        text = (
            f"{type(self.model).__name__}: {plural(len(self.groups), 'group')}, {len(free)} may be cut "
            f"({plural(sum(group.channels for group in free), 'channel')})"
        )
        if self.unknown:
            text += f", {plural(len(self.unknown), 'operation')} without a rule"
        return f"<ChannelGraph of {text}>"

    def _repr_html_(self) -> str:
        """Describe the same as printing does, as a table for a notebook."""
        return _describe_html(self)

    def __str__(self) -> str:
        """Describe groups, widths, producers, consumers, and what is frozen and why."""
        return _describe(self)


def _describe(graph: ChannelGraph) -> str:
    """Say in words: a line per group, then what is frozen and why, then what was not understood."""
    free = graph.prunable
    whole, frozen = frozen_layers(graph)
    lines = [_headline(graph, whole)]
    width = max((len(name) for name in [*(group.name for group in free), *(layer.name for layer in frozen)]), default=0)
    for group in free:
        made, read = made_and_read(group)
        lines.append(f"  {group.name:<{width}}  {size_of(group, digits=5)}  made by {made}, read by {read}")
    if frozen:
        lines.append("frozen:")
        for layer in frozen:
            more = f" (so are {few(list(layer.layers[1:]))})" if len(layer.layers) > 1 else ""
            lines.append(f"  {layer.name:<{width}}  {layer.width}  {layer.reason}{more}")
    return "\n".join([*lines, *_not_understood(graph)])


def _describe_html(graph: ChannelGraph) -> str:
    """Say the same as HTML: a row per group, then a row per set of layers that stays, then what was not understood."""
    whole, frozen = frozen_layers(graph)
    rows = [(group.name, size_of(group), *made_and_read(group)) for group in graph.prunable]
    rows += [(f.name, f.width.strip(), few(list(f.layers)), f"frozen: {f.reason}") for f in frozen]
    table = html_table(("group", "channels", "made by", "read by"), rows, left=4)
    return html_part(_headline(graph, whole), table, html_lines(_not_understood(graph)))


def _headline(graph: ChannelGraph, whole: int) -> str:
    """Say how many groups there are, and how many of all channels may be cut."""
    free = graph.prunable
    return (
        f"{type(graph.model).__name__}: {len(graph.groups)} groups, {len(free)} may be cut "
        f"({sum(group.channels for group in free)} of {whole} channels)"
    )


def _not_understood(graph: ChannelGraph) -> list[str]:
    """Return lines about operations without a rule, parameters without a use, and training that was not followed."""
    lines: list[str] = []
    if graph.unknown:
        lines.append("operations without a rule (what they read is frozen):")
        lines += [f"  {name}: at {few(nodes)}" for name, nodes in graph.unknown.items()]
    if graph.unused:
        lines.append(f"parameters that evaluation never touches: {few(list(graph.unused))}")
    if graph.training_unknown:
        lines.append(f"training was not followed: {graph.training_unknown}")
    return lines


@dataclass(frozen=True)
class FrozenLayers:
    """Channels that must stay: of how many layers together, how many of each, and why.

    Attributes
    ----------
    layers
        The layers that make these channels; the first one names them.
    channels, of
        How many of the first layer's channels must stay for this reason, and how many it makes.
    reason
        Why.
    """

    layers: tuple[str, ...]
    channels: int
    of: int
    reason: str

    @property
    def name(self) -> str:
        """The first layer."""
        return next(iter(self.layers))

    @property
    def width(self) -> str:
        """How many channels, in words."""
        noun = "channel" if self.of == 1 else "channels"
        return f"{self.of:>5} {noun}" if self.channels == self.of else f"{self.channels:>5} of {self.of} {noun}"


def frozen_layers(graph: ChannelGraph) -> tuple[int, list[FrozenLayers]]:
    """Return how many channels all layers make (shared ones once), and which of them must stay, layer by layer.

    Groups that the same layers make are taken together if they stay for the same reason.
    """
    walk = graph.walk
    order = list(dict.fromkeys(call.layer for call in graph.calls))
    weights = {call.layer: call.weight for call in graph.calls}
    made = {layer: _rows_of(graph, layer, weights[layer]) for layer in order}
    owner = {int(label): group for group in graph.groups for label in group.labels}
    together: dict[tuple[tuple[str, ...], str], int] = {}
    whole = sum(group.channels for group in graph.groups)
    for layer in order:
        roots = walk.space.roots(made[layer])
        reasons: Counter[tuple[tuple[str, ...], str]] = Counter()
        for label in roots.tolist():
            group = owner.get(label)
            if group is None:
                reasons[(layer,), walk.space.why_frozen(label) or "no layer reads these channels"] += 1
                whole += 1
            elif group.frozen is not None and group.layers[0] == layer:
                reasons[group.layers, group.frozen] += 1
        for key, count in reasons.items():
            together[key] = together.get(key, 0) + count
    found = [FrozenLayers(layers, n, len(made[layers[0]]), reason) for (layers, reason), n in together.items()]
    found += [
        FrozenLayers(group.layers, group.channels, group.channels, group.frozen)
        for group in graph.groups
        if group.frozen is not None and group.layers[0] not in made  # of a layer that only training runs
    ]
    for layer, (count, reason) in walk.unlabelled.items():
        found.append(FrozenLayers((layer,), count, count, reason))
        whole += count
    return whole, found


def _rows_of(graph: ChannelGraph, layer: str, weight: str) -> Tensor:
    """Return the label of every channel that a layer makes."""
    dim = next(call.row_dim for call in graph.calls if call.layer == layer)
    known = graph.walk.slices.get((weight, dim))
    return known.labels if known is not None else torch.empty(0, dtype=torch.int64)
