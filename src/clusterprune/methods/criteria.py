"""The usual criteria on the same spine, to compare with: a score per channel, and the lowest go.

A channel that several layers make (a residual stream) has one score, the sum over those layers, so every criterion
works on every group. Budget, merging and surgery are those of the other methods.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, fx
from torch.nn import functional

from clusterprune.arguments import check_graph, check_progress, check_seed, renamed, type_name
from clusterprune.budget.allocation import CostModel, Limits, Quantity, solve
from clusterprune.errors import ArgumentError
from clusterprune.graph import ChannelGraph, Group
from clusterprune.graph.images import (
    Images,
    Progress,
    as_inputs,
    batch_size_for,
    batches,
    check_images,
    gradient_batch_size,
    whole_batches,
)
from clusterprune.graph.program import Program, named_tensors
from clusterprune.merge import FreeMergingName, Kept, Merging, assemble, check_merging, read_merging
from clusterprune.methods.targets import plan_for_budget, plan_for_latency, read_target
from clusterprune.plan import Plan
from clusterprune.tasks.classification import logits_of

Criterion = Literal["l1", "l2", "fpgm", "bn_scale", "hrank", "taylor", "random"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
Scope = Literal["local", "global"]


def scores(
    graph: ChannelGraph,
    criterion: Criterion,
    *,
    images: Images | None = None,
    labels: Tensor | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Score every channel of every group that may be cut: float64 (channels,) by group name, never negative.

    - ``"l1"``, ``"l2"``: norm of the filter (Li et al. 2017, arXiv 1608.08710; He et al. 2018, arXiv 1808.06866).
    - ``"fpgm"``: sum of the Euclidean distances to the group's other filters (He et al. 2019, arXiv 1811.00250, Eq. 4):
      what lies near the geometric median can be replaced.
    - ``"bn_scale"``: |γ| of the batch norms (Liu et al. 2017, arXiv 1708.06519).
    - ``"hrank"``: mean rank of the feature map as it is before the next layer or branch, activation included (Lin et
      al. 2020, arXiv 2002.10179).
    - ``"taylor"``: Σ |w · ∂L/∂w| over the filter, L the mean cross entropy of all images (first order, after
      Molchanov et al. 2019, arXiv 1906.10771).
    - ``"random"``: drawn from the seed.

    Parameters
    ----------
    images
        Normalised inputs; for ``"hrank"`` and ``"taylor"``.
    labels
        Class of every image, int64 (images,); for ``"taylor"``.

    Raises
    ------
    ArgumentError
        For an unknown criterion, missing images or labels, or a group without batch norm where its scale is asked for.
    """
    check_graph(graph)
    check_seed(seed)
    if criterion not in CRITERIA:
        raise ArgumentError(f"criterion must be one of {', '.join(CRITERIA)}, but got criterion={criterion!r}")
    if images is None and criterion in ("hrank", "taylor"):
        raise ArgumentError(f"criterion={criterion!r} looks at feature maps or gradients, but images=None; give images")
    if images is not None:
        check_images(graph, as_inputs(images))
        if criterion == "taylor":
            _check_labels(len(as_inputs(images)[0]), labels)
        images = whole_batches(graph, images)
    asked = _Asked(graph, graph.prunable, images, labels, torch.Generator().manual_seed(seed))
    return {name: score.double().cpu() for name, score in _SCORES[criterion](asked).items()}


@renamed(merge="merging")
def prune_by(
    graph: ChannelGraph,
    criterion: Criterion,
    *,
    images: Images | None = None,
    labels: Tensor | None = None,
    keep_macs: float | None = None,
    keep_params: float | None = None,
    keep_latency: float | None = None,
    scope: Scope = "local",
    merging: Merging | FreeMergingName = "drop",
    round_to: int = 1,
    min_width: int = 1,
    ignore: Sequence[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """Plan a compression by one criterion; see :func:`scores`.

    Parameters
    ----------
    keep_macs, keep_params, keep_latency
        Exactly one: the fraction to keep, in (0, 1].
    scope
        ``"local"``: every group keeps the same fraction. ``"global"``: one order over all groups, of the scores
        divided by their mean in the group.
    merging
        What the kept channels take over: nothing, as published (``"drop"``), or what ``"least_squares"``, ``"refit"``
        or a :class:`clusterprune.merge.Merging` finds from the images.

    Raises
    ------
    ArgumentError
        For a bad option, missing or unfitting images or labels.
    BudgetError
        If the target cannot be reached; the message says what can.
    """
    check_graph(graph)
    check_seed(seed)
    check_progress(progress)
    if scope not in get_args(Scope):
        raise ArgumentError(f"scope must be 'local' or 'global', but got scope={scope!r}")
    merging = read_merging(merging)
    check_merging(merging, images, clusters=False)
    target, keep = read_target(keep_macs, keep_params, keep_latency)
    limits = Limits(round_to, min_width)
    graph = graph.freeze(ignore)
    if images is not None:
        check_images(graph, as_inputs(images))
        images = whole_batches(graph, images)
    found = {
        name: score.numpy() for name, score in scores(graph, criterion, images=images, labels=labels, seed=seed).items()
    }
    cost = CostModel(graph)
    generator = torch.Generator().manual_seed(seed)

    def plan_at(fraction: float, quantity: Quantity) -> Plan:
        widths = share(cost, found if scope == "global" else None, quantity, fraction, limits)
        cut = [group for group in graph.prunable if widths[group.name] < group.width]
        kept = {group.name: Kept(best(group, found[group.name], widths[group.name])) for group in cut}
        return assemble(graph, kept, merging, images, generator=generator, progress=progress)

    if target == "latency":
        plan = plan_for_latency(graph, keep, lambda fraction: plan_at(fraction, "macs"))
    else:
        plan = plan_for_budget(cost, target, keep, lambda fraction: plan_at(fraction, target))
    notes = {
        "method": "criterion",
        "criterion": criterion,
        "scope": scope,
        "merging": merging.name,
        "seed": seed,
        f"keep_{target}": keep,
    }
    return replace(plan, notes=notes)


def share(
    cost: CostModel, found: Mapping[str, np.ndarray] | None, quantity: Quantity, keep: float, limits: Limits
) -> dict[str, int]:
    """Return the width of every group at which the target is met.

    Parameters
    ----------
    found
        Scores by group, divided by their mean and put into one order; None keeps the same fraction everywhere.
    """
    per_channel = cost.gradient(quantity, cost.widths)
    losses = {}
    for index, group in enumerate(cost.graph.groups):
        if group.frozen is not None:
            continue
        if found is None:
            steps = (np.arange(group.width) + 0.5) / group.width
        else:
            steps = found[group.name][_ascending(group, found[group.name])]
            steps = steps / max(steps.mean(), 1e-30)
        # The budget divides a loss by what it saves; the published orders do not ask what a channel costs.
        losses[group.name] = per_channel[index] * np.concatenate([[0.0], np.cumsum(steps)])
    return solve(cost, losses, quantity, keep, limits)


@dataclass(frozen=True, eq=False)
class _Asked:
    """What a criterion may look at."""

    graph: ChannelGraph
    groups: Sequence[Group]
    images: Images | None
    labels: Tensor | None
    generator: torch.Generator


def _check_labels(count: int, labels: Tensor | None) -> None:
    if labels is None:
        raise ArgumentError("criterion='taylor' differentiates the loss on labelled images, but labels=None")
    if not isinstance(labels, Tensor):
        raise ArgumentError(
            f"labels must be a tensor, but got labels={type_name(labels)}; torch.tensor(labels) makes one"
        )
    if labels.shape != (count,) or labels.is_floating_point():
        raise ArgumentError(
            f"labels must be whole numbers, one for each of the {count} images, but got {labels.dtype} of shape "
            f"{tuple(labels.shape)}"
        )


def by_filter(
    measure: Callable[[Tensor], Tensor], groups: Sequence[Group], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Sum a measure of filters, (channels, numbers) to (channels,), over the layers that make each group."""
    found = {}
    for group in groups:
        parts = []
        for use in group.producers:
            rows = tensors[use.path].detach().movedim(use.dim, 0)[torch.from_numpy(use.positions)]
            parts.append(measure(rows.flatten(1).double()))
        found[group.name] = torch.stack(parts).sum(0)
    return found


def _of_filters(measure: Callable[[Tensor], Tensor]) -> Callable[[_Asked], dict[str, Tensor]]:
    return lambda asked: by_filter(measure, asked.groups, named_tensors(asked.graph))


def _distances(rows: Tensor) -> Tensor:
    # The fast way, through products, leaves identical filters a distance apart.
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


def _bn_scale(asked: _Asked) -> dict[str, Tensor]:
    tensors = named_tensors(asked.graph)
    scales = {norm.weight for norm in asked.graph.batch_norms}
    found = {}
    for group in asked.groups:
        uses = [use for use in group.carriers if use.path in scales]
        if not uses:
            raise ArgumentError(
                f"criterion='bn_scale' needs a batch norm behind every layer, but {group.name} has none; "
                f"ignore it (ignore=[{group.name!r}]) or take criterion='l1'"
            )
        found[group.name] = torch.stack(
            [tensors[use.path].detach().double()[torch.from_numpy(use.positions)].abs().sum(1) for use in uses]
        ).sum(0)
    return found


def _random(asked: _Asked) -> dict[str, Tensor]:
    return {group.name: torch.rand(group.width, generator=asked.generator) for group in asked.groups}


def _hrank(asked: _Asked) -> dict[str, Tensor]:
    """Average the ranks of the maps, batch by batch."""
    graph, images = asked.graph, asked.images
    if images is None:
        return {}
    layers = {call.node for call in graph.calls}
    places: dict[str, list[tuple[str, np.ndarray]]] = {}
    wanted: dict[str, int] = {}
    for group in asked.groups:
        for use in group.producers:
            for call in graph.calls:
                if call.weight == use.path:
                    place = _activated(graph.nodes[call.node], layers)
                    places.setdefault(group.name, []).append((place, use.positions))
                    wanted[place] = call.channel_dim
    program = Program(graph)
    weights = program.weights(named_tensors(graph))
    ranks: dict[str, Tensor] = {}
    with torch.no_grad():
        for batch in batches(images, batch_size_for(graph)):
            values: dict[str, Any] = program.bind(batch) | weights
            for name, value in program.visit(values, wanted):
                ranks[name] = ranks.get(name, 0) + _rank(value.movedim(wanted[name], 1)).sum(0).double()
    count = len(as_inputs(images)[0])
    return {
        name: torch.stack([ranks[node][torch.from_numpy(at)].sum(1) for node, at in found]).sum(0) / count
        for name, found in places.items()
    }


def _activated(node: fx.Node, layers: set[str]) -> str:
    """Follow a layer's output through norm and activation, as long as one operation reads it and it keeps its shape."""
    while len(node.users) == 1:
        (user,) = node.users
        value = user.meta.get("val")
        if user.name in layers or not isinstance(value, Tensor) or value.shape != node.meta["val"].shape:
            break
        node = user
    return node.name


def _rank(maps: Tensor) -> Tensor:
    """Return the matrix rank of every map: (images, channels, height, width) to (images, channels)."""
    while maps.ndim < 4:
        maps = maps.unsqueeze(-1)
    # On the CPU: it is quicker at thousands of small decompositions, and a rank is no matter of the device.
    return torch.linalg.matrix_rank(maps.flatten(3).float().cpu())


def _taylor(asked: _Asked) -> dict[str, Tensor]:
    """Differentiate the mean cross entropy by every filter, then weigh the filter by it."""
    graph, images, labels = asked.graph, asked.images, asked.labels
    if images is None or labels is None:
        return {}
    state = {path: tensor.detach() for path, tensor in named_tensors(graph).items()}
    paths = list(dict.fromkeys(use.path for group in asked.groups for use in group.producers))
    asked_for = {path: state[path].clone().requires_grad_(True) for path in paths}
    program = Program(graph)
    weights = program.weights({**state, **asked_for})
    size = gradient_batch_size(graph)
    count = len(as_inputs(images)[0])
    gradients = {path: torch.zeros_like(weight) for path, weight in asked_for.items()}
    for number, batch in enumerate(batches(images, size)):
        values: dict[str, Any] = program.bind(batch) | weights
        with torch.enable_grad():
            program.advance(values, 0, len(program.steps))
            logits = logits_of(tuple(program.collect(values)))[0]
            target = labels[number * size : number * size + len(logits)].to(logits.device).long()
            if not 0 <= int(target.min()) <= int(target.max()) < logits.shape[1]:
                raise ArgumentError(
                    f"labels lie in {int(target.min())}..{int(target.max())}, but the model has {logits.shape[1]} "
                    "outputs; give each image the number of its output"
                )
            loss = functional.cross_entropy(logits.float(), target, reduction="sum") / count
            parts = torch.autograd.grad(loss, list(asked_for.values()), allow_unused=True)
        for path, part in zip(paths, parts, strict=True):
            if part is not None:
                gradients[path] += part
    products = {path: state[path] * gradient for path, gradient in gradients.items()}
    return by_filter(lambda rows: rows.abs().sum(1), asked.groups, products)


_SCORES: dict[str, Callable[[_Asked], dict[str, Tensor]]] = {
    "l1": _of_filters(lambda rows: rows.abs().sum(1)),
    "l2": _of_filters(lambda rows: rows.norm(dim=1)),
    "fpgm": _of_filters(_distances),
    "bn_scale": _bn_scale,
    "hrank": _hrank,
    "taylor": _taylor,
    "random": _random,
}


def _ascending(group: Group, score: np.ndarray) -> np.ndarray:
    """Return the channels from the least to the most important, one of each block in turn."""
    blocks = [np.flatnonzero(group.blocks == block) for block in range(group.n_blocks)]
    return np.stack([members[np.argsort(score[members], kind="stable")] for members in blocks], axis=1).ravel()


def best(group: Group, score: np.ndarray, width: int) -> np.ndarray:
    """Return the channels with the highest scores, equally many in each block, ascending: shape (width,)."""
    return np.sort(_ascending(group, score)[group.width - width :])
