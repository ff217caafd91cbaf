"""What widths cost: the multiply-adds that PyTorch's own counter finds, and parameters, as functions of group widths.

Every operation that the counter knows is a sum of products of lengths of dimensions, and labels say of each dimension
which of its indices belong to which channels. What they do not say is constant.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from clusterprune.graph import ChannelGraph
from clusterprune.graph.export import named_arguments
from clusterprune.graph.labels import collapse
from clusterprune.graph.movement import IDENTITY, MOVEMENT
from clusterprune.graph.stored import Stored
from clusterprune.graph.throwaway import randomness_kept
from clusterprune.graph.walk import Parameter

Quantity = Literal["macs", "params"]

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Extent:
    """The length of one dimension: a number, or one root label per index.

    A dimension over the inputs of a grouped convolution holds the inputs of one group only: `divisor` is then the
    number of groups, and the labels are those of all of them.
    """

    size: float
    labels: np.ndarray | None = None
    divisor: int = 1


@dataclass(frozen=True, eq=False)
class Term:
    """A product of lengths, as part of what a node (or a parameter) costs."""

    scale: float
    extents: tuple[Extent, ...]

    @property
    def value(self) -> float:
        """The product at the widths of the traced model."""
        return self.scale * math.prod(extent.size for extent in self.extents)


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
        reader = _Reader(graph)
        self.tables = {
            "macs": Table.of(reader.macs(), owner, self.widths),
            "params": Table.of(reader.params(), owner, self.widths),
        }

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


class _Reader:
    """Reads terms off a graph."""

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        self._vectors: dict[tuple[str, int], np.ndarray | None] = {}

    def macs(self) -> Iterable[Term]:
        """Yield what every operation of the graph costs."""
        measured: dict[Any, float] = {}
        for node in self.graph.fx.nodes:
            packet = getattr(node.target, "overloadpacket", None)
            if node.op != "call_function" or packet is None or packet in MOVEMENT or packet in IDENTITY:
                continue
            terms = _COSTS[packet](self, node) if packet in _COSTS else None
            if terms is not None:
                yield from terms
            elif packet not in FREE and torch.Tag.pointwise not in node.target.tags:
                key = (node.target, _signature(node))
                if key not in measured:
                    measured[key] = measure(node)
                if measured[key]:
                    yield Term(measured[key], ())

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


_Cost = Callable[[_Reader, fx.Node], "list[Term] | None"]
_COSTS: dict[Any, _Cost] = {}


def _cost_of(names: str) -> Callable[[_Cost], _Cost]:
    def enter(function: _Cost) -> _Cost:
        for name in names.split():
            if (packet := getattr(aten, name, None)) is not None:
                _COSTS[packet] = function
        return function

    return enter


@_cost_of("conv1d conv2d conv3d convolution _convolution conv_transpose1d conv_transpose2d conv_transpose3d")
def _convolution(reader: _Reader, node: fx.Node) -> list[Term]:
    a = named_arguments(node)
    x, weight, groups = a["input"], a["weight"], int(a.get("groups", 1))
    transposed = bool(a.get("transposed")) or "transpose" in str(node.target)
    channel = 1 if x.meta["val"].ndim == weight.meta["val"].ndim else 0
    kernel = math.prod(int(length) for length in weight.meta["val"].shape[2:])
    # Positions are those of the output; where kernels are written to overlapping places, those of the input.
    wide, narrow = (x, node) if transposed else (node, x)
    columns = int(weight.meta["val"].shape[1])
    depthwise = groups > 1 and groups == int(x.meta["val"].shape[channel])
    inner = Extent(columns) if depthwise else reader.along(narrow, channel, groups)
    return [Term(float(kernel), (*reader.all_of(wide), inner))]


@_cost_of("linear")
def _linear(reader: _Reader, node: fx.Node) -> list[Term] | None:
    x: Any = node.args[0]
    return [Term(1.0, (*reader.all_of(node), reader.along(x, -1)))] if x.meta["val"].ndim > 1 else None


@_cost_of("mm bmm matmul")
def _product(reader: _Reader, node: fx.Node) -> list[Term] | None:
    return _matrices(reader, node, node.args[0], node.args[1])


@_cost_of("addmm baddbmm")
def _sum_and_product(reader: _Reader, node: fx.Node) -> list[Term] | None:
    return _matrices(reader, node, node.args[1], node.args[2])


def _matrices(reader: _Reader, node: fx.Node, first: Any, second: Any) -> list[Term] | None:
    """Count a product of matrices; products with vectors are none to PyTorch's counter, which is asked then."""
    if min(first.meta["val"].ndim, second.meta["val"].ndim) < 2:
        return None
    return [Term(1.0, (*reader.all_of(node), reader.shared(first, -1, second, -2)))]


@_cost_of("scaled_dot_product_attention")
def _attention(reader: _Reader, node: fx.Node) -> list[Term]:
    query, key, value = (node.args[i] for i in range(3))
    batch = reader.all_of(node, skip=(-2, -1))
    pairs = (reader.along(query, -2), reader.along(key, -2))
    inner = reader.shared(query, -1, key, -1)
    return [Term(1.0, (*batch, *pairs, inner)), Term(1.0, (*batch, *pairs, reader.along(value, -1)))]


@_cost_of("einsum")
def _einsum(reader: _Reader, node: fx.Node) -> list[Term] | None:
    """Count a sum over products of two operands by its letters, if PyTorch's counter agrees."""
    equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    sides = equation.partition("->")[0].split(",")
    if "." in equation or not isinstance(operands, (list, tuple)) or len(operands) != 2 or len(sides) != 2:
        return None
    lengths: dict[str, Extent] = {}
    for letters, operand in zip(sides, operands, strict=True):
        for dim, letter in enumerate(letters):
            if letter not in lengths or lengths[letter].labels is None:
                lengths[letter] = reader.along(operand, dim)
    term = Term(1.0, tuple(lengths.values()))
    return [term] if math.isclose(term.value, measure(node)) else None


FREE: frozenset[Any] = frozenset(
    packet
    for name in (
        "batch_norm instance_norm group_norm layer_norm rms_norm native_layer_norm softmax log_softmax mean sum amax "
        "amin max min var std var_mean std_mean prod argmax cumsum norm linalg_vector_norm pad constant_pad_nd topk "
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
        "adaptive_avg_pool3d adaptive_max_pool2d upsample_nearest1d upsample_nearest2d upsample_bilinear2d "
        "upsample_bicubic2d upsample_nearest3d upsample_trilinear3d upsample_linear1d zeros ones full arange empty "
        "zeros_like ones_like full_like new_zeros new_ones scalar_tensor linspace"
    ).split()
    if (packet := getattr(aten, name, None)) is not None
)
"""Operators that PyTorch's counter is known not to count; of every other one it is asked."""


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
