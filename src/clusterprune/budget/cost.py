"""What widths cost: the multiply-adds that PyTorch's own counter finds, and parameters, as functions of group widths.

Every operation that the counter knows is a sum of products of lengths of dimensions, and labels say of each dimension
which of its indices belong to which channels. What they do not say is constant.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from clusterprune.graph import ChannelGraph
from clusterprune.graph.labels import collapse
from clusterprune.graph.ops import Extent, Term, op_of
from clusterprune.graph.put_back import randomness_kept
from clusterprune.graph.stored import Stored
from clusterprune.graph.walk import Parameter

Quantity = Literal["macs", "params", "latency"]
"""What is counted; the time of a network, in milliseconds, only where it was measured (:meth:`CostModel.add`)."""


class CostModel:
    """MACs and parameters of a network as functions of its groups' widths.

    At the traced widths the MACs are what `torch.utils.flop_counter` counts in the traced graph, halved: convolutions,
    linear layers, matrix products and attention, whether their operands are stored or computed. One multiply-add
    counts as one. Operations that PyTorch counts and whose cost no product of dimensions tells (a GRU) are measured
    once, and are constant.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        """Read the lengths of every counted operation off the graph's labels."""
        self.graph = graph
        self.widths = np.array([group.width for group in graph.groups], dtype=float)
        owner = np.full(len(graph.walk.space) + 1, -1)
        for index, group in enumerate(graph.groups):
            owner[group.labels] = index
        self._owner = owner
        reader = LengthReader(graph)
        self.tables: dict[Quantity, Table] = {
            "macs": Table.of(reader.macs(), owner, self.widths),
            "params": Table.of(reader.params(), owner, self.widths),
        }

    def add(self, quantity: Quantity, terms: Iterable[Term]) -> None:
        """Count something else too, as a sum of products of lengths: see :mod:`clusterprune.budget.latency`."""
        self.tables[quantity] = Table.of(terms, self._owner, self.widths)

    def total(self, quantity: Quantity, widths: np.ndarray | None = None) -> float:
        """Return MACs (of the example's batch) or parameters at the given widths (default: as they are)."""
        return self.tables[quantity].total(self.widths if widths is None else widths)

    def with_widths(self, widths: Mapping[str, int]) -> np.ndarray:
        """Return the width of every group, in the graph's order: the given ones, and the others as they are."""
        return np.array([widths.get(group.name, group.width) for group in self.graph.groups], dtype=float)

    def gradient(self, quantity: Quantity, widths: np.ndarray) -> np.ndarray:
        """Return the cost of one more channel in every group, at the given widths."""
        return self.tables[quantity].gradient(widths)

    def without(self, quantity: Quantity, removed: np.ndarray) -> float:
        """Return what is left once certain channels are gone, counted index by index.

        Parameters
        ----------
        removed
            Root labels of the removed channels.
        """
        alive = np.ones(len(self.graph.walk.space), dtype=bool)
        alive[removed] = False
        return self.tables[quantity].alive(alive)


@dataclass(frozen=True, eq=False)
class Table:
    """Sums of products of factors, each factor a constant plus multiples of group widths.

    Attributes
    ----------
    constants, multiples
        Of the factors: shapes (factors,) and (factors, groups). The first factor is 1.
    labels
        Labels that a factor counts, and by what it divides their number; None for a constant.
    scales, factors
        Of the products: shapes (products,) and (products, most factors of one); unused places hold factor 0.
    """

    constants: np.ndarray
    multiples: np.ndarray
    labels: tuple[tuple[np.ndarray, int] | None, ...]
    scales: np.ndarray
    factors: np.ndarray

    @classmethod
    def of(cls, terms: Iterable[Term], owner: np.ndarray, widths: np.ndarray) -> "Table":
        """Gather the terms of equal factors."""
        known: dict[tuple[bytes, int], int] = {}
        constants, rows = [1.0], [np.zeros(len(widths))]
        labels: list[tuple[np.ndarray, int] | None] = [None]
        products: dict[tuple[int, ...], float] = {}
        for term in terms:
            scale, used = term.scale, []
            for extent in term.extents:
                if extent.labels is None:
                    scale *= extent.size
                    continue
                key = (extent.labels.tobytes(), extent.divisor)
                if key not in known:
                    owners = owner[extent.labels]
                    counts = np.bincount(owners[owners >= 0], minlength=len(widths)) / extent.divisor
                    known[key] = len(constants)
                    constants.append(float((owners < 0).sum()) / extent.divisor)
                    rows.append(np.divide(counts, widths, out=np.zeros(len(widths)), where=widths > 0))
                    labels.append((extent.labels, extent.divisor))
                used.append(known[key])
            factors = tuple(sorted(used))
            products[factors] = products.get(factors, 0.0) + scale
        most = max((len(key) for key in products), default=0) or 1
        places = np.zeros((len(products), most), dtype=np.int64)
        for number, key in enumerate(products):
            places[number, : len(key)] = key
        scales = np.array(list(products.values()), dtype=float)
        return cls(np.array(constants), np.stack(rows), tuple(labels), scales, places)

    def values(self, widths: np.ndarray) -> np.ndarray:
        """Return every factor at the given widths."""
        return self.constants + self.multiples @ widths

    def total(self, widths: np.ndarray) -> float:
        """Return the sum of all products at the given widths."""
        return self._sum(self.values(widths))

    def alive(self, alive: np.ndarray) -> float:
        """Return the sum of all products when only some labels are left, by a flag for every label."""
        values = [1.0 if found is None else alive[found[0]].sum() / found[1] for found in self.labels]
        return self._sum(np.array(values, dtype=float))

    def _sum(self, values: np.ndarray) -> float:
        return float(self.scales @ values[self.factors].prod(1)) if len(self.scales) else 0.0

    def gradient(self, widths: np.ndarray) -> np.ndarray:
        """Return the derivative of the sum by every width."""
        values = self.values(widths)
        by_factor = np.zeros(len(values))
        for place in range(self.factors.shape[1]):
            others = np.delete(self.factors, place, axis=1)
            np.add.at(by_factor, self.factors[:, place], self.scales * values[others].prod(1))
        by_factor[0] = 0.0
        return self.multiples.T @ by_factor


class LengthReader:
    """Reads terms off a graph: the lengths of its values' dimensions, as channels."""

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        self._vectors: dict[tuple[str, int], np.ndarray | None] = {}
        self._measured: dict[Any, float] = {}

    def macs(self) -> Iterable[Term]:
        """Yield what every operation of the graph costs."""
        for node in self.graph.fx.nodes:
            if not isinstance(node.target, torch._ops.OpOverload):
                continue
            op = op_of(node)
            terms = op.cost(self, node) if op is not None and op.cost is not None else None
            if terms is not None:
                yield from terms
            elif cost := self.measured(node):
                yield Term(cost, ())

    def measured(self, node: fx.Node) -> float:
        """Return the multiply-adds that PyTorch's counter finds in one call; equal calls are run once."""
        key = (node.target, _signature(node))
        if key not in self._measured:
            self._measured[key] = measure(node)
        return self._measured[key]

    def params(self) -> Iterable[Term]:
        """Yield what every parameter of the model costs."""
        for path, parameter in self.graph.model.named_parameters():
            yield Term(1.0, tuple(self._stored(path, dim, size) for dim, size in enumerate(parameter.shape)))

    def along(self, node: Any, dim: int, divisor: int = 1) -> Extent:
        """Return the length of one dimension of a node's value."""
        shape = node.meta["val"].shape
        dim %= len(shape)
        labels = self.graph.values.get(node.name)
        if isinstance(labels, Parameter):
            return self._stored(labels.path, dim, int(shape[dim]))
        if isinstance(labels, Stored):
            known = sorted(labels.rows(dim) | labels.columns(dim))
            return self._stored(*known[0], int(shape[dim])) if known else Extent(int(shape[dim]))
        if not isinstance(labels, Tensor) or labels.shape != shape:
            return Extent(int(shape[dim]) / divisor)
        if (node.name, dim) not in self._vectors:
            self._vectors[node.name, dim] = self._extent(labels, dim).labels
        return Extent(int(shape[dim]) / divisor, self._vectors[node.name, dim], divisor)

    def _stored(self, path: str, dim: int, size: int) -> Extent:
        """Return the length of one dimension of a parameter."""
        known = self.graph.walk.slices.get((path, dim))
        if known is None or len(known.labels) != size * known.groups:
            return Extent(size)
        return self._extent(known.labels, 0, known.groups)

    def _extent(self, labels: Tensor, dim: int, divisor: int = 1) -> Extent:
        """Return a dimension's labels; those of a dimension whose every index meets several channels say nothing."""
        size = int(labels.shape[dim])
        small = collapse(labels)
        if small.shape[dim] != size or size == 0:
            return Extent(size / divisor)
        rows = self.graph.walk.space.roots(small.movedim(dim, 0).reshape(size, -1).numpy())
        if not (rows == rows[:, :1]).all():
            return Extent(size / divisor)
        vector = rows[:, 0]
        return Extent(size / divisor, None if (vector == vector[0]).all() and size > 1 else vector, divisor)

    def all_of(self, node: Any, skip: tuple[int, ...] = ()) -> tuple[Extent, ...]:
        """Return the lengths of all dimensions of a node's value but some."""
        count = node.meta["val"].ndim
        left_out = {dim % count for dim in skip}
        return tuple(self.along(node, dim) for dim in range(count) if dim not in left_out)

    def shared(self, first: Any, dim: int, second: Any, other: int) -> Extent:
        """Return the length that two operands sum over, from whichever of them says more about it."""
        found = self.along(first, dim)
        return found if found.labels is not None else self.along(second, other)


def _signature(node: fx.Node) -> str:
    """Return what the cost of a call can depend on, as text."""
    return repr(
        _without_nodes((node.args, node.kwargs), lambda value: (value.dtype, tuple(value.shape), value.stride()))
    )


def measure(node: fx.Node) -> float:
    """Return the multiply-adds that PyTorch's counter finds in one call, run on zeros where the model runs.

    What cannot be run on them counts as nothing, as everything does of which PyTorch's counter knows nothing.
    """
    target: Any = node.target
    args, kwargs = _without_nodes((tuple(node.args), dict(node.kwargs)), _zeros)
    with torch.no_grad(), randomness_kept(), FlopCounterMode(display=False) as counter:
        try:
            target(*args, **kwargs)
        except Exception:  # a call that needs numbers of a certain kind
            return 0.0
    return counter.get_total_flops() / 2


def _zeros(value: Tensor) -> Tensor:
    """Return zeros of the same layout in memory: how a product is carried out may depend on that."""
    shape, stride = [int(length) for length in value.shape], [int(step) for step in value.stride()]
    size = 1 + sum((length - 1) * step for length, step in zip(shape, stride, strict=True)) if value.numel() else 0
    return torch.zeros(size, dtype=value.dtype, device=value.device).as_strided(shape, stride)


def _without_nodes(nest: Any, replace: Callable[[Tensor], Any]) -> Any:
    """Return arguments with something in place of every tensor that a node stands for."""
    if isinstance(nest, fx.Node):
        return pytree.tree_map_only(Tensor, replace, nest.meta.get("val"))
    if isinstance(nest, (tuple, list)):
        return [_without_nodes(part, replace) for part in nest]
    if isinstance(nest, dict):
        return {key: _without_nodes(part, replace) for key, part in nest.items()}
    return nest
