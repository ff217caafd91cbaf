"""What a trace finds: a network's operations, and its channels in groups."""

import fnmatch
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph

from clusterprune.errors import ArgumentError
from clusterprune.graph.batch import BatchSize, find_batch_size
from clusterprune.graph.groups import Group
from clusterprune.graph.walk import LayerCall, Walk


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
    """

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    fx: Graph
    inputs: dict[str, str]
    constants: dict[str, Any]
    groups: tuple[Group, ...]
    calls: tuple[LayerCall, ...]
    walk: Walk
    values: dict[str, Any]
    unknown: dict[str, list[str]]
    unused: tuple[str, ...]
    out_spec: Any
    training: Graph | None = None
    training_unknown: str | None = None

    @cached_property
    def by_name(self) -> dict[str, Group]:
        """The groups by name."""
        return {group.name: group for group in self.groups}

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
    def example(self) -> tuple[Any, ...]:
        """The positional example inputs."""
        return self.args

    def freeze(self, ignore: Iterable[str], reason: str = "left alone on request") -> "ChannelGraph":
        """Return the same graph with every group frozen whose name or layers match one of the globs.

        Raises
        ------
        ArgumentError
            If a glob matches nothing.
        """
        groups = list(self.groups)
        for pattern in ignore:
            matched = False
            for index, group in enumerate(groups):
                names = {group.name, *(use.path.removesuffix(".weight") for use in group.producers)}
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
        return replace(self, groups=tuple(groups))

    def __str__(self) -> str:
        """Describe groups, widths, producers, consumers, and what is frozen and why."""
        return _describe(self)


def _describe(graph: ChannelGraph) -> str:
    """Say in words: a line per group, then what is frozen and why, then what was not understood."""
    free = [group for group in graph.groups if group.frozen is None]
    frozen = [group for group in graph.groups if group.frozen is not None]
    lines = [
        f"{type(graph.model).__name__}: {len(graph.groups)} groups, {len(free)} may be cut "
        f"({sum(g.width for g in free)} of {sum(g.width for g in graph.groups)} channels)"
    ]
    width = max((len(group.name) for group in graph.groups), default=0)
    for group in free:
        blocks = f" in {group.n_blocks} equal blocks" if group.n_blocks > 1 else ""
        lines.append(f"  {group.name:<{width}}  {group.width:>5} channels{blocks}  {_uses(group)}")
    if frozen:
        lines.append("frozen:")
        lines += [f"  {g.name:<{width}}  {g.width:>5} channels  {g.frozen}" for g in frozen]
    if graph.unknown:
        lines.append("operations without a rule (what they read is frozen):")
        lines += [f"  {name}: at {_few(nodes)}" for name, nodes in graph.unknown.items()]
    if graph.unused:
        lines.append(f"parameters that evaluation never touches: {_few(list(graph.unused))}")
    if graph.training_unknown:
        lines.append(f"training was not followed: {graph.training_unknown}")
    return "\n".join(lines)


def _uses(group: Group) -> str:
    made = _few([use.path.removesuffix(".weight") for use in group.producers])
    carried = Counter(use.path.rpartition(".")[0] or use.path for use in group.carriers)
    read = _few([use.path.removesuffix(".weight") for use in group.consumers])
    through = f" through {_few(list(carried))}" if carried else ""
    return f"made by {made}{through}, read by {read}"


def _few(names: list[str], limit: int = 4) -> str:
    shown = ", ".join(names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")
