r"""What widths cost in time: layers measured at several widths, put together to a network.

A layer that reads i channels and makes o is timed on a grid of both, and the surface

.. math:: t(i, o) = a + b\,i + c\,o + d\,i\,o \qquad a, b, c, d \ge 0

is fitted to the times: a is what calling the layer takes, b and c what moving its maps does, d what its multiply-adds
do. The four are terms like those of the multiply-adds, so that the same search shares a budget of either kind. What is
between the layers moves numbers; of the network's time it gets what its layers leave, by the size of its maps.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls
from torch import Tensor, fx

from clusterprune.budget.cost import LengthReader
from clusterprune.graph import ChannelGraph, LayerCall
from clusterprune.graph.ops import Extent, Term, named_arguments, op_of
from clusterprune.runtimes.layer_times import LatencyTable, LayerShape

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of a layer's channels, at which it is timed."""
BLOCK = 8
"""Channels that a processor's kernels work on at a time; timed widths are multiples of it where there are as many."""


@dataclass(frozen=True, eq=False)
class TimedLayer:
    """A layer of a network, and which channels its two widths count.

    Attributes
    ----------
    shape
        As it was traced.
    inputs, outputs
        Its widths; both the same where a depthwise layer carries channels on.
    """

    shape: LayerShape
    inputs: Extent
    outputs: Extent

    @property
    def carries(self) -> bool:
        """Whether it is depthwise."""
        return self.shape.groups > 1 and self.shape.groups == self.shape.inputs

    def at(self, inputs: int, outputs: int) -> LayerShape:
        """Return the shape that it has at other widths."""
        if self.carries:
            each = self.shape.outputs // self.shape.inputs
            return replace(self.shape, inputs=inputs, outputs=each * inputs, groups=inputs)
        return replace(self.shape, inputs=inputs, outputs=outputs)


def timed_layers(graph: ChannelGraph, batch: int | None = None) -> list[TimedLayer]:
    """Return the layers of a network in order of execution, as far as they can be timed by themselves.

    Parameters
    ----------
    batch
        Images in a pass; None for those of the traced example.
    """
    reader = LengthReader(graph)
    found = [_layer(graph, reader, call, batch) for call in graph.calls]
    return [layer for layer in found if layer is not None]


def _layer(graph: ChannelGraph, reader: LengthReader, call: LayerCall, batch: int | None) -> TimedLayer | None:
    node = graph.nodes[call.node]
    a = named_arguments(node)
    source = a.get("input")
    value = node.meta.get("val")
    if not isinstance(source, fx.Node) or not isinstance(value, Tensor):
        return None
    read = source.meta["val"].shape
    images = int(read[0]) if batch is None else batch * int(read[0]) // max(1, _traced_batch(graph))
    dim = call.channel_dim
    widths = int(read[dim]), int(value.shape[dim])
    extents = reader.along(source, dim), reader.along(node, dim)
    if call.by_row:
        rows = images * int(np.prod(read[1:-1], dtype=np.int64))
        return TimedLayer(LayerShape("linear", rows, *widths), *extents)
    if not call.slides or len(read) < 3 or isinstance(a.get("padding"), str):
        return None
    space = len(read) - 2

    def several(name: str, default: int) -> tuple[int, ...]:
        given = a.get(name, default)
        numbers = tuple(int(n) for n in given) if isinstance(given, (list, tuple)) else (int(given),)
        return numbers if len(numbers) == space else numbers[:1] * space

    kernel = tuple(int(n) for n in a["weight"].meta["val"].shape[2:])
    shape = LayerShape(
        "conv", images, *widths, tuple(int(n) for n in read[2:]), kernel, several("stride", 1), several("padding", 0),
        several("dilation", 1), call.groups, a.get("transposed") or call.row_dim == 1,
    )  # fmt: skip
    return TimedLayer(shape, *extents)


def _traced_batch(graph: ChannelGraph) -> int:
    return int(graph.example_tensors[0].shape[0])


class LatencyModel:
    """The time of a network as a function of its groups' widths, on one runtime.

    Parameters
    ----------
    graph
        The traced network.
    table
        Times of layers; measured where it does not have them yet.
    whole_ms
        Time of the whole network as it is; what its layers leave of that goes to what is between them.
    batch
        Images in a pass.
    progress
        Called with (phase, done, total) as layers are timed.

    Attributes
    ----------
    terms
        For :class:`clusterprune.budget.cost.CostModel`, as quantity "latency".
    """

    def __init__(
        self,
        graph: ChannelGraph,
        table: LatencyTable,
        whole_ms: float,
        *,
        batch: int | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self.graph, self.table = graph, table
        self.layers = timed_layers(graph, batch)
        self.terms: list[Term] = []
        fitted: dict[LayerShape, np.ndarray] = {}
        told = 0.0
        for number, layer in enumerate(self.layers):
            if layer.shape not in fitted:
                fitted[layer.shape] = self._fit(layer)
            told += self.table.ms(layer.shape)
            self.terms += _terms(layer, fitted[layer.shape])
            if progress is not None:
                progress("layers timed", number + 1, len(self.layers))
        # Layers in a row may be faster than each by itself, never so that nothing is left for what is between them.
        scale = min(1.0, 0.95 * whole_ms / told) if told > 0 else 1.0
        self.terms = [replace(term, scale=term.scale * scale) for term in self.terms]
        self.terms += _between(graph, whole_ms - scale * told)

    def _fit(self, layer: TimedLayer) -> np.ndarray:
        """Return a, b, c and d, for widths as shares of the layer's own."""
        wide, long = layer.shape.inputs, layer.shape.outputs
        ways = [_widths(wide, layer.inputs), [long] if layer.carries else _widths(long, layer.outputs)]
        points = [(i, o) for i in ways[0] for o in ways[1]]
        times = np.array([self.table.ms(layer.at(i, o)) for i, o in points])
        i, o = (np.array([p[k] for p in points], dtype=float) / (wide, long)[k] for k in (0, 1))
        if layer.carries:
            rows = np.stack([np.ones_like(i), i, np.zeros_like(i), np.zeros_like(i)], axis=1)
        else:
            rows = np.stack([np.ones_like(i), i, o, i * o], axis=1)
        # Relative errors count: a layer at a quarter of its widths is as likely a choice as the whole one.
        weight = 1 / np.maximum(times, 1e-9)
        return nnls(rows * weight[:, None], times * weight)[0]


def _widths(width: int, extent: Extent) -> list[int]:
    """Return the widths at which a layer is timed, the whole one last; one alone where nothing is ever cut."""
    if extent.labels is None:
        return [width]
    step = BLOCK if width >= 2 * BLOCK else 1
    return sorted({min(width, max(step, round(share * width / step) * step)) for share in SHARES} | {width})


def _terms(layer: TimedLayer, fitted: np.ndarray) -> list[Term]:
    wide, long = float(layer.shape.inputs), float(layer.shape.outputs)
    a, b, c, d = (float(value) for value in fitted)
    found = [
        Term(a, ()),
        Term(b / wide, (layer.inputs,)),
        Term(c / long, (layer.outputs,)),
        Term(d / (wide * long), (layer.inputs, layer.outputs)),
    ]
    return [term for term in found if term.scale > 0]


def _between(graph: ChannelGraph, ms: float) -> list[Term]:
    """Share a time among the operations that are no layers, by the sizes of what they make."""
    reader = LengthReader(graph)
    layers = {call.node for call in graph.calls}
    sizes: list[Term] = []
    for node in graph.fx.nodes:
        value = node.meta.get("val")
        if node.op != "call_function" or node.name in layers or not isinstance(value, Tensor) or value.ndim < 3:
            continue
        op = op_of(node)
        if op is not None and (op.moves or op.passes):
            continue  # a view takes no time
        sizes.append(Term(1.0, reader.all_of(node)))
    total = sum(term.value for term in sizes)
    if total <= 0 or ms <= 0:
        return [Term(max(ms, 0.0), ())]
    return [replace(term, scale=ms / total) for term in sizes]
