"""What a compression is asked for: the target, the images, and the search for a measured latency."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from clusterprune import evaluate
from clusterprune.budget import Quantity, check_fraction
from clusterprune.errors import ArgumentError, BudgetError
from clusterprune.graph import ChannelGraph
from clusterprune.plans import Plan
from clusterprune.surgery import apply

Target = Quantity | Literal["latency"]


def read_target(macs: float | None, params: float | None, latency: float | None) -> tuple[Target, float]:
    """Return the one target that was given, and the fraction to keep."""
    targets: list[tuple[Target, float | None]] = [("macs", macs), ("params", params), ("latency", latency)]
    given: dict[Target, float] = {name: value for name, value in targets if value is not None}
    if len(given) != 1:
        raise ArgumentError(
            "give exactly one of keep_macs, keep_params and keep_latency, "
            f"but got {', '.join(f'keep_{k}={v}' for k, v in given.items()) or 'none'}"
        )
    ((quantity, keep),) = given.items()
    check_fraction(f"keep_{quantity}", keep)
    return quantity, keep


def check_knob(eps: float | None, keep_macs: float | None, by: str, layers: str, usual: str) -> None:
    """Check what says how much ICP and ACP cut, and where.

    Parameters
    ----------
    usual
        The values of ε in the method's paper, in words.

    Raises
    ------
    ArgumentError
        If not exactly one of `eps` and `keep_macs` is given, or `by` or `layers` is not known.
    """
    if (eps is None) == (keep_macs is None):
        raise ArgumentError(
            f"give either eps or keep_macs, but got eps={eps!r} and keep_macs={keep_macs!r}; the paper's eps is {usual}"
        )
    if keep_macs is not None:
        check_fraction("keep_macs", keep_macs)
    if by not in ("clusters", "oneshot") or (by == "oneshot" and keep_macs is None):
        raise ArgumentError(
            f"by must be 'clusters', or 'oneshot' with keep_macs, but got by={by!r} and keep_macs={keep_macs!r}"
        )
    if layers not in ("inner", "all"):
        raise ArgumentError(f"layers must be 'inner' or 'all', but got layers={layers!r}")


def check_images(graph: ChannelGraph, inputs: tuple[Tensor, ...]) -> None:
    """Raise :class:`ArgumentError` for images that do not fit the traced example."""
    examples = [a for a in (*graph.args, *graph.kwargs.values()) if isinstance(a, Tensor)]
    if len(inputs) != len(examples):
        raise ArgumentError(
            f"the model has {len(examples)} tensor inputs, but images holds {len(inputs)} tensors; give one for each "
            "input, and make one of a list of images by torch.stack(images)"
        )
    for given, example in zip(inputs, examples, strict=True):
        if given.shape[1:] != example.shape[1:] or given.dtype != example.dtype:
            raise ArgumentError(
                f"images of shape {tuple(given.shape[1:])} and {given.dtype} do not fit the traced example of shape "
                f"{tuple(example.shape[1:])} and {example.dtype}; resize and normalise them, or trace with their shape"
            )
        if given.is_floating_point() and not bool(torch.isfinite(given).all()):
            raise ArgumentError("images hold NaN or infinity; check the normalisation")
        if len(given) != len(inputs[0]):
            raise ArgumentError(
                f"images holds inputs of different number, {', '.join(str(len(t)) for t in inputs)}; "
                "give the same number of each"
            )
        if len(given) < 2:
            raise ArgumentError(f"{len(given)} image is too few to measure anything; give some hundred")


def plan_for_latency(graph: ChannelGraph, keep: float, plan_at: Callable[[float], Plan]) -> Plan:
    """Find the MACs at which the measured latency of the compact model meets the target."""
    baseline = evaluate.latency(graph.model, graph.example).median_ms
    low, high = 0.0, 1.0
    best: Plan | None = None
    fastest = np.inf
    for _ in range(7):
        middle = (low + high) / 2
        try:
            plan = plan_at(middle)
        except BudgetError:
            low = middle
            continue
        measured = evaluate.latency(apply(graph.model, plan, graph=graph), graph.example).median_ms / baseline
        fastest = min(fastest, measured)
        if measured <= keep:
            best, low = plan, middle
        else:
            high = middle
    if best is None:
        raise BudgetError(
            f"keep_latency={keep:g} was not reached: the fastest network tried takes {fastest:.3g} of the original's "
            f"{baseline:.2f} ms. Ask for keep_latency>={np.ceil(fastest * 100) / 100:g}."
        )
    return best
