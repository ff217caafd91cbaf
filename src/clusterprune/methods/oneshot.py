"""One-shot compression: a smaller network now, from a few hundred unlabelled images and no training.

1. *Measure* what every layer reads (second moments) and how much the output cares (Fisher information of
   the network's own predictions; no labels).
2. *Order* the channels of every group by backward elimination: which can the others stand in for?
3. *Price* each group's path by what it costs the network's loss, all positions of an image together.
4. *Share* the budget: the steps with the least loss per MAC go first, over all groups at once.
5. *Refit* every kernel, layer after layer, against the original network's features.

Without images, noise whose statistics the batch norms dictate takes their place in steps 1 to 3, and mixing
matrices take the place of the refit.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from clusterprune.arguments import check_graph, check_progress, check_seed, shown
from clusterprune.budget import CostModel, Limits, Quantity, example_batch, solve
from clusterprune.errors import ArgumentError, BudgetError
from clusterprune.graph import ChannelGraph, Group
from clusterprune.graph.program import computed_kernels
from clusterprune.merge.data_free import batch_statistics, noise_images
from clusterprune.merge.elimination import Path, eliminate
from clusterprune.merge.readings import consumers, folds, mixing_for, reading
from clusterprune.merge.refit import Refit, refit
from clusterprune.merge.sensitivity import fisher_losses, levels
from clusterprune.merge.statistics import (
    Images,
    Progress,
    as_inputs,
    batch_size_for,
    consumer_calls,
    gradient_batch_size,
    input_moments,
    output_importance,
    release_memory,
    whole_batches,
)
from clusterprune.methods.targets import Target, check_images, plan_for_budget, plan_for_latency, read_target
from clusterprune.plans import Merge, Plan
from clusterprune.surgery import bias_home, named_tensors


@dataclass(frozen=True)
class OneShot:
    """Settings of the one-shot compressor; the defaults are what the ablations favour.

    Attributes
    ----------
    output_aware
        Weight each layer's outputs by their Fisher information when channels are ordered.
    price
        "fisher": a path costs what it costs the network's loss. "error": it costs its own squared error.
        "uniform": every group keeps the same fraction.
    temperature
        Softens the predictions whose Fisher information is taken. At 1 a few images that the network is unsure
        of decide everything; 2 listens to more of them, and orders and prices with less noise.
    streams
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
    """

    output_aware: bool = True
    price: str = "fisher"
    temperature: float = 2.0
    streams: bool = True
    refit: Refit | None = field(default_factory=Refit)
    whole_kernel_limit: int = 1200
    damping: float = 1e-3
    moment_rows: int = 32768
    macs_to_spend: float = 6e11

    def __post_init__(self) -> None:
        """Check the price and the temperature."""
        if self.price not in ("fisher", "error", "uniform"):
            raise ArgumentError(f"price must be 'fisher', 'error' or 'uniform', but got price={self.price!r}")
        if not self.temperature > 0:
            raise ArgumentError(f"temperature must be positive, but got temperature={self.temperature!r}")


@dataclass(frozen=True, eq=False)
class Measured:
    """What step 1 found, by node name of the layer calls that read prunable groups."""

    moments: dict[str, Tensor]
    importance: dict[str, Tensor]
    whole_kernel: dict[str, bool]


def oneshot(
    graph: ChannelGraph,
    images: Images | None = None,
    *,
    keep_macs: float | None = None,
    keep_params: float | None = None,
    keep_latency: float | None = None,
    round_to: int = 1,
    min_width: int = 1,
    ignore: Sequence[str] = (),
    seed: int = 0,
    config: OneShot | None = None,
    progress: Progress | None = None,
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
    keep_macs, keep_params, keep_latency
        Exactly one of them: the fraction to keep, in (0, 1].
    round_to, min_width
        Kept widths are multiples of `round_to` and at least `min_width`.
    ignore
        A glob, or several, of groups or layers to leave alone.
    seed
        Chooses positions, signs of the Fisher information, and noise.
    progress
        Called with (phase, done, total).

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
        raise ArgumentError(f"config must be a OneShot, but got config={shown(config)}; write OneShot(price='fisher')")
    config = config or OneShot()
    quantity, keep = read_target(keep_macs, keep_params, keep_latency)
    limits = Limits(round_to, min_width)
    graph = graph.freeze(ignore)
    generator = torch.Generator().manual_seed(seed)
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(phase: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[phase] = round(now - clock, 3)
        clock = now

    groups = [g for g in graph.prunable if config.streams or len(g.producers) == 1]
    if not groups:
        raise BudgetError("no group of this model may be cut; print the graph to see why each is frozen")
    cost = CostModel(graph)
    if quantity != "latency":
        # Any loss curves tell whether the target can be met at all: better now than after measuring.
        solve(cost, {g.name: np.arange(g.width - g.n_blocks + 1.0) for g in groups}, quantity, keep, limits)
    data_free = images is None
    inputs = noise_images(graph, 256, generator) if images is None else as_inputs(images)
    check_images(graph, inputs)
    # Convolutions on the CPU run a fifth faster on channels-last images, and every later activation follows.
    inputs = tuple(t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in inputs)
    inputs = whole_batches(graph, inputs)
    plan = _choose(
        graph, groups, inputs, cost, (quantity, keep), limits, config, lap,
        data_free=data_free, generator=generator, progress=progress,
    )  # fmt: skip
    release_memory()
    if config.refit is not None and not data_free and plan.merges:
        size = batch_size_for(graph)
        plan = refit(graph, plan, inputs, options=config.refit, batch_size=size, generator=generator, progress=progress)
    lap("refit")
    notes = {
        "method": "oneshot",
        f"keep_{quantity}": keep,
        "images": 0 if data_free else len(inputs[0]),
        "seed": seed,
        "round_to": round_to,
        "min_width": min_width,
        "config": asdict(config),
        "seconds": seconds,
    }
    return replace(plan, notes=notes)


def _choose(
    graph: ChannelGraph,
    groups: list[Group],
    inputs: tuple[Tensor, ...],
    cost: CostModel,
    target: tuple[Target, float],
    limits: Limits,
    config: OneShot,
    lap: Callable[[str], None],
    *,
    data_free: bool,
    generator: torch.Generator,
    progress: Progress | None,
) -> Plan:
    """Steps 1 to 4: which channels go. What they took to find out is forgotten before the refit, which needs room."""
    measured = measure(graph, groups, inputs, config, data_free=data_free, generator=generator, progress=progress)
    lap("measure")
    paths = order_channels(graph, groups, measured, config, progress)
    lap("order")
    paths = _price(graph, paths, inputs, measured, config, data_free=data_free, generator=generator, progress=progress)
    lap("price")
    losses = {name: path.loss for name, path in paths.items()}

    def plan_at(fraction: float, what: Quantity) -> Plan:
        widths = (
            _uniform(cost, paths, what, fraction, limits)
            if config.price == "uniform"
            else solve(cost, losses, what, fraction, limits)
        )
        return Plan.of(graph, merges_for(graph, paths, widths, measured))

    quantity, keep = target
    if quantity == "latency":
        plan = plan_for_latency(graph, keep, lambda fraction: plan_at(fraction, "macs"))
    else:
        plan = plan_for_budget(cost, quantity, keep, lambda fraction: plan_at(fraction, quantity))
    lap("budget")
    return plan


def _images_for(
    graph: ChannelGraph, inputs: tuple[Tensor, ...], macs: float, passes: float, least: int, most: int = 1024
) -> Images:
    """Return as many images as a share of the work allows."""
    each = CostModel(graph).total("macs") / example_batch(graph) * passes
    count = int(min(len(inputs[0]), most, max(least, macs / max(each, 1.0))))
    step = batch_size_for(graph) if graph.batch_size.fixed is not None else 1
    return tuple(tensor[: -(-count // step) * step] for tensor in inputs)


def measure(
    graph: ChannelGraph,
    groups: list[Group],
    inputs: tuple[Tensor, ...],
    config: OneShot,
    *,
    data_free: bool,
    generator: torch.Generator,
    progress: Progress | None,
) -> Measured:
    """Step 1: second moments of what layers read, importance of what they make."""
    state = {path: tensor.detach() for path, tensor in named_tensors(graph).items()}
    calls = [
        node
        for nodes in consumer_calls(graph, {u.path for g in groups for u in g.consumers}, computed=True).values()
        for node in nodes
    ]
    readers = {call.node: call for call in graph.calls}
    kernels = computed_kernels(graph, state)
    whole_kernel = {}
    for node in calls:
        weight = kernels.get(node, state[readers[node].weight])
        dense = readers[node].kind == "conv" and readers[node].groups == 1 and weight.ndim in (3, 4)
        whole_kernel[node] = dense and weight[0].numel() <= config.whole_kernel_limit
    size = batch_size_for(graph)
    changes = batch_statistics(graph) if data_free else None
    common = {"batch_size": size, "generator": generator, "changes": changes, "progress": progress}
    few = _images_for(graph, inputs, config.macs_to_spend / 3, 3, 16, most=384)
    if config.output_aware:
        gradients = {**common, "batch_size": gradient_batch_size(graph), "temperature": config.temperature}
        importance = output_importance(graph, state, few, calls, **gradients)
    else:
        importance = {node: torch.ones(_outputs(graph, node), dtype=torch.float64) for node in calls}
    many = _images_for(graph, inputs, config.macs_to_spend * 0.4, 1, 48)
    moments = input_moments(graph, state, many, whole_kernel, folded=folds(graph), rows=config.moment_rows, **common)
    return Measured(
        {node: moment.cpu() for node, moment in moments.items()},
        {node: value.cpu() for node, value in importance.items()},
        whole_kernel,
    )


def _outputs(graph: ChannelGraph, node: str) -> int:
    call = next(call for call in graph.calls if call.node == node)
    value = next(n for n in graph.fx.nodes if n.name == node).meta["val"]
    return int(value.shape[1 if call.kind.startswith("conv") else -1])


def order_channels(
    graph: ChannelGraph, groups: list[Group], measured: Measured, config: OneShot, progress: Progress | None
) -> dict[str, Path]:
    """Step 2: an order of removal for every group."""
    state = {path: tensor.detach().cpu() for path, tensor in named_tensors(graph).items()}
    kernels = {node: kernel.cpu() for node, kernel in computed_kernels(graph, named_tensors(graph)).items()}
    count = 6 if CostModel(graph).total("macs") / example_batch(graph) < 1e9 else 3
    paths = {}
    for number, group in enumerate(groups):
        readings = [
            reading(
                c,
                kernels.get(c.call.node, state[c.use.path]),
                measured.moments[c.call.node],
                measured.importance[c.call.node],
            )
            for c in consumers(graph, group, measured.whole_kernel)
        ]
        paths[group.name] = eliminate(
            readings, blocks=group.blocks, damping=config.damping, levels=levels(group, count)
        )
        if progress:
            progress("order of channels", number + 1, len(groups))
    return paths


def _price(
    graph: ChannelGraph,
    paths: dict[str, Path],
    inputs: tuple[Tensor, ...],
    measured: Measured,
    config: OneShot,
    *,
    data_free: bool,
    generator: torch.Generator,
    progress: Progress | None,
) -> dict[str, Path]:
    """Step 3: what every path costs the network."""
    if config.price != "fisher":
        return {name: Path(path.order, path.loss, {}) for name, path in paths.items()}
    state = {path: tensor.detach() for path, tensor in named_tensors(graph).items()}
    return fisher_losses(
        graph,
        state,
        _images_for(graph, inputs, config.macs_to_spend, 9, 16, most=512),
        paths,
        measured.moments,
        measured.importance,
        measured.whole_kernel,
        batch_size=gradient_batch_size(graph, most=32),
        generator=generator,
        temperature=config.temperature,
        changes=batch_statistics(graph) if data_free else None,
        progress=progress,
    )


def _uniform(
    cost: CostModel, paths: dict[str, Path], quantity: Quantity, keep: float, limits: Limits
) -> dict[str, int]:
    """Keep the same fraction of every group: loss curves that all rise alike per fraction of the cost."""
    groups = cost.graph.by_name
    index = {group.name: i for i, group in enumerate(cost.graph.groups)}
    gradient = cost.gradient(quantity, cost.widths)
    losses = {
        name: gradient[index[name]] * np.arange(len(p.order) + 1) ** 2 / groups[name].width for name, p in paths.items()
    }
    return solve(cost, losses, quantity, keep, limits)


def merges_for(
    graph: ChannelGraph, paths: dict[str, Path], widths: dict[str, int], measured: Measured
) -> tuple[Merge, ...]:
    """Turn paths and widths into merges with least-squares mixing for every consumer."""
    merges = []
    for group in graph.groups:
        kept_width = widths.get(group.name, group.width)
        if kept_width == group.width:
            continue
        gone = paths[group.name].order[: group.width - kept_width]
        kept = np.setdiff1d(np.arange(group.width), gone)
        mixing: dict[str, Tensor] = {}
        offset: dict[str, Tensor] = {}
        for consumer in consumers(graph, group, measured.whole_kernel):
            path = consumer.use.path
            if path in mixing or not consumer.use.mixable:
                continue
            home = bias_home(graph, path)
            moments = measured.moments[consumer.call.node]
            mixing[path], constant = mixing_for(consumer, moments, kept, offset=home is not None)
            if home is not None:
                offset[path] = constant
        merges.append(Merge(group.name, kept, mixing, offset))
    return tuple(merges)
