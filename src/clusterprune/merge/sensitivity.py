"""What a cut costs the network as a whole, before it is made.

A refitted kernel changes a layer's output by δ. To second order the network's loss then rises by half the
Fisher information along δ, ½ E[⟨g, δ⟩²], where g is the gradient at that output. The inner product runs
over all positions and channels of one image at once: errors that point the same way everywhere, as they do
in front of a global average, count in full.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clusterprune.graph import ChannelGraph, Group
from clusterprune.graph.program import Program
from clusterprune.merge.elimination import Path
from clusterprune.merge.readings import consumers, kernel_change
from clusterprune.merge.statistics import Images, Progress, as_inputs, layer_gradients

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
    paths: Mapping[str, Path],
    moments: Mapping[str, Tensor],
    importance: Mapping[str, Tensor],
    whole_kernel: Mapping[str, bool],
    *,
    batch_size: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    changes: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Path]:
    """Return the paths with their losses replaced by Fisher losses (nats per image)."""
    program = Program(graph, changes)
    kernels: dict[str, list[tuple[str, int, Tensor, Tensor]]] = {}
    for group in graph.groups:
        path = paths.get(group.name)
        if path is None:
            continue
        for level, snapshot in path.snapshots.items():
            for consumer, refitted in zip(consumers(graph, group, whole_kernel), snapshot, strict=True):
                node, weight = consumer.call.node, state[consumer.use.path]
                change, bias = kernel_change(consumer, weight, refitted, moments[node], importance[node])
                kernels.setdefault(node, []).append((group.name, level, change, bias))
    total: dict[tuple[str, int], float] = {}
    count, done = len(as_inputs(images)[0]), 0
    for read, gradients in layer_gradients(
        graph, state, images, list(kernels), batch_size=batch_size, generator=generator, temperature=temperature,
        changes=changes,
    ):  # fmt: skip
        scores: dict[tuple[str, int], Tensor] = {}
        size = 0
        with torch.no_grad():
            for node, entries in kernels.items():
                for name, level, change, bias in entries:
                    error = _apply(program, node, read[node], change, bias)
                    score = (error * gradients[node]).flatten(1).sum(1)
                    scores[name, level] = scores[name, level] + score if (name, level) in scores else score
                    size = len(score)
        for key, score in scores.items():
            total[key] = total.get(key, 0.0) + 0.5 * float(score.double().square().sum())
        done += size
        if progress:
            progress("sensitivity", done, count)
    return {
        name: Path(path.order, _calibrate(path, {k: v / count for (n, k), v in total.items() if n == name}), {})
        for name, path in paths.items()
    }


def _apply(program: Program, node: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Run one layer call with another kernel and bias."""
    step = program.steps[program.index[node]]
    args = [x, weight.to(x.device), *step.args[2:]]
    if step.target.overloadpacket in (torch.ops.aten.matmul, torch.ops.aten.mm):
        return step.target(*args) + bias.to(x.device)
    if len(args) > 2:
        args[2] = bias.to(x.device)
    else:
        args.append(bias.to(x.device))
    return step.target(*args, **{k: v for k, v in step.kwargs.items() if k != "bias"})


def _calibrate(path: Path, measured: Mapping[int, float]) -> np.ndarray:
    """Scale a path's own loss so that it passes through the measured points (ratio interpolated in logarithm)."""
    if not measured:
        return path.loss
    levels_ = np.array(sorted(measured))
    values = np.maximum.accumulate([measured[int(level)] for level in levels_])
    floor = max(float(path.loss[-1]), 1e-30) * 1e-9
    ratio = np.log(np.maximum(values, 1e-30)) - np.log(np.maximum(path.loss[levels_], floor))
    scaled = path.loss * np.exp(np.interp(np.arange(len(path.loss)), levels_, ratio))
    return np.maximum.accumulate(scaled)
