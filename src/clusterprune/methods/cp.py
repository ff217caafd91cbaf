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

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from clusterprune import train as training
from clusterprune.budget import CostModel, check_fraction
from clusterprune.clustering import Clustering, Clusters, KMeans
from clusterprune.data import Split
from clusterprune.errors import ArgumentError, BudgetError
from clusterprune.evaluate.mode import device_of, dtype_of
from clusterprune.graph import ChannelGraph, Group, Use, trace
from clusterprune.methods.cp_addition import finish, norms_of, rows_of
from clusterprune.methods.cp_rates import (
    SCHEDULES,
    Adaptive,
    ClusterCount,
    Schedule,
    check_rate,
    pruning_rate,
    replaced_count,
)
from clusterprune.methods.layers import inner_groups
from clusterprune.plans import Plan
from clusterprune.record import Stage, add_stage
from clusterprune.surgery import apply

__all__ = ["CP", "CPResult", "ClusterPruning", "cluster_prune", "finish", "for_macs", "without_batch_norm"]

Images = Split | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class CP:
    """The settings of CP.

    Attributes
    ----------
    goal
        P_goal, the share of each layer's filters that are replaced after the last epoch.
    clusters
        How many clusters a layer gets: `Adaptive(real_rate)`, `Constant(number or share)` or `Silhouette()`.
    schedule
        How the rate rises to the goal: "fast-slow" (the paper's best, Fig. 5), "slow-fast" or "linear".
    curvature
        |k₂| · T of the exponential schedules. The paper gives no value; at 5, fast-slow is at 63 % of its goal
        after a fifth of the epochs.
    clustering
        None is k-means, started from the last epoch's centroids. Others start anew in every epoch; where they have an
        `n_clusters`, it is replaced by the layer's, and the rest (mean shift) find their own number.
    batch_norm
        "removed", as published: no target layer may have one, see :func:`without_batch_norm`. "tied": the batch
        norm of a replaced filter is replaced too, by the mean over its cluster.
    layers
        Names of groups to prune; None is the paper's choice, :func:`clusterprune.methods.layers.inner_groups`.
    seed
        Of the first k-means.

    Raises
    ------
    ArgumentError
        If a setting is outside what it accepts, or two do not go together.
    """

    goal: float = 0.75
    clusters: ClusterCount = Adaptive(real_rate=0.5)  # noqa: RUF009 (frozen)
    schedule: Schedule = "fast-slow"
    curvature: float = 5.0
    clustering: Clustering | None = None
    batch_norm: Literal["tied", "removed"] = "tied"
    layers: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_rate("goal", self.goal)
        self.clusters.check(self.goal)
        if self.schedule not in SCHEDULES:
            raise ArgumentError(f"schedule must be one of {', '.join(SCHEDULES)}, but got schedule={self.schedule!r}")
        if not 0 < self.curvature <= 100:
            raise ArgumentError(f"curvature must be above 0 and at most 100, but got curvature={self.curvature!r}")
        if self.batch_norm not in ("tied", "removed"):
            raise ArgumentError(f"batch_norm must be 'tied' or 'removed', but got batch_norm={self.batch_norm!r}")


@dataclass(frozen=True, eq=False)
class CPResult:
    """The trained network with its repeated filters, the plan that removes them, and what it leaves."""

    model: nn.Module
    plan: Plan
    compact: nn.Module
    history: list[dict[str, Any]]


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
        train,
        validation,
        config=train_config,
        mean=mean,
        std=std,
        out=out,
        resume=resume,
        progress=progress,
        hook=pruning,
    )
    graph = trace(network, example.to(device_of(network)))  # training may have moved it to another device
    plan = finish(network, graph)
    return CPResult(network, plan, apply(network, plan, graph=graph), trained.history)


def for_macs(graph: ChannelGraph, keep_macs: float, config: CP) -> CP:
    """Return `config` with the goal and the adaptive clusters that leave at most this share of the MACs.

    One number is solved for, the real rate P_r (Eq. 9). Below 0.5, P_goal is 1.5 · P_r; above, half way from P_r to 1.
    The network ends below the target where some clusters have no filter that is replaced.

    Raises
    ------
    ArgumentError
        If `keep_macs` is no fraction, or a layer is no group that may be cut.
    BudgetError
        If the layers cannot be made narrow enough.
    """
    check_fraction("keep_macs", keep_macs)
    cost = CostModel(graph)
    groups = _targets(graph, config.layers)
    index = {group.name: number for number, group in enumerate(graph.groups)}

    def at(real: float) -> tuple[float, CP]:
        goal = min(1.5 * real, (1 + real) / 2)
        made = replace(config, goal=goal, clusters=Adaptive(real))
        widths = cost.widths.copy()
        for layer, group in enumerate(groups, 1):
            count = made.clusters.of(torch.empty(group.width, 0), layer, len(groups), goal)
            widths[index[group.name]] = min(group.width, group.width - replaced_count(group.width, goal) + count)
        return cost.total("macs", widths) / cost.total("macs"), made

    low, high = 0.0, 0.99
    share, best = at(high)
    if share > keep_macs:
        raise BudgetError(
            f"keep_macs={keep_macs:g} cannot be reached in {len(groups)} layers: at a real rate of {high} they leave "
            f"{share:.4g}. Ask for keep_macs>={math.ceil(share * 1e4) / 1e4:g}, or name more layers."
        )
    for _ in range(30):
        middle = (low + high) / 2
        share, made = at(middle)
        if share <= keep_macs:
            high, best = middle, made
        else:
            low = middle
    return best


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
        self.groups = _targets(graph, config.layers)
        self._counts: dict[str, int] = {}
        self._centroids: dict[str, Tensor] = {}
        left = [group.name for group in self.groups if norms_of(graph, group)]
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
            if group.name not in self._counts:
                self._counts[group.name] = config.clusters.of(filters, layer, len(self.groups), config.goal)
            clusters = self._cluster(group.name, filters)
            centroids = clusters.centroids(filters)
            distances = (filters - centroids[torch.tensor(clusters.labels)]).norm(dim=1)
            # A filter alone in its cluster is at distance 0 and counts among them, as it does in Eq. 9.
            closest = distances.argsort(stable=True)[: replaced_count(group.width, rate)]
            for use in (*group.producers, *group.carriers):
                _replace(tensors, use, clusters, closest)
            self._centroids[group.name] = centroids.to(tensors[group.producers[0].path].dtype)

    def _cluster(self, name: str, filters: Tensor) -> Clusters:
        """Put filters (N, d) into clusters (Eq. 3)."""
        count, clustering = self._counts[name], self.config.clustering
        if clustering is None:
            start = self._centroids.get(name)
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


def _targets(graph: ChannelGraph, layers: Sequence[str] | None) -> list[Group]:
    """Return the groups to prune, in order of depth."""
    names = inner_groups(graph) if layers is None else layers
    possible = {group.name for group in graph.prunable if group.n_blocks == 1}
    if not names or not possible.issuperset(names):
        wrong = ", ".join(sorted(set(names) - possible)) or "nothing"
        raise ArgumentError(
            f"layers={wrong} cannot be pruned; name groups of this network, such as "
            f"{', '.join(sorted(possible)[:8]) or 'none'}. Print the graph to see all, and why some are frozen."
        )
    return [group for group in graph.prunable if group.name in names]


def _replace(tensors: dict[str, Tensor], use: Use, clusters: Clusters, closest: Tensor) -> None:
    """Set what a parameter holds for the closest channels to the mean over their clusters."""
    stored = tensors[use.path].detach().movedim(use.dim, 0)
    positions = torch.from_numpy(use.positions)[closest].to(stored.device)
    means = clusters.centroids(rows_of(tensors, use))[torch.tensor(clusters.labels)[closest]]
    stored[positions] = means.view(*positions.shape, *stored.shape[1:]).to(stored.device, stored.dtype)


def without_batch_norm(model: nn.Module, graph: ChannelGraph, layers: Sequence[str] | None = None) -> nn.Module:
    """Return a copy without the batch norms behind its target layers, as the paper trains it.

    Each is folded into its convolution, which gets a bias: in evaluation the copy computes what `model` does.

    Parameters
    ----------
    model, graph
        A network and its graph.
    layers
        Names of groups; None is the paper's choice.

    Raises
    ------
    ArgumentError
        If a layer is no group that may be cut, or its batch norm is not directly behind it.
    """
    smaller = copy.deepcopy(model)
    folded: list[str] = []
    added: list[str] = []
    for group in _targets(graph, layers):
        for norm in norms_of(graph, group):
            path = next(graph.inputs[a.name] for a in norm.args[1:5] if a is not None)  # type: ignore[union-attr]
            owner = path.rpartition(".")[0]
            layer = group.producers[0].path.rpartition(".")[0]
            batch_norm, convolution = smaller.get_submodule(owner), smaller.get_submodule(layer)
            made = [call.node for call in graph.calls if call.weight == group.producers[0].path]
            behind = made == [norm.args[0].name] and len(norm.args[0].users) == 1  # type: ignore[union-attr]
            if (
                not behind
                or not isinstance(convolution, nn.modules.conv._ConvNd)
                or not isinstance(batch_norm, nn.modules.batchnorm._BatchNorm)
                or batch_norm.running_mean is None
                or batch_norm.running_var is None
            ):
                raise ArgumentError(
                    f"the batch norm {owner} cannot be removed: it does not alone read {layer}, or has no running "
                    f"statistics. Leave {group.name} out of layers, or pass batch_norm='tied'."
                )
            folded.append(owner)
            added += [f"{layer}.bias"] if convolution.bias is None else []
            convolution.weight, convolution.bias = fuse_conv_bn_weights(
                convolution.weight,
                convolution.bias,
                batch_norm.running_mean,
                batch_norm.running_var,
                batch_norm.eps,
                batch_norm.weight,
                batch_norm.bias,
                transpose=convolution.transposed,
            )
            convolution.bias.requires_grad_(convolution.weight.requires_grad)
            smaller.set_submodule(owner, nn.Identity())
    return add_stage(smaller, model, Stage(rewired=False, added=added, folded=folded)) if folded else smaller
