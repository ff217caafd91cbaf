"""The arguments that say how much of a network shall be kept, of every function that plans."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from torch import nn

from clusterprune.arguments import shown
from clusterprune.budget.allocation import Limits
from clusterprune.errors import ArgumentError
from clusterprune.methods.latency import Clock, read_clock
from clusterprune.methods.targets import Target, read_target


class Budget(TypedDict, total=False):
    """How much to keep: exactly one of the first three.

    Attributes
    ----------
    keep_macs, keep_params, keep_latency
        The fraction of the multiply-adds, parameters or time to keep, in (0, 1].
    latency
        What a time is measured by: a runtime such as "onnxruntime:threads=1", a
        :class:`clusterprune.methods.latency.Clock`, or a function of a model that returns milliseconds. None is PyTorch
        as it is, on the traced example, asked about whole networks.
    round_to, min_width
        Kept widths are multiples of `round_to` and at least `min_width`.
    """

    keep_macs: float | None
    keep_params: float | None
    keep_latency: float | None
    latency: Clock | str | Callable[[nn.Module], float] | None
    round_to: int
    min_width: int


@dataclass(frozen=True)
class Goal:
    """A budget that was read and checked.

    Attributes
    ----------
    target, keep
        What is counted, and the fraction of it to keep.
    limits
        Which widths are allowed.
    clock
        What a time is measured by.
    """

    target: Target
    keep: float
    limits: Limits
    clock: Clock | Callable[[nn.Module], float] | None


def read_budget(given: Mapping[str, Any]) -> Goal:
    """Check a budget.

    Raises
    ------
    ArgumentError
        If not exactly one fraction is given, or something is not accepted, or is no part of a budget.
    """
    known = list(Budget.__annotations__)
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ArgumentError(
                f"{name}={shown(value)} is not an argument{f'; {near[0]} is' if near else ''}. A budget has "
                f"{', '.join(known)}"
            )
    target, keep = read_target(*(given.get(name) for name in known[:3]))
    limits = Limits(given.get("round_to", 1), given.get("min_width", 1))
    return Goal(target, keep, limits, read_clock(given.get("latency")))
