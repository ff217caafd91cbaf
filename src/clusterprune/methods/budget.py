"""The arguments that say how much of a network shall be kept, of every function that plans."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from torch import nn

from clusterprune.arguments import check_number, shown
from clusterprune.budget.allocation import CostModel, Quantity, check_fraction, example_batch
from clusterprune.budget.limits import AUTO, Limits, RoundTo
from clusterprune.errors import ArgumentError
from clusterprune.methods.latency import Clock, read_clock


class Budget(TypedDict, total=False):
    """How much to keep: at least one of the first six. Of several, all hold.

    Attributes
    ----------
    keep_macs, keep_params, keep_latency
        The fraction of the multiply-adds, parameters or time to keep, in (0, 1], or a text such as "60%".
    max_macs, max_params, max_latency_ms
        The most that may be left: multiply-adds of an image, parameters, milliseconds.
    latency
        What a time is measured by: a runtime such as "onnxruntime:threads=1", a
        :class:`clusterprune.methods.latency.Clock`, or a function of a model that returns milliseconds. None is PyTorch
        as it is, on the traced example, asked about whole networks.
    round_to, min_width
        Kept widths are multiples of `round_to` and at least `min_width`. "auto", the default, is such as run fast:
        see :class:`clusterprune.budget.limits.Limits`.
    """

    keep_macs: float | str | None
    keep_params: float | str | None
    keep_latency: float | str | None
    max_macs: float | None
    max_params: float | None
    max_latency_ms: float | None
    latency: Clock | str | Callable[[nn.Module], float] | None
    round_to: RoundTo
    min_width: int


KEEP = ("keep_macs", "keep_params", "keep_latency")
MOST = ("max_macs", "max_params", "max_latency_ms")


class ClusterBudget(TypedDict, total=False):
    """How much to keep where clusters decide: at most one of the first three.

    Attributes
    ----------
    keep_channels, keep_macs, keep_params
        The fraction of the channels, multiply-adds or parameters to keep, in (0, 1], or a text such as "60%". Without
        any, the clustering itself decides: clusters plus noise points (its ε, or its number of clusters). With one, the
        widths are solved for by the clustering's knob: a length (ε of DBSCAN, HDBSCAN and OPTICS, a bandwidth, a
        threshold) is the same for all groups and found by bisection; numbers of clusters come from the heights of an
        average-linkage tree, over all groups together.
    round_to, min_width
        Kept widths are multiples of `round_to` and at least `min_width`. "auto", the default, is such as run fast for a
        fraction, and leaves alone what the clustering itself decides.
    """

    keep_channels: float | str | None
    keep_macs: float | str | None
    keep_params: float | str | None
    round_to: RoundTo
    min_width: int


@dataclass(frozen=True)
class Goal:
    """A budget that was read and checked.

    Attributes
    ----------
    asked
        The targets by name, such as ``{"keep_macs": 0.5}``: fractions, and largest amounts.
    limits
        Which widths are allowed.
    clock
        What a time is measured by.
    """

    asked: Mapping[str, float]
    limits: Limits
    clock: Clock | Callable[[nn.Module], float] | None = None

    @property
    def timed(self) -> bool:
        """Whether there is a target in time."""
        return "keep_latency" in self.asked or "max_latency_ms" in self.asked

    def shares(self, cost: CostModel) -> dict[Quantity, float]:
        """Return which fraction of the MACs and of the parameters may be left, of those that have a target."""
        whole: dict[Quantity, float] = {
            "macs": cost.total("macs") / example_batch(cost.graph), "params": cost.total("params")
        }  # fmt: skip
        found: dict[Quantity, float] = {}
        for quantity, total in whole.items():
            share = self._share(f"keep_{quantity}", f"max_{quantity}", total)
            found |= {} if share is None else {quantity: share}
        return found

    def time_share(self, whole_ms: float) -> float:
        """Return which fraction of the original's milliseconds may be left."""
        share = self._share("keep_latency", "max_latency_ms", whole_ms)
        return 1.0 if share is None else share

    def _share(self, keep: str, most: str, whole: float) -> float | None:
        given = [self.asked[keep]] if keep in self.asked else []
        given += [min(1.0, self.asked[most] / whole)] if most in self.asked else []
        return min(given, default=None)

    def __str__(self) -> str:
        """Say what was asked for."""
        return " and ".join(f"{name}={value:g}" for name, value in self.asked.items())


def read_budget(given: Mapping[str, Any]) -> Goal:
    """Check a budget.

    Raises
    ------
    ArgumentError
        If there is no target, or something is not accepted, or is no part of a budget.
    """
    _check_names(given, Budget)
    asked = {name: read_fraction(name, given[name]) for name in KEEP if given.get(name) is not None}
    asked |= {name: _amount(name, given[name]) for name in MOST if given.get(name) is not None}
    if not asked:
        raise ArgumentError(f"give at least one of {', '.join(KEEP)}, {', '.join(MOST)}, but got none")
    return Goal(asked, _limits(given), read_clock(given.get("latency")))


def read_cluster_budget(given: Mapping[str, Any]) -> tuple[dict[str, float], Limits]:
    """Check a budget of clusters; return the one fraction by what it is of, if there is one, and the allowed widths.

    Raises
    ------
    ArgumentError
        If several fractions are given, or something is not accepted, or is no part of such a budget.
    """
    _check_names(given, ClusterBudget)
    quantities = ("channels", "macs", "params")
    asked = {name: given[f"keep_{name}"] for name in quantities if given.get(f"keep_{name}") is not None}
    if len(asked) > 1:
        raise ArgumentError(
            "give at most one of keep_channels, keep_macs and keep_params, but got "
            f"{', '.join(f'keep_{name}={value!r}' for name, value in asked.items())}"
        )
    return {name: read_fraction(f"keep_{name}", value) for name, value in asked.items()}, _limits(
        given, AUTO if asked else 1
    )


def _limits(given: Mapping[str, Any], usual: RoundTo = AUTO) -> Limits:
    round_to = given.get("round_to", AUTO)
    return Limits(usual if round_to == AUTO else round_to, given.get("min_width", 1))


def _check_names(given: Mapping[str, Any], budget: type) -> None:
    known = list(budget.__annotations__)
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ArgumentError(
                f"{name}={shown(value)} is not an argument{f'; {near[0]} is' if near else ''}. A budget has "
                f"{', '.join(known)}"
            )


def read_fraction(name: str, value: Any) -> float:
    """Return a fraction in (0, 1] out of a number, or of a text such as "60%" or "0.6".

    Raises
    ------
    ArgumentError
        If it is none.
    """
    if isinstance(value, str):
        text = value.strip()
        try:
            value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            raise ArgumentError(
                f"{name} must be a fraction in (0, 1], but got {name}={shown(text)}; 0.5 or 50% keeps half"
            ) from None
    check_fraction(name, value)
    return value


def _amount(name: str, value: Any) -> float:
    check_number(name, value)
    if not 0 < value < float("inf"):
        raise ArgumentError(f"{name} must be above 0, but got {name}={value!r}; max_macs=2e9 allows two billion")
    return value
