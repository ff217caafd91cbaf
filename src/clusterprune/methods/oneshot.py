"""One-shot compression: a smaller network now, from a few hundred unlabelled images and no training.

1. *Measure* what every layer reads (second moments) and how much the output cares (Fisher information of
   the network's own predictions; no labels).
2. *Order* the channels of every group by backward elimination: which can the others stand in for?
3. *Price* each group's path by what it costs the network's loss, all positions of an image together.
4. *Share* the budget: the steps with the least loss per MAC go first, over all groups at once.
5. *Refit* every kernel, layer after layer, against the original network's features.

What is fitted on most of the images is priced on the others, in turn. Without images, some are made whose statistics
in every layer are those that the batch norms remember; where there are no such norms, noise takes their place in steps
1 to 3, and mixing matrices take the place of the refit.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from clusterprune.arguments import check_graph, check_progress, check_seed, renamed, shown
from clusterprune.budget.allocation import CostModel, Quantity, solve
from clusterprune.errors import ArgumentError, BudgetError
from clusterprune.graph import ChannelGraph, Group
from clusterprune.graph.images import Images, Progress, inputs_of, whole_batches
from clusterprune.merge import merged
from clusterprune.merge.bn_images import FromNorms, can_make_images, images_from_norms
from clusterprune.merge.data_free import noise_images
from clusterprune.merge.divergence import BY_KIND, Divergence
from clusterprune.merge.least_squares import LeastSquares
from clusterprune.merge.measured import few_rows, measure, moments_of
from clusterprune.merge.orders import kept_of, order_channels, price
from clusterprune.merge.refit import Refit
from clusterprune.merge.statistics import release_memory
from clusterprune.methods.budget import Budget, Goal, read_budget
from clusterprune.methods.latency import plan_for_latency
from clusterprune.methods.shares import closest, hypotheses
from clusterprune.methods.targets import plan_for_budget
from clusterprune.plan import Plan


@renamed(price="sensitivity", streams="residual_streams")
@dataclass(frozen=True)
class OneShot:
    """Settings of the one-shot compressor; the defaults are what the ablations favour.

    Attributes
    ----------
    output_aware
        Weight each layer's outputs by their Fisher information when channels are ordered.
    sensitivity
        "fisher": an order of removal costs what it costs the network's loss. "error": its own squared error.
        "uniform": every group keeps the same fraction.
    temperature
        Softens the predictions whose Fisher information is taken. At 1 a few images that the network is unsure
        of decide everything; 2 listens to more of them, and orders and prices with less noise.
    residual_streams
        Also cut groups that several layers make together (residual streams).
    refit
        How kernels are solved anew, or None to leave it at mixing matrices.
    whole_kernel_limit
        Layers with more unknowns per output than this are ordered by channel moments, not kernel moments.
    damping
        Ridge of the elimination, relative to the mean power of the inputs.
    moment_rows
        Rows from which each layer's second moments are estimated.
    macs_to_spend
        Work allowed for measuring, in multiply-adds; large networks are measured on fewer images.
    from_norms
        How images are made where none are given, or None to take noise.
    compare
        Whether the plan by price is compared with others, down to the same share of every group, on images that it
        was not fitted on.
    """

    output_aware: bool = True
    sensitivity: str = "fisher"
    temperature: float = 2.0
    residual_streams: bool = True
    refit: Refit | None = field(default_factory=Refit)
    whole_kernel_limit: int = 1200
    damping: float = 1e-3
    moment_rows: int = 32768
    macs_to_spend: float = 1.2e12
    from_norms: FromNorms | None = field(default_factory=FromNorms)
    compare: bool = True

    def __post_init__(self) -> None:
        """Check the sensitivity and the temperature."""
        if self.sensitivity not in ("fisher", "error", "uniform"):
            raise ArgumentError(
                f"sensitivity must be 'fisher', 'error' or 'uniform', but got sensitivity={self.sensitivity!r}"
            )
        if not self.temperature > 0:
            raise ArgumentError(f"temperature must be positive, but got temperature={self.temperature!r}")


def oneshot(
    graph: ChannelGraph,
    images: Images | None = None,
    *,
    ignore: Sequence[str] = (),
    seed: int = 0,
    config: OneShot | None = None,
    divergence: Divergence | None = None,
    progress: Progress | None = None,
    **budget: Unpack[Budget],
) -> Plan:
    """Plan a compression in one shot.

    Parameters
    ----------
    graph
        A traced model.
    images
        Unlabelled, normalised inputs, shape (images, channels, height, width), or a tuple of such tensors for
        a model with several inputs; 256 to 1,024 are enough. None works without data. They may be on any device:
        each batch goes to where the traced example is.
    ignore
        A glob, or several, of groups or layers to leave alone.
    seed
        Chooses positions, signs of the Fisher information, and noise.
    divergence
        How far outputs are from the original's: a task (:mod:`clusterprune.tasks`) has its own. None goes by the kind
        of each output (:class:`clusterprune.merge.divergence.ByKind`).
    progress
        Called with (phase, done, total).
    **budget
        How much to keep, such as ``keep_macs=0.5``: see :class:`clusterprune.methods.budget.Budget`.

    Returns
    -------
    Plan
        To be given to :func:`clusterprune.apply`.

    Raises
    ------
    ArgumentError
        For a bad option, or images that do not fit the traced example.
    BudgetError
        If the target cannot be reached; the message says what can.

    Examples
    --------
    >>> import torch, clusterprune as cp
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 4, 3)).eval()
    >>> graph = cp.trace(net, torch.zeros(1, 3, 8, 8))
    >>> plan = cp.oneshot(graph, torch.randn(64, 3, 8, 8), keep_macs=0.5)
    >>> small = cp.apply(net, plan, graph=graph)
    >>> small[0].out_channels
    8
    """
    check_graph(graph)
    check_seed(seed)
    check_progress(progress)
    if config is not None and not isinstance(config, OneShot):
        raise ArgumentError(f"config must be a OneShot, but got config={shown(config)}; write OneShot(damping=1e-3)")
    config = config or OneShot()
    goal = read_budget(budget)
    quantity, keep, limits = goal.target, goal.keep, goal.limits
    graph = graph.freeze(ignore)
    generator = torch.Generator().manual_seed(seed)
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(phase: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[phase] = round(now - clock, 3)
        clock = now

    groups = [g for g in graph.prunable if config.residual_streams or len(g.producers) == 1]
    if not groups:
        raise BudgetError("no group of this model may be cut; print the graph to see why each is frozen")
    cost = CostModel(graph)
    if quantity != "latency":
        # Any loss curves tell whether the target can be met at all: better now than after measuring.
        solve(cost, {g.name: np.arange(g.width - g.n_blocks + 1.0) for g in groups}, quantity, keep, limits)
    made = images is None and config.from_norms is not None and can_make_images(graph)
    data_free = images is None and not made
    if made:
        images = images_from_norms(graph, seed=seed, config=config.from_norms, progress=progress)
        lap("images from batch norms")
    inputs = noise_images(graph, 256, generator) if images is None else inputs_of(graph, images, seed)
    # Convolutions on the CPU run a fifth faster on channels-last images, and every later activation follows.
    inputs = tuple(t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in inputs)
    inputs = _shuffled(whole_batches(graph, inputs), generator)
    plan, facts = _choose(
        graph, groups, inputs, cost, goal, config, lap,
        data_free=data_free, generator=generator, divergence=divergence or BY_KIND, progress=progress,
    )  # fmt: skip
    release_memory()
    if config.refit is not None and not data_free and plan.merges:
        plan = config.refit.finish(graph, plan, inputs, generator=generator, progress=progress)
    lap("refit")
    notes = {
        "method": "oneshot",
        f"keep_{quantity}": keep,
        "images": 0 if data_free or made else len(inputs[0]),
        "made_images": len(inputs[0]) if made else 0,
        "seed": seed,
        "round_to": limits.round_to,
        "min_width": limits.min_width,
        **facts,
        "config": asdict(config),
        "seconds": seconds,
    }
    return replace(plan, notes=notes)


def _choose(
    graph: ChannelGraph,
    groups: list[Group],
    inputs: tuple[Tensor, ...],
    cost: CostModel,
    goal: Goal,
    config: OneShot,
    lap: Callable[[str], None],
    *,
    data_free: bool,
    generator: torch.Generator,
    divergence: Divergence,
    progress: Progress | None,
) -> tuple[Plan, dict[str, Any]]:
    """Steps 1 to 4: which channels go. What they took to find out is forgotten before the refit, which needs room.

    Beside the plan: facts for its notes. `predicted_loss` is what its groups cost by themselves, in nats, before the
    refit makes some of it good; `shared_by` is which hypothesis was taken.
    """
    measured = measure(
        graph, groups, inputs,
        output_aware=config.output_aware, temperature=config.temperature, whole_kernel_limit=config.whole_kernel_limit,
        moment_rows=config.moment_rows, work=config.macs_to_spend,
        data_free=data_free, generator=generator, divergence=divergence, progress=progress,
    )  # fmt: skip
    lap("measure")
    paths = order_channels(graph, groups, measured, damping=config.damping, progress=progress)
    lap("order")
    if config.sensitivity == "fisher":
        paths = price(
            graph, paths, measured,
            damping=config.damping, temperature=config.temperature, work=config.macs_to_spend,
            generator=generator, progress=progress,
        )  # fmt: skip
    lap("price")
    quantity, keep, limits = goal.target, goal.keep, goal.limits
    counted: Quantity = "macs" if quantity == "latency" else quantity
    shares = hypotheses(cost, paths, counted, sensitivity=config.sensitivity, compare=config.compare)
    chosen = next(iter(shares))
    if len(shares) > 1:
        quick = LeastSquares() if config.refit is None or data_free else replace(config.refit, work=0.0)
        chosen = closest(
            cost, shares, paths, measured, (counted, keep), limits, quick,
            work=config.macs_to_spend, generator=generator, progress=progress,
        )  # fmt: skip
        lap("compare")
    share = shares[chosen]
    merging, moments = config.refit or LeastSquares(), moments_of(graph, measured)

    def plan_at(fraction: float, what: Quantity) -> Plan:
        return merged(graph, kept_of(graph, paths, solve(cost, share, what, fraction, limits)), merging, moments)

    timed: dict[str, Any] = {}
    if quantity == "latency":
        plan, timed["latency"] = plan_for_latency(graph, cost, keep, plan_at, goal.clock, progress)
    else:
        plan = plan_for_budget(cost, quantity, keep, lambda fraction: plan_at(fraction, quantity))
    lap("budget")
    facts: dict[str, Any] = {"few_rows": few_rows(graph, groups, measured), "shared_by": chosen, **timed}
    if config.sensitivity == "fisher":
        gone = {merge.group: graph.by_name[merge.group].width - len(merge.kept) for merge in plan.merges}
        facts["predicted_loss"] = float(sum(paths[name].loss[count] for name, count in gone.items()))
    return plan, facts


def _shuffled(inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Return the images in random order: those of a folder often come class by class, and not all are looked at."""
    order = torch.randperm(len(inputs[0]), generator=generator)
    return tuple(tensor[order.to(tensor.device)] for tensor in inputs)
