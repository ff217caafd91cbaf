"""A graph in words: one line per group, then what is frozen and why, then what was not understood."""

from collections import Counter
from typing import TYPE_CHECKING

from clusterprune.graph.groups import Group

if TYPE_CHECKING:
    from clusterprune.graph.trace import ChannelGraph


def describe(graph: "ChannelGraph") -> str:
    """Return the text that `print(graph)` shows."""
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
