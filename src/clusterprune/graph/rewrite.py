"""What a cut does to the arguments of operations that mention sizes or positions.

The exported graph holds numbers that stop being true when channels go: the sizes of a view, where a slice
begins, how many channels a shortcut pads. Labels tell which elements stay alive, and because every tensor
of labels is a grid, the living elements of each dimension give the new numbers directly.
"""

import operator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from clusterprune.errors import PlanError
from clusterprune.graph.channels import ChannelGraph
from clusterprune.graph.export import named_arguments
from clusterprune.graph.labels import collapse
from clusterprune.graph.program import shape_of
from clusterprune.graph.stored import Axis, Stored
from clusterprune.graph.walk import Parameter

aten = torch.ops.aten


@dataclass(frozen=True)
class Change:
    """What a node calls after a cut, and on what."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Survivors:
    """Which channels stay alive, and so which indices of every activation's dimensions."""

    def __init__(self, graph: ChannelGraph, removed: np.ndarray) -> None:
        """Take the root labels of the removed channels."""
        self.graph = graph
        self._alive = np.ones(len(graph.walk.space), dtype=bool)
        self._alive[removed] = False

    def of(self, labels: Tensor) -> np.ndarray:
        """Return for each label whether it is alive."""
        return self._alive[self.graph.walk.space.roots(labels)]

    def along(self, name: str) -> list[np.ndarray]:
        """Return for each dimension of a node's value which of its indices stay."""
        labels = self.graph.values[name]
        if isinstance(labels, Parameter):
            labels = Stored.of(labels.path, labels.shape)
        if isinstance(labels, Stored):
            return [self._stored(dimension) for dimension in labels.dimensions]
        small = collapse(labels)
        alive = self.of(small)
        flags = [alive.any(axis=tuple(d for d in range(small.ndim) if d != dim)) for dim in range(small.ndim)]
        if int(alive.sum()) != int(np.prod([f.sum() for f in flags])):
            raise PlanError(f"the cut leaves holes in {name}; keep the same positions in each of its groups")
        return [np.broadcast_to(f, (length,)) for f, length in zip(flags, labels.shape, strict=True)]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a node's value after the cut."""
        return tuple(int(flags.sum()) for flags in self.along(name))

    def kept(self, name: str) -> list[np.ndarray | None]:
        """Return for each dimension of a node's value the indices that stay, or None where all do.

        For a parameter, what its layer loses.
        """
        value = self.graph.values[name]
        if isinstance(value, Parameter):
            slices = self.graph.walk.slices
            found = [slices.get((value.path, dim)) for dim in range(len(value.shape))]
            flags = [None if known is None else self.of(known.labels) for known in found]
        elif isinstance(value, (Tensor, Stored)):
            flags = self.along(name)
        else:
            return []
        return [None if f is None or bool(f.all()) else np.flatnonzero(f) for f in flags]

    def touches(self, name: str) -> bool:
        """Tell whether a node's value loses anything."""
        labels = self.graph.values.get(name)
        if isinstance(labels, Stored):
            return not all(bool(flags.all()) for flags in self.along(name))
        return isinstance(labels, Tensor) and not bool(self.of(collapse(labels)).all())

    def _stored(self, dimension: tuple[Axis, ...]) -> np.ndarray:
        """Return which indices of one dimension of a value that is computed from parameters stay."""
        flags = np.ones(1, dtype=bool)
        for axis in dimension:
            own = np.ones(axis.length, dtype=bool)
            for place in axis.places & self.graph.walk.slices.keys():
                known = self.graph.walk.slices[place]
                # A grouped kernel stores the columns of each of its groups, which lose equally many.
                own = self.of(known.labels).reshape(known.groups, -1)[0]
            flags = np.outer(flags, own).ravel()
        return flags


def rewrite(graph: ChannelGraph, removed: np.ndarray) -> dict[str, Change]:
    """Return the new calls, by node name, of the operations whose numbers change.

    Parameters
    ----------
    graph
        The traced model.
    removed
        Root labels of all removed channels.
    """
    survivors = Survivors(graph, removed)
    changes: dict[str, Change] = {}
    for node in graph.fx.nodes:
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        packet = getattr(node.target, "overloadpacket", None)
        handler = _HANDLERS.get(packet)
        if packet is None or handler is None:
            continue
        inputs = [n.name for n in node.all_input_nodes]
        if any(survivors.touches(name) for name in inputs) or _makes_cut(survivors, node) or _shifts(survivors, node):
            args, kwargs = handler(survivors, node)
            # A cut may leave chunks of unequal size, which only a split can make.
            target = aten.split_with_sizes.default if handler is _sections else node.target
            target = _LIKE.get(packet, target)
            changes[node.name] = Change(target, args, kwargs)
    return changes


def masked_norms(graph: ChannelGraph, removed: np.ndarray) -> dict[str, Change]:
    """Return calls at full size of the norms that a cut changes: over the kept channels, and zero elsewhere.

    A trace with `approximate=True` lets norms over the channels be cut. What the cut network computes there is the
    norm over the kept channels, so that is what the masked network has to compute too.

    Parameters
    ----------
    graph
        The traced model.
    removed
        Root labels of all removed channels.
    """
    survivors = Survivors(graph, removed)
    changes: dict[str, Change] = {}
    after = rewrite(graph, removed)
    for node in graph.fx.nodes:
        if node.name not in graph.walk.approximate or not any(survivors.touches(n.name) for n in node.all_input_nodes):
            continue
        cut = after.get(node.name, Change(node.target, tuple(node.args), dict(node.kwargs)))
        kept = {source.name: survivors.kept(source.name) for source in node.all_input_nodes}
        sources = [source for source in node.all_input_nodes if source.name in kept]
        norm = _NormOfKept(
            cut, [source.name for source in sources], kept, survivors.kept(node.name), _shape_or_none(node)
        )
        changes[node.name] = Change(norm, tuple(sources), {})
    return changes


def _shape_or_none(node: fx.Node) -> tuple[int, ...] | None:
    value = node.meta["val"]
    return tuple(int(length) for length in value.shape) if isinstance(value, Tensor) else None


class _NormOfKept:
    """An operation on the kept entries of its inputs, put back among zeros."""

    def __init__(
        self,
        cut: Change,
        names: list[str],
        kept: dict[str, list[np.ndarray | None]],
        made: list[np.ndarray | None],
        shape: tuple[int, ...] | None,
    ) -> None:
        """Take the call after the cut, its inputs by name, and which indices of every dimension stay (None: all)."""
        self.cut, self.names, self.kept, self.made, self.shape = cut, names, kept, made, shape
        self.__name__ = "norm_of_kept"

    def __call__(self, *values: Any) -> Any:
        """Run the operation; only lengths of dimensions that lose nothing may differ from the traced ones."""
        given = {name: _narrowed(value, self.kept[name]) for name, value in zip(self.names, values, strict=True)}
        args, kwargs = fx.map_arg((self.cut.args, self.cut.kwargs), lambda node: given[node.name])
        result = self.cut.target(*args, **kwargs)
        if self.shape is None or not isinstance(result, Tensor):
            return result
        whole = [
            length if keep is None else full
            for length, keep, full in zip(result.shape, self.made, self.shape, strict=True)
        ]
        out = result.new_zeros(whole)
        index = [
            torch.arange(length) if keep is None else torch.from_numpy(keep)
            for length, keep in zip(result.shape, self.made, strict=True)
        ]
        if not index:
            return result
        grid = torch.meshgrid(*(i.to(result.device) for i in index), indexing="ij")
        out[grid] = result
        return out


def _narrowed(value: Any, kept: list[np.ndarray | None]) -> Any:
    if isinstance(value, Tensor):
        for dim, keep in enumerate(kept):
            if keep is not None:
                value = value.index_select(dim, torch.from_numpy(keep).to(value.device))
    return value


def _makes_cut(survivors: Survivors, node: fx.Node) -> bool:
    return survivors.touches(node.name)


def _shifts(survivors: Survivors, node: fx.Node) -> bool:
    """Tell whether a part of a parameter is taken that may begin elsewhere once the parameter is cut."""
    source = node.args[0]
    picks = _HANDLERS.get(node.target.overloadpacket) in (_slice, _narrow, _select)  # type: ignore[union-attr]
    if not picks or not isinstance(source, fx.Node) or not isinstance(survivors.graph.values[source.name], Parameter):
        return False
    return not all(bool(flags.all()) for flags in survivors.along(source.name))


def _shape_argument(survivors: Survivors, node: fx.Node) -> tuple[tuple, dict]:
    """Views and expands take the new shape of their result, and leave open what they left open."""
    shape = survivors.shape(node.name)
    given: Any = node.args[1]
    return (node.args[0], [-1 if g == -1 else s for g, s in zip(given, shape, strict=True)], *node.args[2:]), {}


_LIKE = {aten.view_as: aten.view.default, aten.reshape_as: aten.reshape.default}
"""Views that take their shape from an activation, which a cut may leave whole."""


def _shape_of_other(survivors: Survivors, node: fx.Node) -> tuple[tuple, dict]:
    shape = survivors.shape(node.name)
    return (node.args[0], list(shape)), {}


def _unflatten(survivors: Survivors, node: fx.Node) -> tuple[tuple, dict]:
    a = named_arguments(node)
    dim = a["dim"] % len(shape_of(node.args[0]))  # type: ignore[arg-type]
    count = len(shape_of(node)) - len(shape_of(node.args[0])) + 1  # type: ignore[arg-type]
    return (node.args[0], dim, list(survivors.shape(node.name)[dim : dim + count])), {}


def _pad(survivors: Survivors, node: fx.Node) -> tuple[tuple, dict]:
    """A padded dimension that runs over channels pads only those that stay."""
    a = named_arguments(node)
    amounts = list(a["pad"])
    kept = survivors.along(node.name)
    for position in range(len(amounts) // 2):
        dim = len(kept) - 1 - position
        before, after = amounts[2 * position], amounts[2 * position + 1]
        flags = kept[dim]
        amounts[2 * position] = int(flags[: max(before, 0)].sum()) if before > 0 else before
        amounts[2 * position + 1] = int(flags[len(flags) - max(after, 0) :].sum()) if after > 0 else after
    return (node.args[0], amounts, *node.args[2:]), dict(node.kwargs)


def _sections(survivors: Survivors, node: fx.Node) -> tuple[tuple, dict]:
    """Chunks and splits become splits of the new sizes."""
    a = named_arguments(node)
    source = node.args[0]
    dim = a.get("dim", 0) % len(shape_of(source))  # type: ignore[arg-type]
    flags = survivors.along(source.name)[dim]  # type: ignore[union-attr]
    sizes = [int(value.shape[dim]) for value in node.meta["val"]]
    bounds = np.cumsum([0, *sizes])
    return (source, [int(flags[lo:hi].sum()) for lo, hi in pairwise(bounds)], dim), {}


def _slice(survivors: Survivors, node: fx.Node) -> tuple[tuple, dict]:
    """A slice keeps those of its indices that stay, counted among the survivors."""
    a = named_arguments(node)
    source = node.args[0]
    dim = a["dim"] % len(shape_of(source))  # type: ignore[arg-type]
    flags = survivors.along(source.name)[dim]  # type: ignore[union-attr]
    if flags.all():
        return tuple(node.args), dict(node.kwargs)
    wanted = range(len(flags))[slice(a["start"], a["end"], a["step"])]
    return _pick(node, dim, flags, np.asarray(wanted, dtype=np.int64))


def _narrow(survivors: Survivors, node: fx.Node) -> tuple[tuple, dict]:
    a = named_arguments(node)
    source = node.args[0]
    dim = a["dim"] % len(shape_of(source))  # type: ignore[arg-type]
    flags = survivors.along(source.name)[dim]  # type: ignore[union-attr]
    if flags.all():
        return tuple(node.args), dict(node.kwargs)
    return _pick(node, dim, flags, np.arange(a["start"], a["start"] + a["length"]))


def _pick(node: fx.Node, dim: int, flags: np.ndarray, wanted: np.ndarray) -> tuple[tuple, dict]:
    """Return the arguments of `slice` that pick the survivors among `wanted`."""
    rank = np.cumsum(flags) - 1
    index = rank[wanted[flags[wanted]]]
    if len(index) > 1 and len(set(np.diff(index).tolist())) > 1:
        raise PlanError(f"{node.name} picks channels with a stride that the cut breaks; leave its group alone")
    step = int(index[1] - index[0]) if len(index) > 1 else 1
    start = int(index[0]) if len(index) else 0
    stop = int(index[-1]) + 1 if len(index) else 0
    if node.target.overloadpacket is aten.narrow:  # type: ignore[union-attr]
        return (node.args[0], dim, start, stop - start), {}
    return (node.args[0], dim, start, stop, step), {}


def _select(survivors: Survivors, node: fx.Node) -> tuple[tuple, dict]:
    a = named_arguments(node)
    source = node.args[0]
    dim = a["dim"] % len(shape_of(source))  # type: ignore[arg-type]
    flags = survivors.along(source.name)[dim]  # type: ignore[union-attr]
    index = int(a["index"]) % len(flags)
    return (source, dim, int(flags[:index].sum())), {}


def _groups(survivors: Survivors, node: fx.Node) -> tuple[tuple, dict]:
    """A depthwise convolution has as many groups as channels; a grouped one keeps its groups."""
    a = named_arguments(node)
    call = next(c for c in survivors.graph.calls if c.node == node.name)
    if not call.depthwise:
        return tuple(node.args), dict(node.kwargs)
    kept = survivors.along(call.input)
    a["groups"] = int(kept[1 if len(kept) == len(shape_of(node)) and len(kept) > 2 else 0].sum())
    return tuple(a.values()), {}


def _norm_groups(survivors: Survivors, node: fx.Node) -> tuple[tuple, dict]:
    """Group norms keep the size of their groups and lose some of the groups."""
    a = named_arguments(node)
    flags = survivors.along(node.args[0].name)[1]  # type: ignore[union-attr]
    a["num_groups"] = max(1, int(flags.sum()) * a["num_groups"] // len(flags))
    return tuple(a.values()), {}


def _normalized_shape(survivors: Survivors, node: fx.Node) -> tuple[tuple, dict]:
    """A norm over the channels is one over those that stay."""
    shape = survivors.shape(node.name)
    count = len(node.args[1])  # type: ignore[arg-type]
    return (node.args[0], list(shape[len(shape) - count :]), *node.args[2:]), dict(node.kwargs)


def _size(survivors: Survivors, node: fx.Node) -> tuple[tuple, dict]:
    """A constant is made as wide as what it meets."""
    return (list(survivors.shape(node.name)), *node.args[1:]), dict(node.kwargs)


def _size_of_new(survivors: Survivors, node: fx.Node) -> tuple[tuple, dict]:
    return (node.args[0], list(survivors.shape(node.name)), *node.args[2:]), dict(node.kwargs)


def _roll(survivors: Survivors, node: fx.Node) -> tuple[tuple, dict]:
    """A roll by the whole width is none."""
    a = named_arguments(node)
    flags = survivors.along(node.args[0].name)  # type: ignore[union-attr]
    dims = [d % len(flags) for d in a["dims"]]
    return (node.args[0], [s if flags[d].all() else 0 for s, d in zip(a["shifts"], dims, strict=True)], dims), {}


_HANDLERS: dict[Any, Any] = {
    packet: handler
    for names, handler in (
        ("view reshape _unsafe_view expand broadcast_to", _shape_argument),
        ("view_as reshape_as", _shape_of_other),
        ("unflatten", _unflatten),
        ("pad constant_pad_nd", _pad),
        ("chunk split split_with_sizes tensor_split", _sections),
        ("slice", _slice),
        ("narrow", _narrow),
        ("select", _select),
        ("conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d", _groups),
        ("group_norm", _norm_groups),
        ("layer_norm rms_norm", _normalized_shape),
        ("zeros ones full empty", _size),
        ("new_zeros new_ones new_full new_empty", _size_of_new),
        ("roll", _roll),
    )
    for name in names.split()
    if (packet := getattr(aten, name, None)) is not None
}
