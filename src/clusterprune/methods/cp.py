"""CP: make filters identical while training, then remove them without loss.

"Lossless Filter Pruning via Adaptive Clustering for Convolutional Neural Networks", Algorithm 1:

1.  for each epoch:
2.      update the weights on the training set                       (:func:`clusterprune.train.fit`)
3.      for each layer:                                              (:class:`ClusterPruning`)
4.          cluster the filters                                      Eq. 3
5.          select the N·P filters closest to their centroids        Eq. 4
6.          set each of them to its centroid
9.  channel addition                                                 Eq. 8, :func:`finish`

What a filter was set to, training may change again (soft pruning); only the last epoch's choice stays.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from clusterprune import train as training
from clusterprune.arguments import check_instance, check_model, check_statistics
from clusterprune.budget.allocation import CostModel, check_fraction
from clusterprune.clustering import NOISE, Clustering, Clusters, KMeans
from clusterprune.data import Split
from clusterprune.errors import ArgumentError, BudgetError
from clusterprune.evaluate.mode import device_of, dtype_of
from clusterprune.graph import ChannelGraph, Use, trace
from clusterprune.methods.cp_addition import finish, rows_of
from clusterprune.methods.cp_layers import target_groups, without_batch_norm
from clusterprune.methods.cp_rates import (
    SCHEDULES,
    Adaptive,
    ClusterCount,
    Schedule,
    check_rate,
    pruning_rate,
    replaced_count,
    usual_goal,
)
from clusterprune.plan import Plan
from clusterprune.surgery.apply import apply
from clusterprune.tables import network_of, plural
from clusterprune.tasks import Classification

__all__ = ["CP", "CPResult", "ClusterPruning", "cluster_prune", "finish", "for_macs", "without_batch_norm"]

Images = Split | tuple[Tensor, Tensor]

PUBLISHED: dict[str, Any] = {"batch_norm": "removed"}
"""In what the published settings differ from the defaults."""


@dataclass(frozen=True)
class CP:
    """The settings of CP; :meth:`published` has those of the paper, whose networks train from random weights.

    Attributes
    ----------
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
    seed
        Of the first k-means.

    Raises
    ------
    ArgumentError
        If a setting is outside what it accepts, or two do not go together.
    """

    goal: float = 0.75
    clusters: ClusterCount = Adaptive()  # noqa: RUF009 (frozen)
    schedule: Schedule = "fast-slow"
    curvature: float = 5.0
    clustering: Clustering | None = None
    batch_norm: Literal["tied", "removed"] = "tied"
    mean_of: Literal["cluster", "replaced"] = "cluster"
    layers: tuple[str, ...] | None = None
    widths: tuple[int, ...] | None = None
    seed: int = 0

    @classmethod
    def published(cls, **changes: Any) -> "CP":
        """Return the published settings: fast-slow, adaptive clusters, k-means, no batch norm behind a target layer.

        Give :func:`cluster_prune` a network with random weights. Without batch norms a learning rate of 0.1 may need a
        warm-up.
        """
        return cls(**{**PUBLISHED, **changes})

    def __post_init__(self) -> None:
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


@dataclass(frozen=True, eq=False)
class CPResult:
    """The trained network with its repeated filters, the plan that removes them, and what it leaves."""

    model: nn.Module
    plan: Plan
    compact: nn.Module
    history: list[dict[str, Any]]

    def __repr__(self) -> str:
        """Say how large the compact network is, how long it was trained, and by which plan it was cut."""
        trained = plural(len(self.history), "epoch")
        return f"<CPResult: {network_of(self.compact)} after {trained}, plan={self.plan!r}>"


def cluster_prune(
    model: nn.Module,
    train: Images,
    validation: Images | None = None,
    *,
    config: CP,
    train_config: training.TrainConfig,
    mean: Sequence[float],
    std: Sequence[float],
    out: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[training.Progress], None] | None = None,
) -> CPResult:
    """Train a copy of `model`, from scratch or from its weights, and prune it on the way (Algorithm 1).

    Takes the arguments of :func:`clusterprune.train.fit` and raises what that raises.

    Raises
    ------
    ArgumentError
        If a layer is no group that may be cut, its batch norm cannot be removed, or the average of weights is asked
        for: filters that are identical after the last epoch are not identical on average.
    """
    check_model(model)
    check_instance("config", config, CP, "write CP(goal=0.5)")
    check_instance("train_config", train_config, training.TrainConfig, "write TrainConfig(epochs=10)")
    mean, std = check_statistics(mean, std)
    if train_config.ema_decay is not None:
        raise ArgumentError(
            f"ema_decay={train_config.ema_decay:g} does not go with CP: averaged filters are no longer identical. "
            "Pass ema_decay=None."
        )
    network = copy.deepcopy(model)
    height, width = (train.shape if isinstance(train, Split) else train[0].shape)[-2:]
    example = torch.zeros(1, len(mean), height, width, dtype=dtype_of(network))
    graph = trace(network, example.to(device_of(network)))
    if config.batch_norm == "removed":
        network = without_batch_norm(network, graph, config.layers)
        graph = trace(network, example.to(device_of(network)))
    pruning = ClusterPruning(graph, config)
    trained = training.fit(
        network,
        Classification(train, validation, mean=mean, std=std),
        train_config,
        out=out,
        resume=resume,
        progress=progress,
        hook=pruning,
    )
    graph = trace(network, example.to(device_of(network)))  # training may have moved it to another device
    plan = finish(network, graph)
    return CPResult(network, plan, apply(network, plan, graph=graph), trained.history)


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
        clusters, widths = Adaptive(real), []
        for layer, group in enumerate(groups, 1):
            count = clusters.of(torch.empty(group.width, 0), layer, len(groups), goal)
            widths.append(min(group.width, group.width - replaced_count(group.width, goal) + count))
        return share(widths), replace(config, goal=goal, clusters=clusters, widths=tuple(widths))

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


class ClusterPruning:
    """Lines 3-7 of Algorithm 1, after every epoch of :func:`clusterprune.train.fit`.

    Parameters
    ----------
    graph
        The network that is going to be trained.

    Raises
    ------
    ArgumentError
        If a layer is no group that may be cut, or has a batch norm although `batch_norm="removed"`.
    """

    def __init__(self, graph: ChannelGraph, config: CP) -> None:
        self.config = config
        self.groups = target_groups(graph, config.layers)
        self._counts: dict[str, int] = {}
        self._centroids: dict[str, Tensor] = {}
        left = [group.name for group in self.groups if graph.norms_of(group)]
        if config.batch_norm == "removed" and left:
            raise ArgumentError(
                f"batch_norm='removed', but {left[0]} has a batch norm; train the copy that "
                "without_batch_norm(model, graph) returns, or pass batch_norm='tied'"
            )

    @torch.no_grad()
    def after_epoch(self, model: nn.Module, epoch: int, epochs: int) -> None:
        """Replace filters by their centroids, in place; `epoch` counts from 1."""
        config = self.config
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        rate = pruning_rate(config.schedule, config.goal, epoch, epochs, config.curvature)
        for layer, group in enumerate(self.groups, 1):
            filters = torch.cat([rows_of(tensors, use) for use in group.producers], 1)
            self._counts[group.name] = config.clusters.of(filters, layer, len(self.groups), config.goal)
            clusters = self._cluster(group.name, filters)
            centroids = clusters.centroids(filters)
            distances = (filters - centroids[torch.tensor(clusters.labels)]).norm(dim=1)
            # A filter alone in its cluster is at distance 0 and counts among them, as it does in Eq. 9.
            order = distances.argsort(stable=True)
            count = replaced_count(group.width, rate)
            if config.widths is not None:
                surplus = group.width - config.widths[layer - 1]
                # Rounded, not cut off: the last filter shall not go in the last epoch, after which nothing recovers.
                count = _fewest(clusters.labels[order.numpy()], group.width - round(surplus * rate / config.goal))
            closest = order[:count]
            averaged = clusters if config.mean_of == "cluster" else _among(clusters, closest)
            for use in (*group.producers, *group.carriers):
                _replace(tensors, use, averaged, closest)
            self._centroids[group.name] = centroids.to(tensors[group.producers[0].path].dtype)

    def _cluster(self, name: str, filters: Tensor) -> Clusters:
        """Put filters (N, d) into clusters (Eq. 3)."""
        count, clustering = self._counts[name], self.config.clustering
        if clustering is None:
            start = self._centroids.get(name)
            if start is not None and len(start) > count:  # only Silhouette changes its mind
                start = None
            # One start is enough: the next epoch clusters again.
            return KMeans(count, seed=self.config.seed, n_init=1).fit(vectors=filters, init_centroids=start)
        if getattr(clustering, "n_clusters", None) is not None:
            clustering = replace(clustering, n_clusters=count)  # type: ignore[type-var]
        distances = torch.cdist(filters, filters).fill_diagonal_(0) if clustering.reads == "distances" else None
        return clustering.fit(vectors=filters, distances=distances).as_partition()

    def tensors(self) -> dict[str, Tensor]:
        """Return what the next epoch starts from, centroids and numbers of clusters, and the settings as text."""
        found = {"settings": torch.tensor(list(repr(self.config).encode()), dtype=torch.uint8)}
        found |= {f"clusters.{name}": torch.tensor(count) for name, count in self._counts.items()}
        return found | {f"centroids.{name}": centroids.clone() for name, centroids in self._centroids.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`tensors` returned.

        Raises
        ------
        ArgumentError
            If that was under other settings.
        """
        settings = bytes(tensors["settings"].tolist()).decode()
        if settings != repr(self.config):
            raise ArgumentError(
                f"config={self.config!r} differs from that of the run being resumed, {settings}; "
                "resume with the same settings, or start in another folder"
            )
        parts = [(key.partition(".")[0], key.partition(".")[2], value) for key, value in tensors.items()]
        self._counts = {name: int(value) for kind, name, value in parts if kind == "clusters"}
        self._centroids = {name: value.cpu().clone() for kind, name, value in parts if kind == "centroids"}


def _fewest(labels: np.ndarray, width: int) -> int:
    """Return how many of the first filters must be replaced so that `width` different ones are left.

    Parameters
    ----------
    labels
        Cluster of each filter, in the order in which they are replaced: shape (N,).
    """
    # A cluster's first replaced filter becomes its centroid and stays; every further one goes.
    first = np.zeros(len(labels), dtype=bool)
    first[np.unique(labels, return_index=True)[1]] = True
    left = len(labels) - np.cumsum(~first)
    enough = np.flatnonzero(left <= width)
    return 0 if width >= len(labels) else int(enough[0]) + 1 if len(enough) else len(labels)


def _among(clusters: Clusters, chosen: Tensor) -> Clusters:
    """Return the clusters of the chosen filters; the others are noise."""
    labels = np.full(clusters.n_points, NOISE)
    labels[chosen.numpy()] = clusters.labels[chosen.numpy()]
    return Clusters.from_labels(labels)


def _replace(tensors: dict[str, Tensor], use: Use, clusters: Clusters, closest: Tensor) -> None:
    """Set what a parameter holds for the closest channels to the mean over their clusters."""
    stored = tensors[use.path].detach().movedim(use.dim, 0)
    positions = torch.from_numpy(use.positions)[closest].to(stored.device)
    means = clusters.centroids(rows_of(tensors, use))[torch.tensor(clusters.labels)[closest]]
    stored[positions] = means.view(*positions.shape, *stored.shape[1:]).to(stored.device, stored.dtype)
