"""Plans by a criterion: a score per channel, and the lowest go.

A channel that several layers make (a residual stream) has one score, the sum over those layers, so every criterion
works on every group. Budget, merging and surgery are those of the other methods.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, Unpack, get_args

import numpy as np
import torch
from torch import Tensor

from clusterprune.arguments import check_progress, check_seed, renamed, shown
from clusterprune.budget.allocation import CostModel, Limits, Quantity
from clusterprune.budget.several import solve_all
from clusterprune.criteria import (
    CriterionName,
    HasLoss,
    ScoreFunction,
    ScoreInputs,
    Targets,
    checked_scores,
    name_of,
    read_criterion,
)
from clusterprune.errors import ArgumentError
from clusterprune.graph import ChannelGraph, Group
from clusterprune.graph.arguments import check_graph
from clusterprune.graph.images import Images, Progress, inputs_of, whole_batches
from clusterprune.merge import FreeMergingName, Kept, Merging, assemble, check_merging, read_merging
from clusterprune.methods.budget import Budget, read_budget
from clusterprune.methods.meeting import plan_for
from clusterprune.plan import Plan
from clusterprune.tasks.classification import OfLabels

Scope = Literal["local", "global"]


def scores(
    graph: ChannelGraph,
    criterion: CriterionName | ScoreFunction,
    *,
    images: Images | None = None,
    labels: Tensor | Targets | None = None,
    task: HasLoss | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Score every channel of every group that may be cut: float64 (channels,) by group name, never negative.

    Parameters
    ----------
    criterion
        One of :mod:`clusterprune.criteria`, its name, or a function of your own from
        :class:`clusterprune.criteria.ScoreInputs` to the scores by name of group.
    images
        Normalised inputs, for a criterion that looks at feature maps (``"hrank"``) or gradients (``"taylor"``).
    labels
        What the images should give, for a criterion that differentiates a loss: a tensor, images first, or a function
        from positions to a batch's targets, as :meth:`clusterprune.tasks.Task.targets` makes one.
    task
        Whose loss is differentiated. Without one, labels are classes, int64 (images,), and it is a classification's.
    seed
        Of a criterion that draws its scores.

    Raises
    ------
    ArgumentError
        For an unknown criterion, missing images or labels, a group that the criterion cannot score, or scores of
        another shape, below 0, or not finite.
    """
    check_graph(graph)
    check_seed(seed)
    asked = read_criterion(criterion)
    inputs = None
    if images is not None:
        given = inputs_of(graph, images, seed)
        if task is None and labels is not None:
            labels, task = OfLabels.checked(labels, len(given[0])), OfLabels()
        inputs = whole_batches(graph, given)
    targets = _rows_of(labels) if isinstance(labels, Tensor) else labels
    generator = torch.Generator().manual_seed(seed)
    return checked_scores(asked, ScoreInputs(graph, graph.prunable, inputs, targets, generator, task))


def _rows_of(labels: Tensor) -> Targets:
    return lambda positions: labels[positions.to(labels.device)]


@renamed(merge="merging")
def prune_by(
    graph: ChannelGraph,
    criterion: CriterionName | ScoreFunction,
    *,
    images: Images | None = None,
    labels: Tensor | Targets | None = None,
    task: HasLoss | None = None,
    scope: Scope = "local",
    merging: Merging | FreeMergingName = "drop",
    ignore: Sequence[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
    **budget: Unpack[Budget],
) -> Plan:
    """Plan a compression by one criterion.

    Parameters
    ----------
    criterion, images, labels, task
        As in :func:`clusterprune.methods.prune_by.scores`.
    **budget
        How much to keep, such as ``keep_macs=0.5``: see :class:`clusterprune.methods.budget.Budget`.
    scope
        ``"local"``: every group keeps the same fraction. ``"global"``: one order over all groups, of the scores
        divided by their mean in the group.
    merging
        What the kept channels take over: nothing, as published (``"drop"``), or what ``"least_squares"``, ``"refit"``
        or a :class:`clusterprune.merge.Merging` finds from the images.

    Raises
    ------
    ArgumentError
        For a bad option, missing or unfitting images or labels, or bad scores of a criterion of one's own.
    BudgetError
        If the target cannot be reached; the message says what can.

    Examples
    --------
    A criterion of one's own is a function:

    >>> import torch, clusterprune as cp
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3)).eval()
    >>> graph = cp.trace(net, torch.zeros(1, 3, 8, 8))
    >>> def last_first(inputs):
    ...     return {group.name: torch.arange(group.width).float() for group in inputs.groups}
    >>> cp.prune_by(graph, last_first, keep_macs=0.5).by_group["0"].kept.tolist()
    [4, 5, 6, 7]
    """
    check_graph(graph)
    check_seed(seed)
    check_progress(progress)
    if scope not in get_args(Scope):
        raise ArgumentError(f"scope must be 'local' or 'global', but got scope={shown(scope)}")
    merging = read_merging(merging)
    check_merging(merging, images, clusters=False)
    goal = read_budget(budget)
    graph = graph.freeze(ignore)
    criterion = read_criterion(criterion)
    images = None if images is None else inputs_of(graph, images, seed)
    scored = scores(graph, criterion, images=images, labels=labels, task=task, seed=seed)
    found = {name: score.numpy() for name, score in scored.items()}
    images = None if images is None else whole_batches(graph, images)
    cost = CostModel(graph)
    generator = torch.Generator().manual_seed(seed)

    def plan_at(asked: Mapping[Quantity, float]) -> Plan:
        widths = share(cost, found if scope == "global" else None, asked, goal.limits)
        cut = [group for group in graph.prunable if widths[group.name] < group.width]
        kept = {group.name: Kept(best(group, found[group.name], widths[group.name])) for group in cut}
        return assemble(graph, kept, merging, images, generator=generator, progress=progress)

    plan, timed = plan_for(graph, cost, goal, plan_at, progress)
    notes = {
        "method": "criterion",
        "criterion": name_of(criterion),
        "scope": scope,
        "merging": merging.name,
        "seed": seed,
        **goal.asked,
        **goal.limits.facts(graph, plan.widths),
        **timed,
    }
    return replace(plan, notes=notes)


def share(
    cost: CostModel, found: Mapping[str, np.ndarray] | None, targets: Mapping[Quantity, float], limits: Limits
) -> dict[str, int]:
    """Return the width of every group at which the targets, fractions by what is counted, are met.

    Parameters
    ----------
    found
        Scores by group, divided by their mean and put into one order; None keeps the same fraction everywhere.
    """
    counted: Quantity = next(iter(targets)) if targets else "macs"
    per_channel = cost.gradient(counted, cost.widths)
    losses: dict[str, np.ndarray] = {}
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
    return solve_all(cost, losses, targets, limits)


def _ascending(group: Group, score: np.ndarray) -> np.ndarray:
    """Return the channels from the least to the most important, one of each block in turn."""
    blocks = [np.flatnonzero(group.blocks == block) for block in range(group.n_blocks)]
    return np.stack([members[np.argsort(score[members], kind="stable")] for members in blocks], axis=1).ravel()


def best(group: Group, score: np.ndarray, width: int) -> np.ndarray:
    """Return the channels with the highest scores, equally many in each block, ascending: shape (width,)."""
    return np.sort(_ascending(group, score)[group.width - width :])
