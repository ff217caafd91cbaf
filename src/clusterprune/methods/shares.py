"""How a budget may be shared among groups, and which way of sharing it leaves the outputs closest to the original's."""

from collections import ChainMap
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clusterprune.budget.allocation import CostModel, Limits, Quantity, example_batch
from clusterprune.budget.several import solve_all
from clusterprune.errors import BudgetError
from clusterprune.graph import ChannelGraph
from clusterprune.graph.images import Images, Progress, batch_size_for, batches
from clusterprune.graph.program import Program, named_tensors
from clusterprune.graph.rewrite import rewrite
from clusterprune.merge import Merging, assemble
from clusterprune.merge.elimination import RemovalOrder
from clusterprune.merge.measured import Measured, Without, moments_of
from clusterprune.merge.orders import kept_of
from clusterprune.surgery.bias_homes import with_new_biases
from clusterprune.surgery.cutting import removed_labels
from clusterprune.surgery.masking import compact_state

_FEWEST = 32
"""Images on which plans are compared, at least."""
_MOST = 256
Curves = dict[str, np.ndarray]
"""Loss after 0, 1, 2, … removals, by group."""


def hypotheses(
    cost: CostModel, paths: Mapping[str, RemovalOrder], quantity: Quantity, *, sensitivity: str, compare: bool
) -> dict[str, Curves]:
    """Return the loss curves by which a budget may be shared, by name; the first is the one that was measured.

    The others keep the same share of every group, or of those alone that one layer makes: a price that was measured on
    a few images may be wrong, and the same share never is by much.
    """
    same = _same_share(cost, paths, quantity)
    if sensitivity == "uniform":
        return {"same share": same}
    priced = {name: path.loss for name, path in paths.items()}
    if sensitivity != "fisher" or not compare:
        return {"priced": priced}
    inside = {name: curve for name, curve in same.items() if len(cost.graph.by_name[name].producers) == 1}
    found = {"priced": priced, "same share": same, "same share inside blocks": inside}
    return found if 0 < len(inside) < len(same) else {name: found[name] for name in ("priced", "same share")}


def sampled(cost: CostModel, paths: Mapping[str, RemovalOrder]) -> dict[str, dict[str, Any]]:
    """Return the loss curves of all groups as a report draws them, as JSON has them.

    By group: `removed`, how many units are gone, at 17 points or fewer; `loss`, what that costs, in nats where it is
    the Fisher loss; and `macs`, what one unit less saves of the whole network, in multiply-adds of an image.
    """
    gradient = cost.gradient("macs", cost.widths) / example_batch(cost.graph)
    index = {group.name: i for i, group in enumerate(cost.graph.groups)}
    found: dict[str, dict[str, Any]] = {}
    for name, path in paths.items():
        known = np.flatnonzero(np.isfinite(path.loss))
        removed = known[np.unique(np.linspace(0, len(known) - 1, 17).round().astype(int))]
        loss = [float(f"{value:.4g}") for value in path.loss[removed]]
        found[name] = {"removed": removed.tolist(), "loss": loss, "macs": round(float(gradient[index[name]]))}
    return found


def _same_share(cost: CostModel, paths: Mapping[str, RemovalOrder], quantity: Quantity) -> Curves:
    """Return curves that all rise alike per fraction of the cost, so that every group keeps the same fraction."""
    groups = cost.graph.by_name
    index = {group.name: i for i, group in enumerate(cost.graph.groups)}
    gradient = cost.gradient(quantity, cost.widths)
    return {
        name: gradient[index[name]] * np.arange(len(p.order) + 1) ** 2 / groups[name].width for name, p in paths.items()
    }


def closest(
    cost: CostModel,
    shares: Mapping[str, Curves],
    paths: Mapping[str, RemovalOrder],
    measured: Measured,
    targets: Mapping[Quantity, float],
    limits: Limits,
    merging: Merging,
    *,
    work: float,
    most: int = _MOST,
    generator: torch.Generator,
    progress: Progress | None,
) -> str:
    """Return the curves whose plan leaves the outputs closest to the original's on images that it was not fitted on.

    Kernels are handed over, and fitted for a short while, on other images than those on which they are compared.

    Parameters
    ----------
    shares
        Loss curves by name; the first is taken unless another is surely better.
    merging
        Hands kernels over, as fast as may be.
    work, most
        Multiply-adds that may be spent, the fewest images aside; and images, at most.
    """
    graph = cost.graph
    fold, fitted = measured.folds[0], measured.folds[1:] or measured.folds
    others = Without(measured, fold)
    each = cost.total("macs") / example_batch(graph)
    # A refit runs both networks, and its regressions cost about as much again.
    count = min(most, work / (6 * len(shares) * each))
    if count < _FEWEST and len(shares) > 2:
        # Large networks are compared on few images, and with the one that hardly ever loses much.
        shares = {name: curves for name, curves in shares.items() if name != "same share"}
    count = max(_FEWEST, count)
    held_out = _first(graph, fold.images, count)
    images = _first(graph, tuple(map(torch.cat, zip(*(f.images for f in fitted), strict=True))), count)
    size = batch_size_for(graph)
    expected = _outputs_of(Program(graph, measured.changes), named_tensors(graph), held_out, size)
    found: dict[str, Tensor] = {}
    for number, (name, curves) in enumerate(shares.items()):
        try:
            widths = solve_all(cost, curves, targets, limits)
        except BudgetError:
            continue  # too little may be cut that way
        kept, known = kept_of(graph, paths, widths), moments_of(graph, measured, others)
        plan = assemble(graph, kept, merging, images, moments=known, generator=generator)
        state = compact_state(graph, plan)
        cut = with_new_biases(graph, state, rewrite(graph, removed_labels(graph, plan)))
        actual = _outputs_of(Program(graph, {**measured.changes, **cut}), state, held_out, size)
        found[name] = measured.divergence.divergence(expected, actual)
        if progress:
            progress("plans compared", number + 1, len(shares))
    return _surely_better(found)


def _surely_better(found: Mapping[str, Tensor]) -> str:
    """Return the first, unless another is better on the same images by more than its standard error."""
    first = next(iter(found))
    best = min(found, key=lambda name: float(found[name].mean()))
    gain = found[first] - found[best]
    spread = float(gain.std()) / max(1, len(gain)) ** 0.5 if len(gain) > 1 else 0.0
    return best if float(gain.mean()) > spread else first


def _first(graph: ChannelGraph, images: tuple[Tensor, ...], count: float) -> tuple[Tensor, ...]:
    """Return the first so many images, as whole batches of a graph that has but one batch size."""
    step = batch_size_for(graph) if graph.batch_size.fixed is not None else 1
    return tuple(tensor[: -(-int(count) // step) * step] for tensor in images)


def _outputs_of(program: Program, state: Mapping[str, Tensor], images: Images, size: int) -> list[Tensor]:
    """Return what a network makes of images: its outputs, or what they are read off, all images together."""
    weights = program.weights({path: tensor.detach() for path, tensor in state.items()})
    found: list[list[Tensor]] = []
    with torch.no_grad():
        for batch in batches(images, size):
            values = ChainMap(program.bind(batch), weights)
            program.advance(values, 0, len(program.steps))
            found.append([values[name] for name in program.differentiable])
    return [torch.cat(parts) if parts[0].ndim else torch.stack(parts) for parts in zip(*found, strict=True)]
