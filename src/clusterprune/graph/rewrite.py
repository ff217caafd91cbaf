# pyright: reportUnknownMemberType=false
"""What a cut does to the arguments of operations that mention sizes or positions.

The exported graph holds numbers that stop being true when channels go: the sizes of a view, where a slice
begins, how many channels a shortcut pads. Labels tell which elements stay alive, and because every tensor
of labels is a grid, the living elements of each dimension give the new numbers directly.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from clusterprune.errors import PlanError
from clusterprune.graph.channels import ChannelGraph
from clusterprune.graph.labels import collapse
from clusterprune.graph.ops import CallEdit, op_of
from clusterprune.graph.stored import Axis, Stored
from clusterprune.graph.walk import LayerCall, Parameter


class ChannelMask:
    """Which channels stay alive, and so which indices of every activation's dimensions."""

    def __init__(self, graph: ChannelGraph, removed: np.ndarray) -> None:
        """Take the root labels of the removed channels."""
        self.graph = graph
        self._alive = np.ones(len(graph.walk.space), dtype=bool)
        self._alive[removed] = False

    def of(self, labels: Tensor) -> np.ndarray:
        """Return for each label whether it is alive."""
        return self._alive[self.graph.walk.space.roots(labels)]

    def call_of(self, name: str) -> LayerCall:
        """Return the layer call of a node."""
        return self.graph.call_of[name]

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


def rewrite(graph: ChannelGraph, removed: np.ndarray) -> dict[str, CallEdit]:
    """Return the new calls, by node name, of the operations whose numbers change.

    Parameters
    ----------
    graph
        The traced model.
    removed
        Root labels of all removed channels.
    """
    mask = ChannelMask(graph, removed)
    changes: dict[str, CallEdit] = {}
    for node in graph.fx.nodes:
        op = op_of(node)
        if op is None or op.rewrite is None:
            continue
        touched = any(mask.touches(source.name) for source in node.all_input_nodes)
        if touched or mask.touches(node.name) or _shifts(mask, node):
            changes[node.name] = op.rewrite(mask, node)
    return changes


def masked_norms(graph: ChannelGraph, removed: np.ndarray) -> dict[str, CallEdit]:
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
    mask = ChannelMask(graph, removed)
    changes: dict[str, CallEdit] = {}
    after = rewrite(graph, removed)
    for node in graph.fx.nodes:
        if node.name not in graph.walk.approximate or not any(mask.touches(n.name) for n in node.all_input_nodes):
            continue
        cut = after.get(node.name, CallEdit(node.target, tuple(node.args), dict(node.kwargs)))
        kept = {source.name: mask.kept(source.name) for source in node.all_input_nodes}
        sources = [source for source in node.all_input_nodes if source.name in kept]
        norm = _NormOfKept(cut, [source.name for source in sources], kept, mask.kept(node.name), _shape_or_none(node))
        changes[node.name] = CallEdit(norm, tuple(sources), {})
    return changes


def _shape_or_none(node: fx.Node) -> tuple[int, ...] | None:
    value = node.meta["val"]
    return tuple(int(length) for length in value.shape) if isinstance(value, Tensor) else None


class _NormOfKept:
    """An operation on the kept entries of its inputs, put back among zeros."""

    def __init__(
        self,
        cut: CallEdit,
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


def _shifts(mask: ChannelMask, node: fx.Node) -> bool:
    """Tell whether a part of a parameter is taken that may begin elsewhere once the parameter is cut."""
    op, source = op_of(node), node.args[0]
    if op is None or not op.shifts or not isinstance(source, fx.Node):
        return False
    stored = isinstance(mask.graph.values[source.name], Parameter)
    return stored and not all(bool(flags.all()) for flags in mask.along(source.name))
