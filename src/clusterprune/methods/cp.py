"""CP: make filters identical while training, then remove them without loss.

"Lossless Filter Pruning via Adaptive Clustering for Convolutional Neural Networks", Algorithm 1:

1.  for each epoch:
2.      update the weights on the training set                       (:func:`clusterprune.train.fit`)
3.      for each layer:                                              (:class:`ClusterPruning`)
4.          cluster the filters                                      Eq. 3
5.          select the N·P filters closest to their centroids        Eq. 4
6.          set each of them to its centroid
9.  channel addition                                                 Eq. 8, :func:`channel_addition`

What a filter was set to, training may change again (soft pruning); only the last epoch's choice stays.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from clusterprune import evaluate
from clusterprune.budget.allocation import CostModel, check_fraction
from clusterprune.clustering import Clustering
from clusterprune.errors import ArgumentError, BudgetError
from clusterprune.graph import ChannelGraph
from clusterprune.methods._base import Method
from clusterprune.methods._settings import BUDGET, option, read_clustering
from clusterprune.methods._work import Network, Outcome, Work, trained_record
from clusterprune.methods.cp_addition import channel_addition
from clusterprune.methods.cp_clusters import ClusterPruning
from clusterprune.methods.cp_layers import target_groups, without_batch_norm
from clusterprune.methods.cp_rates import (
    SCHEDULES,
    Adaptive,
    ClusterCount,
    Schedule,
    check_rate,
    read_cluster_count,
    replaced_count,
    usual_goal,
)
from clusterprune.methods.targets import check_met
from clusterprune.surgery.apply import apply
from clusterprune.tasks import Task
from clusterprune.train import TrainConfig, TrainResult


@dataclass(frozen=True)
class CP(Method):
    """Cluster pruning; the preset "published" has the paper's settings, whose networks train from random weights.

    Attributes
    ----------
    keep_macs
        In place of `goal`, `clusters` and `widths`: the share of the multiply-adds to keep; see :func:`for_macs`.
    goal
        P_goal, the share of each layer's filters that are replaced after the last epoch.
    clusters
        How many clusters a layer gets: `Adaptive()`, which follows the goal, `Adaptive(real_rate)`,
        `Constant(number or share)` or `Silhouette()`.
    schedule
        How the rate rises to the goal: "fast-slow" (the paper's best, Fig. 5), "slow-fast" or "linear".
    curvature
        |k₂| · T of the exponential schedules. The paper gives no value; at 5, fast-slow is at 63 % of its goal
        after a fifth of the epochs.
    clustering
        None is k-means, started from the last epoch's centroids unless fewer are wanted now. Others start anew in
        every epoch; where they have an `n_clusters`, it is replaced by the layer's, and the rest (mean shift) find
        their own number.
    batch_norm
        "removed", as published: no target layer may have one, see :func:`without_batch_norm`. "tied": the batch
        norm of a replaced filter is replaced too, by the mean over its cluster.
    mean_of
        What a filter is replaced by: the mean over its whole "cluster", as published, or over the "replaced" filters of
        the cluster alone. In the first, a member that is not replaced draws the others to it after every epoch, even
        when nothing is learnt any more; the second leaves alone what is one already, which a short training needs.
    layers
        Names of groups to prune; None is the paper's choice, :func:`clusterprune.methods.layers.inner_groups`.
    widths
        Filters that each layer is left with, in order of depth, where the paper's rate only says how many go at least
        (Eq. 9). After every epoch as few are then replaced as it takes to be as far on the way there as the rate is on
        its way to the goal. None follows the rate.
    scratch
        Train from random weights. Without batch norms a learning rate of 0.1 may then need a warm-up.

    Raises
    ------
    ArgumentError
        If a setting is outside what it accepts, or two do not go together.
    """

    name: ClassVar[str] = "cp"
    training: ClassVar[TrainConfig | None] = TrainConfig(
        epochs=200, lr=0.1, schedule="step", milestones=(0.3, 0.6, 0.8), gamma=0.2
    )
    """Section 4.1 of the paper: Nesterov momentum 0.9, a fifth of the rate from epochs 60, 120 and 160 on."""
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {"batch_norm": "removed", "scratch": True},
        "ours": {"curvature": 20.0, "mean_of": "replaced"},
    }
    readers: ClassVar[dict[str, Any]] = {"clusters": read_cluster_count, "clustering": read_clustering}
    approximates: ClassVar[bool] = False

    keep_macs: float | None = option(None, "SHARE", panel=BUDGET)
    goal: float = 0.75
    clusters: ClusterCount = Adaptive()  # noqa: RUF009 (frozen)
    schedule: Schedule = "fast-slow"
    curvature: float = 5.0
    clustering: Clustering | None = None
    batch_norm: Literal["tied", "removed"] = "tied"
    mean_of: Literal["cluster", "replaced"] = "cluster"
    layers: tuple[str, ...] | None = None
    widths: tuple[int, ...] | None = None
    scratch: bool = False

    def __post_init__(self) -> None:
        """Check what does not go together, and what the numbers may be."""
        if self.keep_macs is not None:
            check_fraction("keep_macs", self.keep_macs)
            for name, usual in (("goal", 0.75), ("clusters", Adaptive()), ("widths", None)):
                if (value := getattr(self, name)) != usual:
                    raise ArgumentError(
                        f"{name}={value!r} and keep_macs={self.keep_macs!r} exclude each other; give one"
                    )
        check_rate("goal", self.goal)
        self.clusters.check(self.goal)
        if self.schedule not in SCHEDULES:
            raise ArgumentError(f"schedule must be one of {', '.join(SCHEDULES)}, but got schedule={self.schedule!r}")
        if not 0 < self.curvature <= 100:
            raise ArgumentError(f"curvature must be above 0 and at most 100, but got curvature={self.curvature!r}")
        if self.batch_norm not in ("tied", "removed"):
            raise ArgumentError(f"batch_norm must be 'tied' or 'removed', but got batch_norm={self.batch_norm!r}")
        if self.mean_of not in ("cluster", "replaced"):
            raise ArgumentError(f"mean_of must be 'cluster' or 'replaced', but got mean_of={self.mean_of!r}")

    def compress(self, network: Network, task: Task, work: Work) -> Outcome:
        """Train, from the network's weights or random ones, prune on the way, and add channels up (Algorithm 1)."""
        whole, trained = self.learn(network, task, work)
        plan = channel_addition(whole.model, graph := whole.graph())
        work.record_cut(graph, plan, lambda: _some(task, whole))
        small = apply(whole.model, plan, graph=graph).eval()
        if self.keep_macs is not None:
            left = evaluate.macs(small, whole.example) / evaluate.macs(network.model, network.example)
            check_met("macs", self.keep_macs, left, "clusters of identical filters could not be made finer")
        return Outcome(small, None, None, trained_record(trained))

    def learn(self, network: Network, task: Task, work: Work) -> tuple[Network, TrainResult]:
        """Return the network with its repeated filters, which :func:`channel_addition` removes (lines 1 to 7)."""
        averaged = work.needed().ema_decay
        if averaged is not None:
            raise ArgumentError(
                f"ema_decay={averaged:g} does not go with CP: averaged filters are no longer identical. Pass "
                "ema_decay=None."
            )
        model = network.copy(work.seed if self.scratch else None)
        if self.batch_norm == "removed":
            model = without_batch_norm(model, replace(network, model=model).graph(), self.layers)
        graph = replace(network, model=model).graph()
        config = self if self.keep_macs is None else for_macs(graph, self.keep_macs, self)
        trained = work.fit(model, task, "train and cluster", hook=ClusterPruning(graph, config, seed=work.seed))
        example = network.example.to(next(model.parameters()).device)  # training may be on another device
        return replace(network, model=model, example=example), trained


def _some(task: Task, network: Network) -> torch.Tensor:
    """Return a few training images as the network reads them."""
    few = task.train.subset(torch.arange(min(8, len(task.train))))
    return task.normalize(few.load()[0]).to(network.example.device)


def for_macs(graph: ChannelGraph, keep_macs: float, config: CP) -> CP:
    """Return `config` with the goal, the adaptive clusters and the widths that leave this share of the MACs.

    One number is solved for, the real rate P_r (Eq. 9). Below 0.5, P_goal is 1.5 · P_r; above, half way from P_r to 1.
    What the rounding of widths leaves of the budget goes to the deepest layers.

    Raises
    ------
    ArgumentError
        If `keep_macs` is no fraction, or a layer is no group that may be cut.
    BudgetError
        If the layers cannot be made narrow enough.
    """
    check_fraction("keep_macs", keep_macs)
    cost = CostModel(graph)
    groups = target_groups(graph, config.layers)

    def share(widths: list[int]) -> float:
        by_name = {group.name: width for group, width in zip(groups, widths, strict=True)}
        return cost.total("macs", cost.with_widths(by_name)) / cost.total("macs")

    def at(real: float) -> tuple[float, CP]:
        goal = usual_goal(real)
        clusters, widths = Adaptive(real), list[int]()
        for layer, group in enumerate(groups, 1):
            count = clusters.of(torch.empty(group.width, 0), layer, len(groups), goal)
            widths.append(min(group.width, group.width - replaced_count(group.width, goal) + count))
        return share(widths), replace(config, keep_macs=None, goal=goal, clusters=clusters, widths=tuple(widths))

    low, high = 0.0, 0.99
    kept, best = at(high)
    if kept > keep_macs:
        raise BudgetError(
            f"keep_macs={keep_macs:g} cannot be reached in {len(groups)} layers: at a real rate of {high} they leave "
            f"{kept:.4g}. Ask for keep_macs>={math.ceil(kept * 1e4) / 1e4:g}, or name more layers."
        )
    for _ in range(30):
        middle = (low + high) / 2
        kept, made = at(middle)
        if kept <= keep_macs:
            high, best = middle, made
        else:
            low = middle
    widths = list(best.widths or ())
    for layer in reversed(range(len(groups))):
        while widths[layer] < groups[layer].width and share(_with(widths, layer)) <= keep_macs:
            widths = _with(widths, layer)
    return replace(best, widths=tuple(widths))


def _with(widths: list[int], layer: int) -> list[int]:
    """Return widths with one more filter in a layer."""
    return [width + (number == layer) for number, width in enumerate(widths)]
