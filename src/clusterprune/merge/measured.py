"""What the consumers of groups read and what the output makes of it, measured on all images and on folds of them.

What is fitted on all folds but one is priced on that one, in turn.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from clusterprune.budget.allocation import CostModel, example_batch
from clusterprune.graph import ChannelGraph, Group
from clusterprune.graph.images import Progress, batch_size_for, gradient_batch_size
from clusterprune.graph.program import computed_kernels, named_tensors
from clusterprune.merge._base import Moments
from clusterprune.merge.data_free import batch_statistics
from clusterprune.merge.divergence import BY_KIND, Divergence
from clusterprune.merge.layer_inputs import consumers, folds, reading
from clusterprune.merge.statistics import consumer_calls, input_moments, output_importance


@dataclass(frozen=True, eq=False)
class Measured:
    """What :func:`measure` found, by node name of the layer calls that read prunable groups.

    Attributes
    ----------
    moments
        Second moments of what each call reads: of its patches where `whole_kernel` says so, else of its channels.
    importance
        How much the output cares for each output of a call.
    rows
        Positions that the moments are of.
    folds
        The parts of the images that it was measured on.
    divergence
        How far outputs are from the original's.
    changes
        What is changed in the graph where it is run: without data, batch norms standardise over the batch.
    """

    moments: dict[str, Tensor]
    importance: dict[str, Tensor]
    whole_kernel: dict[str, bool]
    rows: dict[str, int]
    folds: tuple["Fold", ...] = ()
    divergence: Divergence = BY_KIND
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, eq=False)
class Fold:
    """Some of the images: what is fitted on all others is priced on them.

    A layer behind a global pool sees one row per image. With fewer images than channels the others can stand in for
    almost any of them, on those images, and a price on the same images agrees.
    """

    images: tuple[Tensor, ...]
    moments: dict[str, Tensor]
    rows: dict[str, int]


@dataclass(frozen=True)
class Effort:
    """How closely layers are looked at.

    Attributes
    ----------
    output_aware, temperature
        Whether importance is the Fisher information of predictions, softened so much; otherwise all is one.
    whole_kernel_limit
        Layers with more unknowns per output than this have moments of channels, not of kernels.
    moment_rows
        Rows from which each layer's second moments are estimated.
    work
        Multiply-adds that may be spent, of which a third goes to importance; large networks see fewer images.
    n_folds
        Parts that the images are split into, each of which is priced by what was fitted on the others.
    """

    output_aware: bool
    temperature: float
    whole_kernel_limit: int
    moment_rows: int
    work: float
    n_folds: int = 4


class Without(Mapping[str, Tensor]):
    """The moments of all images but those of one fold, by node name."""

    def __init__(self, measured: Measured, fold: Fold) -> None:
        self._measured, self._fold = measured, fold
        self.rows = {node: max(1, measured.rows[node] - fold.rows[node]) for node in fold.rows}

    def __getitem__(self, node: str) -> Tensor:
        every, own = self._measured.rows[node], self._fold.rows[node]
        if every == own:
            return self._measured.moments[node]
        whole = self._measured.moments[node] * (every / self.rows[node])
        return whole.sub_(self._fold.moments[node], alpha=own / self.rows[node])

    def __iter__(self) -> Iterator[str]:
        return iter(self._fold.rows)

    def __len__(self) -> int:
        return len(self._fold.rows)


def measure(
    graph: ChannelGraph,
    groups: list[Group],
    inputs: tuple[Tensor, ...],
    effort: Effort,
    *,
    data_free: bool = False,
    generator: torch.Generator,
    progress: Progress | None,
    divergence: Divergence = BY_KIND,
) -> Measured:
    """Measure second moments of what layers read, and the importance of what they make.

    They are of all images, and of each of some folds of them, for a price that can be trusted.

    Parameters
    ----------
    data_free
        Whether the images are noise, so that batch norms have to standardise it.
    """
    state = {path: tensor.detach() for path, tensor in named_tensors(graph).items()}
    calls = [
        node
        for nodes in consumer_calls(graph, {u.path for g in groups for u in g.consumers}, computed=True).values()
        for node in nodes
    ]
    readers = graph.call_of
    kernels = computed_kernels(graph, state)
    whole_kernel: dict[str, bool] = {}
    for node in calls:
        weight = kernels.get(node, state[readers[node].weight])
        dense = readers[node].slides and readers[node].groups == 1 and weight.ndim in (3, 4)
        whole_kernel[node] = dense and weight[0].numel() <= effort.whole_kernel_limit
    size = batch_size_for(graph)
    changes = batch_statistics(graph) if data_free else dict[str, Any]()
    common: dict[str, Any] = {"batch_size": size, "generator": generator, "changes": changes}
    few = images_for(graph, inputs, effort.work / 3, 3, 16, most=384)
    if effort.output_aware:
        gradients: dict[str, Any] = {
            **common,
            "batch_size": gradient_batch_size(graph),
            "temperature": effort.temperature,
        }
        importance = output_importance(graph, state, few, calls, divergence=divergence, progress=progress, **gradients)
    else:
        importance = {node: torch.ones(_outputs(graph, node), dtype=torch.float64) for node in calls}
    many = images_for(graph, inputs, effort.work * 0.4, 1, 48)
    parts: list[Fold] = []
    for images in _folds(graph, many, effort.n_folds):
        rows: dict[str, int] = {}
        share = max(1, round(effort.moment_rows * len(images[0]) / len(many[0])))
        found = input_moments(
            graph, state, images, whole_kernel, folded=folds(graph), rows=share, seen=rows,
            progress=part_of(progress, sum(len(part.images[0]) for part in parts), len(many[0])), **common,
        )  # fmt: skip
        # A fold is only ever taken away from the whole: single precision is enough, and half the room.
        kept = {node: moment.cpu() if effort.n_folds == 1 else moment.float().cpu() for node, moment in found.items()}
        parts.append(Fold(images, kept, rows))
    rows = {node: sum(part.rows[node] for part in parts) for node in parts[0].rows}
    moments = {
        node: sum((p.moments[node].double() * (p.rows[node] / rows[node]) for p in parts), torch.zeros(()))
        for node in rows
    }
    importance = {node: value.cpu() for node, value in importance.items()}
    return Measured(moments, importance, whole_kernel, rows, tuple(parts), divergence, changes)


def _outputs(graph: ChannelGraph, node: str) -> int:
    return int(graph.nodes[node].meta["val"].shape[graph.call_of[node].channel_dim])


def few_rows(graph: ChannelGraph, groups: list[Group], measured: Measured) -> dict[str, int]:
    """Say which groups are read from fewer rows than channels, and how many images would show twice as many.

    A layer behind a global pool shows one row per image. What the others can stand in for is then a guess, and the
    price of it, taken on other images, is high: such groups are cut less than they might be.
    """
    images = sum(len(fold.images[0]) for fold in measured.folds)
    found: dict[str, int] = {}
    for group in groups:
        shown: dict[str, int] = {}
        for consumer in consumers(graph, group, measured.whole_kernel):
            if consumer.use.mixable:
                # All that a layer reads, whichever of its calls it is.
                shown[consumer.use.path] = shown.get(consumer.use.path, 0) + measured.rows[consumer.call.node]
        least = min(shown.values(), default=group.width)
        if least < group.width:
            found[group.name] = -(-2 * group.width * images // max(1, least))
    return found


def images_for(
    graph: ChannelGraph, inputs: tuple[Tensor, ...], macs: float, passes: float, least: int, most: int = 1024
) -> tuple[Tensor, ...]:
    """Return as many images as a share of the work allows."""
    each = CostModel(graph).total("macs") / example_batch(graph) * passes
    count = int(min(len(inputs[0]), most, max(least, macs / max(each, 1.0))))
    step = batch_size_for(graph) if graph.batch_size.fixed is not None else 1
    return tuple(tensor[: -(-count // step) * step] for tensor in inputs)


def _folds(graph: ChannelGraph, inputs: tuple[Tensor, ...], count: int) -> list[tuple[Tensor, ...]]:
    """Split the images into so many parts of about the same size, or fewer where a graph runs with one batch size."""
    step = batch_size_for(graph) if graph.batch_size.fixed is not None else 1
    batches_ = len(inputs[0]) // step
    bounds = [round(batches_ * k / min(count, batches_)) * step for k in range(min(count, batches_) + 1)]
    bounds[-1] = len(inputs[0])
    return [tuple(t[lo:hi] for t in inputs) for lo, hi in pairwise(bounds)]


def part_of(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Return what tells the progress of a part as that of the whole."""
    return None if progress is None else lambda phase, done, _: progress(phase, before + done, total)


def moments_of(graph: ChannelGraph, measured: Measured, others: Without | None = None) -> Moments:
    """Return what every consumer reads: of all images, or of those without a fold."""
    moments, rows = (measured.moments, measured.rows) if others is None else (others, others.rows)
    return reading(graph, measured.whole_kernel, moments, rows)
