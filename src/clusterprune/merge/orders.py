"""In which order the channels of every group go, and what each step on that way costs the network's loss."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from clusterprune.budget.allocation import CostModel, example_batch
from clusterprune.graph import ChannelGraph, Group
from clusterprune.graph.images import Progress, gradient_batch_size
from clusterprune.graph.program import computed_kernels, named_tensors
from clusterprune.merge._base import Kept
from clusterprune.merge.elimination import LayerInput, RemovalOrder, eliminate, refitted
from clusterprune.merge.layer_inputs import consumers, layer_input
from clusterprune.merge.measured import Measured, Without, images_for, part_of
from clusterprune.merge.sensitivity import calibrated, fisher_losses, levels


def order_channels(
    graph: ChannelGraph, groups: list[Group], measured: Measured, *, damping: float, progress: Progress | None
) -> dict[str, RemovalOrder]:
    """Return an order of removal for every group; `damping` is the ridge, relative to the mean power of the inputs."""
    read = LayerInputs(graph, measured)
    paths: dict[str, RemovalOrder] = {}
    for number, group in enumerate(groups):
        paths[group.name] = eliminate(
            read.of(group, measured.moments, measured.rows), blocks=group.blocks, damping=damping
        )
        if progress:
            progress("order of channels", number + 1, len(groups))
    return paths


def with_losses(
    graph: ChannelGraph,
    paths: dict[str, RemovalOrder],
    measured: Measured,
    *,
    damping: float,
    temperature: float,
    work: float,
    generator: torch.Generator,
    progress: Progress | None,
) -> dict[str, RemovalOrder]:
    """Return the orders with what each costs the network's loss, on images that its kernels were not fitted on.

    Parameters
    ----------
    damping
        Ridge of the kernels that are fitted, relative to the mean power of the inputs.
    temperature
        Softens the predictions whose Fisher information is taken.
    work
        Multiply-adds that may be spent; large networks see fewer images.
    """
    state = {path: tensor.detach() for path, tensor in named_tensors(graph).items()}
    read = LayerInputs(graph, measured)
    groups = [group for group in graph.groups if group.name in paths]
    count = 6 if CostModel(graph).total("macs") / example_batch(graph) < 1e9 else 3
    total: dict[tuple[str, int], float] = {}
    share = len(measured.folds)
    held_out = [
        images_for(graph, fold.images, work / share, 9, -(-16 // share), most=1024 // share) for fold in measured.folds
    ]
    images = sum(len(part[0]) for part in held_out)

    def refitted_on(group: Group, moments: Without) -> dict[int, list[Tensor]]:
        inputs = read.of(group, moments, moments.rows)
        return refitted(inputs, paths[group.name].order, levels(group, count), damping=damping)

    for number, fold in enumerate(measured.folds):
        others = Without(measured, fold)
        # One group after the other: what has become a change of a kernel need not be held as well.
        snapshots = ((group, refitted_on(group, others)) for group in groups)
        found = fisher_losses(
            graph,
            state,
            held_out[number],
            snapshots,
            measured,
            others,
            batch_size=gradient_batch_size(graph, most=32),
            generator=generator,
            temperature=temperature,
            progress=part_of(progress, sum(len(part[0]) for part in held_out[:number]), images),
        )
        for key, loss in found.items():
            total[key] = total.get(key, 0.0) + loss
    return {
        name: replace(path, loss=calibrated(path, {k: v / images for (n, k), v in total.items() if n == name}))
        for name, path in paths.items()
    }


class LayerInputs:
    """What the consumers of a group read, by one estimate of its moments or another."""

    def __init__(self, graph: ChannelGraph, measured: Measured) -> None:
        self.graph, self.measured = graph, measured
        self._state = {path: tensor.detach().cpu() for path, tensor in named_tensors(graph).items()}
        self._kernels = {node: k.cpu() for node, k in computed_kernels(graph, named_tensors(graph)).items()}

    def of(self, group: Group, moments: Mapping[str, Tensor], rows: Mapping[str, int]) -> list[LayerInput]:
        """Return an entry for each consumer; moments and their numbers of rows are by node name."""
        return [
            layer_input(
                c,
                self._kernels.get(c.call.node, self._state[c.use.path]),
                moments[c.call.node],
                self.measured.importance[c.call.node],
                rows[c.call.node],
            )
            for c in consumers(self.graph, group, self.measured.whole_kernel)
        ]


def kept_of(graph: ChannelGraph, paths: Mapping[str, RemovalOrder], widths: Mapping[str, int]) -> dict[str, Kept]:
    """Return what stays of every group that is cut, by orders of removal and widths."""
    kept: dict[str, Kept] = {}
    for group in graph.groups:
        width = widths.get(group.name, group.width)
        if width < group.width:
            gone = paths[group.name].order[: group.width - width]
            kept[group.name] = Kept(np.setdiff1d(np.arange(group.width), gone))
    return kept
