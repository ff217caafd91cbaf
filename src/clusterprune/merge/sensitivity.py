"""What a cut costs the network as a whole, before it is made.

A refitted kernel changes a layer's output by δ. To second order the network's loss then rises by half the
Fisher information along δ, ½ E[⟨g, δ⟩²], where g is the gradient at that output. The inner product runs
over all positions and channels of one image at once: errors that point the same way everywhere, as they do
in front of a global average, count in full.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clusterprune.graph import ChannelGraph, Group
from clusterprune.graph.images import Images, Progress, as_inputs
from clusterprune.graph.ops import op_of
from clusterprune.graph.program import Program, computed_kernels
from clusterprune.merge.elimination import RemovalOrder
from clusterprune.merge.layer_inputs import consumers, kernel_change
from clusterprune.merge.measured import Measured
from clusterprune.merge.patches import PatchExtractor
from clusterprune.merge.statistics import layer_gradients

_LEVELS = (0.15, 0.3, 0.45, 0.6, 0.75, 0.88)
"""Fractions of a group's channels at which the loss is measured; between them it is interpolated."""


def levels(group: Group, count: int = len(_LEVELS)) -> list[int]:
    """Return the numbers of removals of a group at which its loss is measured."""
    step = group.n_blocks
    most = group.width - step
    chosen = _LEVELS if count >= len(_LEVELS) else np.linspace(0.2, 0.85, count)
    return sorted({min(most, max(step, round(f * group.width / step) * step)) for f in chosen})


def fisher_losses(
    graph: ChannelGraph,
    state: Mapping[str, Tensor],
    images: Images,
    snapshots: Iterable[tuple[Group, Mapping[int, list[Tensor]]]],
    measured: Measured,
    moments: Mapping[str, Tensor],
    *,
    batch_size: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    progress: Progress | None = None,
) -> dict[tuple[str, int], float]:
    """Return by how much the network's loss rises on these images, in nats, all of them together.

    Parameters
    ----------
    snapshots
        Groups, and by number of removals what :func:`clusterprune.merge.elimination.refitted` returned: kernels fitted
        on *other* images, for on their own the fit is always better than it is.
    measured
        What is known of the layers and of the outputs.
    moments
        Of what the layers read, on those other images.

    Returns
    -------
    dict
        By name of group and number of removals.
    """
    program = Program(graph, measured.changes)
    kernels = computed_kernels(graph, state)
    changed: dict[str, list[_Change]] = {}
    for group, by_level in snapshots:
        for level, snapshot in by_level.items():
            for consumer, refitted in zip(consumers(graph, group, measured.whole_kernel), snapshot, strict=True):
                # Moments, paths and what follows from them are on the CPU, wherever the model is.
                node = consumer.call.node
                weight = kernels.get(node, state[consumer.use.path]).cpu()
                kernel, bias = kernel_change(consumer, weight, refitted, moments[node], measured.importance[node])
                changed.setdefault(node, []).append(_Change(group.name, level, kernel, bias))
    readers = {call.node: PatchExtractor.of(graph, call) for call in graph.calls if call.node in changed}
    total: dict[tuple[str, int], float] = {}
    count, done = len(as_inputs(images)[0]), 0
    for read, gradients in layer_gradients(
        graph, state, images, list(changed), batch_size=batch_size, generator=generator, temperature=temperature,
        changes=measured.changes, divergence=measured.divergence,
    ):  # fmt: skip
        scores: dict[tuple[str, int], Tensor] = {}
        with torch.no_grad():
            for node, entries in changed.items():
                found = _scores(program, readers[node], read[node], gradients[node], entries)
                for entry, score in zip(entries, found, strict=True):
                    key = (entry.group, entry.level)
                    scores[key] = scores[key] + score if key in scores else score
        for key, score in scores.items():
            total[key] = total.get(key, 0.0) + 0.5 * float(score.double().square().sum())
        done = min(count, done + batch_size)
        if progress:
            progress("sensitivity", done, count)
    return total


@dataclass(frozen=True, eq=False)
class _Change:
    """What a cut of one group changes in one layer."""

    group: str
    level: int
    kernel: Tensor
    bias: Tensor


def _scores(
    program: Program, reader: PatchExtractor, x: Tensor, gradient: Tensor, entries: list[_Change]
) -> Tensor | list[Tensor]:
    """Return ⟨g, δ⟩ of every change for every image: (changes, images)."""
    kernel_gradients = reader.kernel_gradients(x, gradient)
    if kernel_gradients is not None:
        kernels = torch.stack([entry.kernel.flatten() for entry in entries]).to(x)
        biases = torch.stack([entry.bias for entry in entries]).to(x)
        return kernels @ kernel_gradients.flatten(1).T + biases @ gradient.sum((2, 3)).T
    scores: list[Tensor] = []
    for entry in entries:
        product = _apply(program, reader.call.node, x, entry.kernel, entry.bias) * gradient
        # Summed as it lies in memory: to flatten a channels-last tensor takes longer than the layer.
        scores.append(product.sum(tuple(range(1, product.ndim))))
    return scores


def _apply(program: Program, node: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Run one layer call with another kernel and bias."""
    step = program.steps[program.index[node]]
    op = op_of(program.graph.nodes[node])
    assert op is not None  # noqa: S101 (a layer's call, for the type checker)
    assert op.run is not None  # noqa: S101
    return op.run(step.target, step.args, step.kwargs, x, weight.to(x), bias.to(x))


def calibrated(path: RemovalOrder, measured: Mapping[int, float]) -> np.ndarray:
    """Scale a path's own loss so that it passes through the measured points (ratio interpolated in logarithm)."""
    if not measured:
        return path.loss
    levels_ = np.array(sorted(measured))
    values = np.maximum.accumulate([measured[int(level)] for level in levels_])
    floor = max(float(path.loss[-1]), 1e-30) * 1e-9
    ratio = np.log(np.maximum(values, 1e-30)) - np.log(np.maximum(path.loss[levels_], floor))
    scaled = path.loss * np.exp(np.interp(np.arange(len(path.loss)), levels_, ratio))
    return np.maximum.accumulate(scaled)
