"""How long a compression in one shot will take, and how much memory: told before it begins.

Both follow from the network's graph, the number of images and two small measurements: how long an image takes, and how
fast matrices are multiplied.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from clusterprune import evaluate
from clusterprune.arguments import check_number
from clusterprune.budget.allocation import CostModel, example_batch
from clusterprune.errors import ArgumentError, BudgetError
from clusterprune.graph import ChannelGraph
from clusterprune.graph.images import batch_size_for, gradient_batch_size
from clusterprune.graph.program import named_tensors
from clusterprune.methods.oneshot_settings import OneShot

GIB = 2**30
_PASSES = (("importance", 3, 1 / 3, 384), ("moments", 1, 0.4, 1024), ("sensitivity", 9, 1.0, 1024))
"""Phases that look at as many images as their share of the work allows: forward passes, share, most images."""
_COMPARED, _REFITTED = 12, 4
"""Forward passes for an image of what plans are compared on (of three), and of a refit."""
_LEVELS, _FOLDS = 6, 4


@dataclass(frozen=True)
class Foresight:
    """What a compression in one shot is expected to take.

    Attributes
    ----------
    seconds
        On this machine, if nothing else runs on it.
    bytes
        Memory at its peak, beside the process as it is.
    """

    seconds: float
    bytes: int


def foresee(graph: ChannelGraph, images: int, config: OneShot | None = None) -> Foresight:
    """Say what :func:`clusterprune.oneshot` will take with so many images, most often within a factor of two."""
    config = config or OneShot()
    return Foresight(_seconds(graph, images, config), foresee_bytes(graph, images, config))


def check_memory(graph: ChannelGraph, images: int, config: OneShot, limit_gib: float) -> None:
    """Check that a compression will have room.

    Raises
    ------
    ArgumentError
        If the limit is no number above 0.
    BudgetError
        If it will not; the message says with how many images it would.
    """
    check_number("memory_limit", limit_gib)
    if not limit_gib > 0:
        raise ArgumentError(f"memory_limit must be above 0, in GiB, but got memory_limit={limit_gib!r}")
    needed = foresee_bytes(graph, images, config)
    if needed <= limit_gib * GIB:
        return
    fewer = images
    while fewer > 32 and foresee_bytes(graph, fewer, config) > limit_gib * GIB:
        fewer //= 2
    fits = foresee_bytes(graph, fewer, config) <= limit_gib * GIB
    remedy = f"give images={fewer}" if fits else "give smaller images, or set whole_kernel_limit=300"
    raise BudgetError(
        f"{images} images need about {needed / GIB:.1f} GiB, more than memory_limit={limit_gib:g}; {remedy}, or a "
        "higher limit"
    )


def foresee_bytes(graph: ChannelGraph, images: int, config: OneShot) -> int:
    """Return the memory of the dearer of two phases: pricing holds moments, the refit what layers make of images."""
    example = example_batch(graph) or 1
    made = [node for node in graph.fx.nodes if node.op == "call_function"]
    sizes = {node.name: _bytes_of(node.meta.get("val")) / example for node in made}
    inputs = sum(_bytes_of(tensor) for tensor in graph.example_tensors) / example
    weights = sum(_bytes_of(tensor) for tensor in named_tensors(graph).values())
    read = _unknowns(graph, config)
    moments = sum((unknowns + 1) ** 2 for unknowns in read) * (8 + 4)
    steps = gradient_batch_size(graph, most=32) * sum(sizes.values()) * 2
    pricing = moments + weights * (_LEVELS + 2) + steps + max(read, default=0) ** 2 * 8 * 4
    regression = max((_rows(unknowns) * unknowns * 4 * 2 + unknowns**2 * 8 * 3 for unknowns in read), default=0)
    refit = images * 2 * _widest(graph, sizes) + weights * 3 + regression
    return round(max(pricing, refit) + 2 * images * inputs)


def _seconds(graph: ChannelGraph, images: int, config: OneShot) -> float:
    """Return the time of all passes, and of all products of what layers read."""
    example, count = graph.example, example_batch(graph) or 1
    if len(graph.example_tensors) == 1 and graph.batch_size.fixed is None:
        first = graph.example_tensors[0][:1]
        count = min(16, batch_size_for(graph))
        example = first.expand(count, *first.shape[1:]).contiguous()
    an_image = evaluate.latency(graph.model, example, warmup=1, runs=3).median_ms / 1e3 / count
    work = CostModel(graph).total("macs") / (example_batch(graph) or 1)
    spend = config.macs_to_spend / max(work, 1.0)
    passed = sum(passes * min(images, most, max(16, share * spend / passes)) for _, passes, share, most in _PASSES)
    passed += _COMPARED * min(images, 256, max(32, spend / 18)) if config.compare else 0
    passed += _REFITTED * images if config.refit is not None else 0
    read = _unknowns(graph, config)
    products = sum(unknowns**2 * (config.moment_rows + _rows(unknowns) + 12 * unknowns) for unknowns in read)
    return passed * an_image + products / _speed(graph)


def _speed(graph: ChannelGraph) -> float:
    """Return multiply-adds per second in a product of matrices, where the network is."""
    device = graph.example_tensors[0].device
    side = 512
    factor = torch.ones(side, side, device=device)
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        float((factor @ factor)[0, 0])
        best = min(best, time.perf_counter() - began)
    return side**3 / best


def _unknowns(graph: ChannelGraph, config: OneShot) -> list[int]:
    """Return of every layer how many numbers each of its outputs is made of, channels alone where kernels are wide."""
    state = named_tensors(graph)
    kernels = [state[call.weight][0] for call in graph.calls if not call.depthwise and state[call.weight].ndim > 1]
    return [k.numel() if k.numel() <= config.whole_kernel_limit else k.shape[0] for k in kernels]


def _rows(unknowns: int) -> int:
    """Return about how many rows the regression of a layer has."""
    return int(min(65536, max(min(16 * unknowns, 16384), 8 * unknowns, 3e10 / max(1, unknowns) ** 2)))


def _widest(graph: ChannelGraph, sizes: dict[str, float]) -> float:
    """Return the most bytes for an image that wait in front of a layer, of all layers."""
    last = {used.name: node.name for node in graph.fx.nodes for used in node.all_input_nodes}
    alive: dict[str, float] = {}
    most = 0.0
    calls = {call.node for call in graph.calls}
    for node in graph.fx.nodes:
        most = max(most, sum(alive.values())) if node.name in calls else most
        if node.name in sizes:
            alive[node.name] = sizes[node.name]
        for used in node.all_input_nodes:
            if last[used.name] == node.name:
                alive.pop(used.name, None)
    return most


def _bytes_of(value: object) -> int:
    parts: Sequence[Any] = cast(Any, value) if isinstance(value, (tuple, list)) else (value,)
    return sum(part.numel() * part.element_size() for part in parts if isinstance(part, Tensor))
