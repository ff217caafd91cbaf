# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""How much CP prunes, and when: pruning rates over the epochs (Eqs. 5-7), clusters over the layers (section 3.3).

Everything here is a function of numbers; :mod:`clusterprune.methods.cp` applies it to networks.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from sklearn.metrics import silhouette_score
from torch import Tensor

from clusterprune.clustering import KMeans
from clusterprune.errors import ArgumentError
from clusterprune.methods._settings import checked
from clusterprune.similarity import pairwise_distances

Schedule = Literal["fast-slow", "slow-fast", "linear"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)


def linear(goal: float, epoch: int, epochs: int) -> float:
    """Return P = P_goal · t / T (Eq. 6)."""
    return goal * (epoch / epochs)


def exponential(goal: float, epoch: int, epochs: int, k2: float) -> float:
    """Return P = k₁ · (e^(k₂·t) − 1) (Eq. 7), with the k₁ that ends at P_goal.

    Negative k₂ (per epoch) rises fast and then slowly, positive k₂ slowly and then fast.
    """
    return goal * (math.expm1(k2 * epoch) / math.expm1(k2 * epochs))


def pruning_rate(schedule: Schedule, goal: float, epoch: int, epochs: int, curvature: float) -> float:
    """Return the share of filters to replace after an epoch, counted from 1 (Eq. 5).

    `curvature` is |k₂| · T: a schedule keeps its shape when the run gets shorter.
    """
    if schedule == "linear":
        return linear(goal, epoch, epochs)
    sign = -1 if schedule == "fast-slow" else 1
    return exponential(goal, epoch, epochs, sign * curvature / epochs)


def replaced_count(width: int, rate: float) -> int:
    """Return how many of `width` filters are replaced: the largest integer of at most N · P (Eq. 4)."""
    return math.floor(width * rate + 1e-9)


def real_rate(rates: Sequence[float], counts: Sequence[int], widths: Sequence[int]) -> float:
    """Return the share of all filters that is certain to go, Σ(Pᵢ − cᵢ/Nᵢ)·Nᵢ / ΣNᵢ (Eq. 9).

    One filter stays for each cluster. More go where a cluster has none of the replaced filters.
    """
    removed = sum((p - c / n) * n for p, c, n in zip(rates, counts, widths, strict=True))
    return removed / sum(widths)


def usual_goal(real: float) -> float:
    """Return the P_goal that goes with a real rate P_r: 1.5 · P_r, or half way from P_r to 1 where that is less.

    What lies between the two is the share of filters that stand for their clusters; the paper does not say how much.
    """
    return min(1.5 * real, (1 + real) / 2)


def usual_real_rate(goal: float) -> float:
    """Return the real rate P_r whose :func:`usual_goal` is a given one."""
    return max(goal / 1.5, 2 * goal - 1)


def adaptive_share(layer: int, layers: int, goal: float, real: float) -> float:
    """Return cᵢ/Nᵢ for a layer, counted from 1: an arctangent of depth that ends at P − P_r (section 3.3)."""
    return (goal - real) * (math.atan(layer) / math.atan(layers))


class ClusterCount(Protocol):
    """How many clusters a layer's filters are put in; asked after every epoch."""

    def check(self, goal: float) -> None:
        """Raise :class:`ArgumentError` if this cannot go with a pruning rate."""
        ...

    def of(self, filters: Tensor, layer: int, layers: int, goal: float) -> int:
        """Return the number for `filters` (N, d) of a layer, counted from 1, when N · goal are to be replaced."""
        ...


@dataclass(frozen=True)
class Adaptive:
    """More clusters in deeper layers, so that at least `real_rate` of all filters go (Eq. 9).

    Without a real rate it follows the goal: see :func:`usual_real_rate`.

    A layer ends with at most ⌈N · (1 − P)⌉ + ⌊N · (P − P_r)⌋ filters, to which one is added if that leaves it
    without a cluster.
    """

    real_rate: float | None = None

    def __post_init__(self) -> None:
        if self.real_rate is not None and not 0 <= self.real_rate < 1:
            raise ArgumentError(f"real_rate must be at least 0 and below 1, but got real_rate={self.real_rate!r}")

    def check(self, goal: float) -> None:
        """Raise :class:`ArgumentError` where nothing is left for clusters."""
        if self.real_rate is not None and self.real_rate >= goal:
            raise ArgumentError(
                f"real_rate={self.real_rate:g} must be below goal={goal:g}: what lies between is the share of filters "
                "that stand for their clusters. Raise goal, half way to 1 for example, or give it alone."
            )

    def of(self, filters: Tensor, layer: int, layers: int, goal: float) -> int:
        """Return max(1, ⌊N · share⌋)."""
        real = usual_real_rate(goal) if self.real_rate is None else self.real_rate
        return max(1, replaced_count(len(filters), adaptive_share(layer, layers, goal, real)))


@dataclass(frozen=True)
class Constant:
    """The same number of clusters in every layer (Table 3: 5), or the same share of its filters (Fig. 4: 0.25)."""

    number: int | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        if (self.number is None) == (self.share is None):
            raise ArgumentError(
                f"give exactly one of number and share, but got number={self.number!r}, share={self.share!r}"
            )
        if self.number is not None and self.number < 1:
            raise ArgumentError(f"number must be at least 1, but got number={self.number!r}")
        if self.share is not None and not 0 < self.share <= 1:
            raise ArgumentError(f"share must be above 0 and at most 1, but got share={self.share!r}")

    def check(self, goal: float) -> None:
        """Accept every rate."""

    def of(self, filters: Tensor, layer: int, layers: int, goal: float) -> int:  # noqa: ARG002 (the protocol's)
        """Return the number, or the share of the filters, of at least 1 and at most N."""
        number = self.number or replaced_count(len(filters), self.share or 0)
        return min(max(1, number), len(filters))


@dataclass(frozen=True)
class Silhouette:
    """For each layer the number of clusters with the best mean silhouette (Rousseeuw 1987).

    The paper tries every number; here the tried ones are shares of the filters, unless `shares` has them all.
    How much is pruned is then not known beforehand (Table 3). The number is looked for anew after every epoch, as the
    clusters are: the first epoch of a training from random weights knows nothing of the last one's filters.
    """

    shares: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.shares or any(not 0 < share < 1 for share in self.shares):
            raise ArgumentError(f"shares must be some numbers between 0 and 1, but got shares={self.shares!r}")

    def check(self, goal: float) -> None:
        """Accept every rate."""

    def of(self, filters: Tensor, layer: int, layers: int, goal: float) -> int:  # noqa: ARG002 (the protocol's)
        """Return the best number; 1 where there are too few distinct filters to tell clusters apart."""
        distances = pairwise_distances(filters, "euclidean").cpu().numpy()
        # A silhouette needs two clusters, and one of them with two filters.
        numbers = {replaced_count(len(filters), share) for share in self.shares}
        scores: dict[int, float] = {}
        for number in sorted(n for n in numbers if 2 <= n < len(filters)):
            found = KMeans(number, seed=self.seed, n_init=1).fit(vectors=filters)
            if 2 <= found.n_clusters < len(filters):
                scores[number] = float(silhouette_score(distances, found.labels, metric="precomputed"))
        return max(scores, key=lambda number: scores[number], default=1)


def check_rate(name: str, value: float) -> None:
    """Raise :class:`ArgumentError` unless a pruning rate is above 0 and below 1."""
    if not 0 < value < 1:
        raise ArgumentError(f"{name} must be above 0 and below 1, but got {name}={value!r}")


def read_cluster_count(value: Any) -> ClusterCount:
    """Return how many clusters CP makes; a ready object passes.

    Parameters
    ----------
    value
        ``"adaptive"``, ``{"adaptive": real_rate}``, ``{"constant": number}``, ``{"share": share}`` or ``"silhouette"``.

    Raises
    ------
    ArgumentError
        For anything else.
    """
    if hasattr(value, "check"):
        return value
    if value == "silhouette":
        return Silhouette()
    if value == "adaptive":
        return Adaptive()
    makers: dict[str, Callable[[Any], ClusterCount]] = {
        "adaptive": lambda rate: Adaptive(checked("adaptive", rate, float)),
        "constant": lambda number: Constant(number=checked("constant", number, int)),
        "share": lambda share: Constant(share=checked("share", share, float)),
    }
    if isinstance(value, Mapping) and len(value) == 1:
        ((kind, number),) = value.items()
        if kind in makers:
            return makers[kind](number)
    raise ArgumentError(
        f"clusters={value!r} is not known; give adaptive, {{adaptive: RATE}}, {{constant: NUMBER}}, {{share: SHARE}} "
        "or silhouette"
    )
