# pyright: reportUnnecessaryIsInstance=false
"""Meeting a target in time: a runtime's price of every channel, and the clock's verdict on the real network."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clusterprune import evaluate
from clusterprune.arguments import shown
from clusterprune.budget.allocation import CostModel, Quantity
from clusterprune.budget.latency import LatencyModel
from clusterprune.budget.search import search
from clusterprune.errors import ArgumentError, BudgetError
from clusterprune.graph import ChannelGraph
from clusterprune.plan import Plan
from clusterprune.runtimes.layer_times import LatencyTable
from clusterprune.runtimes.racing import race
from clusterprune.runtimes.running import clock_of, create_runtime
from clusterprune.surgery.apply import apply

PlanAt = Callable[[float, Quantity], Plan]
Report = Callable[[str, int, int], None]
CLOSE = 0.02
"""How far below a target the clock may be before another plan is tried; a race tells no less."""
TRIES = 5


@dataclass(frozen=True)
class Clock:
    """What a target in time is measured by.

    Attributes
    ----------
    runtime
        What will run the network: "torch", "torch.compile" or "onnxruntime", with threads as in "torch:threads=1".
    batch
        Images in a pass.
    table
        File that keeps what layers took, so that another budget, or another machine, need not time them again.
    rounds
        In which original and candidate are timed in turns.
    """

    runtime: str = "torch"
    batch: int = 1
    table: str | Path | None = None
    rounds: int = 7

    def __post_init__(self) -> None:
        create_runtime(self.runtime)
        for name in ("batch", "rounds"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < (2 if name == "rounds" else 1):
                raise ArgumentError(f"{name} must be a whole number of at least 1, but got {name}={value!r}")

    @classmethod
    def read(cls, text: str) -> "Clock":
        """Return the clock of a text, NAME[:threads=N][:batch=N], such as "onnxruntime:threads=1:batch=8".

        Raises
        ------
        ArgumentError
            If the text is of another form, or there is no such runtime.
        """
        runtime, batched, batch = text.partition(":batch=")
        if batched and not (batch.isdecimal() and len(batch) < 6):
            raise ArgumentError(f"latency={text!r} has a batch that is no number; write 'onnxruntime:batch=8'")
        return cls(runtime, int(batch) if batched else 1)


def read_clock(
    latency: "Clock | str | Callable[[nn.Module], float] | None",
) -> "Clock | Callable[[nn.Module], float] | None":
    """Return what a target in time is measured by.

    Parameters
    ----------
    latency
        A :class:`Clock`, a text for :meth:`Clock.read`, or a function of a model that returns milliseconds, measured
        wherever the model will run (a phone, a board). None passes: PyTorch on the traced example, and whole networks.

    Raises
    ------
    ArgumentError
        If it is anything else.
    """
    if isinstance(latency, str):
        return Clock.read(latency)
    if latency is None or isinstance(latency, Clock) or callable(latency):
        return latency
    raise ArgumentError(
        f"latency must be a runtime such as 'onnxruntime:threads=1', a Clock, or a function of a model that returns "
        f"milliseconds, but got latency={shown(latency)}"
    )


def plan_for_latency(
    graph: ChannelGraph,
    cost: CostModel,
    share_of: Callable[[float], float],
    plan_at: PlanAt,
    latency: "Clock | str | Callable[[nn.Module], float] | None" = None,
    progress: Report | None = None,
) -> tuple[Plan, dict[str, Any]]:
    """Return a plan whose network takes the asked share of the original's time, and what was measured.

    Parameters
    ----------
    cost
        Learns what widths cost in time, where a runtime is measured by its layers.
    share_of
        Says of the original's milliseconds which share of them may be left, in (0, 1].
    plan_at
        Makes the plan for a share of a quantity: "latency" where layers were timed, "macs" for a function of the user's
        own, which is asked about whole networks alone.

    Raises
    ------
    BudgetError
        If no plan is as fast; the message says what the fastest took.
    """
    clock = read_clock(latency)
    if clock is None:
        return _by_function(graph, share_of, plan_at, lambda model: evaluate.latency(model, graph.example).median_ms)
    if not isinstance(clock, Clock):
        return _by_function(graph, share_of, plan_at, clock)
    images = _images(graph, clock.batch)
    runtime = create_runtime(clock.runtime)
    original = runtime.prepare(graph.model, images)
    seconds = clock_of(runtime, images)
    whole = race([original], rounds=3, clock=seconds).median_ms(0)
    keep = share_of(whole)
    if keep >= 1:
        return plan_at(1.0, "macs"), {"original_ms": whole, "tries": 0}
    table = LatencyTable(runtime, clock.table)
    model = LatencyModel(graph, table, whole, batch=clock.batch, progress=progress)
    table.save()
    cost.add("latency", model.terms)
    found: list[tuple[float, Plan, dict[str, Any]]] = []
    asked = keep
    for _ in range(TRIES):
        try:
            plan = plan_at(min(asked, 1.0), "latency")
        except BudgetError:
            break
        candidate = runtime.prepare(apply(graph.model, plan, graph=graph), images)
        measured = race([original, candidate], rounds=clock.rounds, clock=seconds)
        speedup = measured.speedup(1)
        share = 1 / speedup.times
        facts = {
            "runtime": clock.runtime, "batch": clock.batch, "share": share, "asked": asked,
            "original_ms": measured.median_ms(0), "ms": measured.median_ms(1),
            "speedup": [speedup.low, speedup.times, speedup.high], "certain": speedup.certain,
        }  # fmt: skip
        found.append((share, plan, facts))
        if keep * (1 - CLOSE) <= share <= keep * (1 + CLOSE / 2):
            break
        asked *= keep / share
    met = [entry for entry in found if entry[0] <= keep * (1 + CLOSE / 2)]
    if not met:
        raise _not_reached(keep, [share for share, _, _ in found], f"{whole:.2f} ms on {clock.runtime}")
    _, plan, facts = max(met, key=lambda entry: entry[0])
    return plan, facts | {"tries": len(found)}


def _by_function(
    graph: ChannelGraph, share_of: Callable[[float], float], plan_at: PlanAt, latency: Callable[[nn.Module], float]
) -> tuple[Plan, dict[str, Any]]:
    """Find the multiply-adds at which a user's own measure meets the target."""
    baseline = _asked(latency, graph.model)
    keep = share_of(baseline)
    shares: list[float] = []

    def at(share: float) -> Plan | None:
        try:
            return plan_at(share, "macs")
        except BudgetError:
            return None

    def fits(plan: Plan) -> bool:
        shares.append(_asked(latency, apply(graph.model, plan, graph=graph)) / baseline)
        return shares[-1] <= keep

    best = search(at, fits, tight=0.0, loose=1.0, steps=7)
    if best is None:
        raise _not_reached(keep, shares, f"{baseline:.2f} ms")
    return best, {"original_ms": baseline, "tries": len(shares)}


def _not_reached(keep: float, shares: Sequence[float], original: str) -> BudgetError:
    fastest = min(shares, default=math.inf)
    can = f" Ask for keep_latency>={math.ceil(fastest * 100) / 100:g}" if shares else ""
    return BudgetError(
        f"keep_latency={keep:g} was not reached: the fastest network tried takes {fastest:.3g} of the original's "
        f"{original}.{can}"
    )


def _asked(latency: Callable[[nn.Module], float], model: nn.Module) -> float:
    took = latency(model)
    if not isinstance(took, (int, float)) or not 0 < took < math.inf:
        raise ArgumentError(f"latency(model) must return milliseconds above 0, but it returned {shown(took)}")
    return float(took)


def _images(graph: ChannelGraph, batch: int) -> Tensor:
    """Return a batch of the traced example."""
    values = graph.example_tensors
    if len(values) != 1:
        raise ArgumentError(
            f"{type(graph.model).__name__} has {len(values)} inputs, and a runtime is timed on one; give "
            "latency=function, which runs the model as you do"
        )
    return values[0][:1].expand(batch, *values[0].shape[1:]).contiguous()
