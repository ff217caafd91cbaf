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
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clusterprune.arguments import check_graph, check_progress, check_seed, renamed, shown
from clusterprune.budget.allocation import CostModel, Limits, Quantity, example_batch, solve
from clusterprune.errors import ArgumentError, BudgetError
from clusterprune.graph import ChannelGraph, Group, Use
from clusterprune.graph.images import (
    Images,
    Progress,
    as_inputs,
    batch_size_for,
    batches,
    check_images,
    gradient_batch_size,
    whole_batches,
)
from clusterprune.graph.program import Program, computed_kernels, named_tensors
from clusterprune.graph.rewrite import rewrite
from clusterprune.merge import Kept, Moments, assemble, merged
from clusterprune.merge.bn_images import FromNorms, can_make_images, images_from_norms
from clusterprune.merge.data_free import batch_statistics, noise_images
from clusterprune.merge.divergence import BY_KIND, Divergence
from clusterprune.merge.elimination import LayerInput, RemovalOrder, eliminate, refitted
from clusterprune.merge.layer_inputs import channel_moments_of, consumers, consumers_of, folds, layer_input
from clusterprune.merge.least_squares import LeastSquares
from clusterprune.merge.refit import Refit
from clusterprune.merge.sensitivity import calibrated, fisher_losses, levels
from clusterprune.merge.statistics import consumer_calls, input_moments, output_importance, release_memory
from clusterprune.methods.targets import Target, plan_for_budget, plan_for_latency, read_target
from clusterprune.plan import Plan
from clusterprune.surgery.apply import compact_state, removed_labels, with_new_biases


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


@dataclass(frozen=True, eq=False)
class Measured:
    """What step 1 found, by node name of the layer calls that read prunable groups."""

    moments: dict[str, Tensor]
    importance: dict[str, Tensor]
    whole_kernel: dict[str, bool]
    rows: dict[str, int]
    folds: tuple["Fold", ...] = ()
    divergence: Divergence = BY_KIND


@dataclass(frozen=True, eq=False)
class Fold:
    """Some of the images: what is fitted on all others is priced on them.

    A layer behind a global pool sees one row per image. With fewer images than channels the others can stand in for
    almost any of them, on those images, and a price on the same images agrees.
    """

    images: tuple[Tensor, ...]
    moments: dict[str, Tensor]
    rows: dict[str, int]


class Without(Mapping[str, Tensor]):
    """The moments of all images but those of one fold, by node name."""

    def __init__(self, measured: Measured, fold: Fold) -> None:
        self._measured, self._fold = measured, fold
        self.rows = {node: max(1, measured.rows[node] - fold.rows[node]) for node in fold.rows}

    def __getitem__(self, node: str) -> Tensor:
        every, own = self._measured.rows[node], self._fold.rows[node]
        if every == own:
            return self._measured.moments[node]
        whole = self._measured.moments[node] * (every / self.rows[node])
        return whole.sub_(self._fold.moments[node], alpha=own / self.rows[node])

    def __iter__(self) -> Iterator[str]:
        return iter(self._fold.rows)

    def __len__(self) -> int:
        return len(self._fold.rows)


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
    divergence: Divergence | None = None,
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
    divergence
        How far outputs are from the original's: a task (:mod:`clusterprune.tasks`) has its own. None goes by the kind
        of each output (:class:`clusterprune.merge.divergence.ByKind`).
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
        raise ArgumentError(f"config must be a OneShot, but got config={shown(config)}; write OneShot(damping=1e-3)")
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
    inputs = noise_images(graph, 256, generator) if images is None else as_inputs(images)
    check_images(graph, inputs)
    # Convolutions on the CPU run a fifth faster on channels-last images, and every later activation follows.
    inputs = tuple(t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in inputs)
    inputs = _shuffled(whole_batches(graph, inputs), generator)
    plan, facts = _choose(
        graph, groups, inputs, cost, (quantity, keep), limits, config, lap,
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
        "round_to": round_to,
        "min_width": min_width,
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
    target: tuple[Target, float],
    limits: Limits,
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
        graph, groups, inputs, config,
        data_free=data_free, generator=generator, divergence=divergence, progress=progress,
    )  # fmt: skip
    lap("measure")
    paths = order_channels(graph, groups, measured, config, progress)
    lap("order")
    paths = _price(graph, paths, measured, config, data_free=data_free, generator=generator, progress=progress)
    lap("price")
    quantity, keep = target
    shares = _hypotheses(cost, paths, config, "macs" if quantity == "latency" else quantity)
    chosen, share = next(iter(shares.items()))
    if len(shares) > 1:
        chosen = _best(
            graph,
            shares,
            paths,
            measured,
            cost,
            target,
            limits,
            config,
            progress,
            data_free=data_free,
            generator=generator,
        )
        share = shares[chosen]
        lap("compare")

    merging, moments = config.refit or LeastSquares(), moments_of(graph, measured)

    def plan_at(fraction: float, what: Quantity) -> Plan:
        return merged(graph, kept_of(graph, paths, solve(cost, share, what, fraction, limits)), merging, moments)

    if quantity == "latency":
        plan = plan_for_latency(graph, keep, lambda fraction: plan_at(fraction, "macs"))
    else:
        plan = plan_for_budget(cost, quantity, keep, lambda fraction: plan_at(fraction, quantity))
    lap("budget")
    facts: dict[str, Any] = {"few_rows": few_rows(graph, groups, measured), "shared_by": chosen}
    if config.sensitivity == "fisher":
        gone = {merge.group: graph.by_name[merge.group].width - len(merge.kept) for merge in plan.merges}
        facts["predicted_loss"] = float(sum(paths[name].loss[count] for name, count in gone.items()))
    return plan, facts


def few_rows(graph: ChannelGraph, groups: list[Group], measured: Measured) -> dict[str, int]:
    """Say which groups are read from fewer rows than channels, and how many images would show twice as many.

    A layer behind a global pool shows one row per image. What the others can stand in for is then a guess, and the
    price of it, taken on other images, is high: such groups are cut less than they might be.
    """
    images = sum(len(fold.images[0]) for fold in measured.folds)
    found: dict[str, int] = {}
    for group in groups:
        for consumer in consumers(graph, group, measured.whole_kernel):
            rows, unknowns = measured.rows[consumer.call.node], group.width
            if rows < unknowns and consumer.use.mixable:
                found[group.name] = max(found.get(group.name, 0), -(-2 * unknowns * images // max(1, rows)))
    return found


def _images_for(
    graph: ChannelGraph, inputs: tuple[Tensor, ...], macs: float, passes: float, least: int, most: int = 1024
) -> tuple[Tensor, ...]:
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
    divergence: Divergence = BY_KIND,
    folds_: int = 4,
) -> Measured:
    """Step 1: second moments of what layers read, importance of what they make.

    They are of all images, and of each of some folds of them, for a price that can be trusted.
    """
    state = {path: tensor.detach() for path, tensor in named_tensors(graph).items()}
    calls = [
        node
        for nodes in consumer_calls(graph, {u.path for g in groups for u in g.consumers}, computed=True).values()
        for node in nodes
    ]
    readers = graph.call_of
    kernels = computed_kernels(graph, state)
    whole_kernel = {}
    for node in calls:
        weight = kernels.get(node, state[readers[node].weight])
        dense = readers[node].slides and readers[node].groups == 1 and weight.ndim in (3, 4)
        whole_kernel[node] = dense and weight[0].numel() <= config.whole_kernel_limit
    size = batch_size_for(graph)
    changes = batch_statistics(graph) if data_free else None
    common = {"batch_size": size, "generator": generator, "changes": changes}
    few = _images_for(graph, inputs, config.macs_to_spend / 3, 3, 16, most=384)
    if config.output_aware:
        gradients = {**common, "batch_size": gradient_batch_size(graph), "temperature": config.temperature}
        importance = output_importance(graph, state, few, calls, divergence=divergence, progress=progress, **gradients)
    else:
        importance = {node: torch.ones(_outputs(graph, node), dtype=torch.float64) for node in calls}
    many = _images_for(graph, inputs, config.macs_to_spend * 0.4, 1, 48)
    parts: list[Fold] = []
    for images in _folds(graph, many, folds_):
        rows: dict[str, int] = {}
        share = max(1, round(config.moment_rows * len(images[0]) / len(many[0])))
        found = input_moments(
            graph, state, images, whole_kernel, folded=folds(graph), rows=share, seen=rows,
            progress=_part(progress, sum(len(part.images[0]) for part in parts), len(many[0])), **common,
        )  # fmt: skip
        # A fold is only ever taken away from the whole: single precision is enough, and half the room.
        kept = {node: moment.cpu() if folds_ == 1 else moment.float().cpu() for node, moment in found.items()}
        parts.append(Fold(images, kept, rows))
    rows = {node: sum(part.rows[node] for part in parts) for node in parts[0].rows}
    moments = {
        node: sum((p.moments[node].double() * (p.rows[node] / rows[node]) for p in parts), torch.zeros(()))
        for node in rows
    }
    importance = {node: value.cpu() for node, value in importance.items()}
    return Measured(moments, importance, whole_kernel, rows, tuple(parts), divergence)


def _part(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Return what tells the progress of a part as that of the whole."""
    return None if progress is None else lambda phase, done, _: progress(phase, before + done, total)


def _shuffled(inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Return the images in random order: those of a folder often come class by class, and not all are looked at."""
    order = torch.randperm(len(inputs[0]), generator=generator)
    return tuple(tensor[order.to(tensor.device)] for tensor in inputs)


def _folds(graph: ChannelGraph, inputs: tuple[Tensor, ...], count: int) -> list[tuple[Tensor, ...]]:
    """Split the images into so many parts of about the same size, or fewer where a graph runs with one batch size."""
    step = batch_size_for(graph) if graph.batch_size.fixed is not None else 1
    batches_ = len(inputs[0]) // step
    bounds = [round(batches_ * k / min(count, batches_)) * step for k in range(min(count, batches_) + 1)]
    bounds[-1] = len(inputs[0])
    return [tuple(t[lo:hi] for t in inputs) for lo, hi in pairwise(bounds)]


def _outputs(graph: ChannelGraph, node: str) -> int:
    return int(graph.nodes[node].meta["val"].shape[graph.call_of[node].channel_dim])


def order_channels(
    graph: ChannelGraph, groups: list[Group], measured: Measured, config: OneShot, progress: Progress | None
) -> dict[str, RemovalOrder]:
    """Step 2: an order of removal for every group."""
    read = _LayerInputs(graph, measured)
    paths = {}
    for number, group in enumerate(groups):
        paths[group.name] = eliminate(
            read.of(group, measured.moments, measured.rows), blocks=group.blocks, damping=config.damping
        )
        if progress:
            progress("order of channels", number + 1, len(groups))
    return paths


class _LayerInputs:
    """What the consumers of a group read, by one estimate of its moments or another."""

    def __init__(self, graph: ChannelGraph, measured: Measured) -> None:
        self.graph, self.measured = graph, measured
        self._state = {path: tensor.detach().cpu() for path, tensor in named_tensors(graph).items()}
        self._kernels = {node: k.cpu() for node, k in computed_kernels(graph, named_tensors(graph)).items()}

    def of(self, group: Group, moments: Mapping[str, Tensor], rows: Mapping[str, int]) -> list[LayerInput]:
        return [
            layer_input(
                c,
                self._kernels.get(c.call.node, self._state[c.use.path]),
                moments[c.call.node],
                self.measured.importance[c.call.node],
                rows[c.call.node],
            )
            for c in consumers(self.graph, group, self.measured.whole_kernel)
        ]


def _price(
    graph: ChannelGraph,
    paths: dict[str, RemovalOrder],
    measured: Measured,
    config: OneShot,
    *,
    data_free: bool,
    generator: torch.Generator,
    progress: Progress | None,
) -> dict[str, RemovalOrder]:
    """Step 3: what every path costs the network, on images that its kernels were not fitted on."""
    if config.sensitivity != "fisher":
        return paths
    state = {path: tensor.detach() for path, tensor in named_tensors(graph).items()}
    read = _LayerInputs(graph, measured)
    groups = [group for group in graph.groups if group.name in paths]
    count = 6 if CostModel(graph).total("macs") / example_batch(graph) < 1e9 else 3
    total: dict[tuple[str, int], float] = {}
    share = len(measured.folds)
    held_out = [
        _images_for(graph, fold.images, config.macs_to_spend / share, 9, -(-16 // share), most=1024 // share)
        for fold in measured.folds
    ]
    images = sum(len(part[0]) for part in held_out)
    for number, fold in enumerate(measured.folds):
        others = Without(measured, fold)
        snapshots = {
            group.name: refitted(
                read.of(group, others, others.rows),
                paths[group.name].order,
                levels(group, count),
                damping=config.damping,
            )
            for group in groups
        }
        found = fisher_losses(
            graph,
            state,
            held_out[number],
            snapshots,
            others,
            measured.importance,
            measured.whole_kernel,
            batch_size=gradient_batch_size(graph, most=32),
            generator=generator,
            temperature=config.temperature,
            changes=batch_statistics(graph) if data_free else None,
            divergence=measured.divergence,
            progress=_part(progress, sum(len(part[0]) for part in held_out[:number]), images),
        )
        for key, loss in found.items():
            total[key] = total.get(key, 0.0) + loss
    return {
        name: replace(path, loss=calibrated(path, {k: v / images for (n, k), v in total.items() if n == name}))
        for name, path in paths.items()
    }


_FEWEST = 32
"""Images on which plans are compared, at least."""
Curves = dict[str, np.ndarray]
"""Loss after 0, 1, 2, … removals, by group."""


def _hypotheses(
    cost: CostModel, paths: dict[str, RemovalOrder], config: OneShot, quantity: Quantity
) -> dict[str, Curves]:
    """Return the loss curves by which a budget may be shared, by name; the first is the one that was measured.

    The others keep the same share of every group, or of those alone that one layer makes: a price that was measured on
    a few images may be wrong, and the same share never is by much.
    """
    same = _same_share(cost, paths, quantity)
    if config.sensitivity == "uniform":
        return {"same share": same}
    priced = {name: path.loss for name, path in paths.items()}
    if config.sensitivity != "fisher" or not config.compare:
        return {"priced": priced}
    inside = {name: curve for name, curve in same.items() if len(cost.graph.by_name[name].producers) == 1}
    found = {"priced": priced, "same share": same, "same share inside blocks": inside}
    return found if 0 < len(inside) < len(same) else {name: found[name] for name in ("priced", "same share")}


def _same_share(cost: CostModel, paths: dict[str, RemovalOrder], quantity: Quantity) -> Curves:
    """Return curves that all rise alike per fraction of the cost, so that every group keeps the same fraction."""
    groups = cost.graph.by_name
    index = {group.name: i for i, group in enumerate(cost.graph.groups)}
    gradient = cost.gradient(quantity, cost.widths)
    return {
        name: gradient[index[name]] * np.arange(len(p.order) + 1) ** 2 / groups[name].width for name, p in paths.items()
    }


def _best(
    graph: ChannelGraph,
    shares: dict[str, Curves],
    paths: dict[str, RemovalOrder],
    measured: Measured,
    cost: CostModel,
    target: tuple[Target, float],
    limits: Limits,
    config: OneShot,
    progress: Progress | None,
    *,
    data_free: bool,
    generator: torch.Generator,
) -> str:
    """Return the curves whose plan leaves the outputs closest to the original's on images that it was not fitted on.

    Kernels are handed over, and fitted for a short while, on other images than those on which they are compared.
    """
    quantity: Quantity = "macs" if target[0] == "latency" else target[0]
    fold, fitted = measured.folds[0], measured.folds[1:] or measured.folds
    others = Without(measured, fold)
    each = CostModel(graph).total("macs") / example_batch(graph)
    # A refit runs both networks, and its regressions cost about as much again.
    count = min(256, config.macs_to_spend / (6 * len(shares) * each))
    if count < _FEWEST and len(shares) > 2:
        # Large networks are compared on few images, and with the one that hardly ever loses much.
        shares = {name: curves for name, curves in shares.items() if name != "same share"}
    count = max(_FEWEST, count)
    held_out = _first(graph, fold.images, count)
    images = _first(graph, tuple(map(torch.cat, zip(*(f.images for f in fitted), strict=True))), count)
    changes = batch_statistics(graph) if data_free else {}
    size = batch_size_for(graph)
    expected = _outputs_of(Program(graph, changes), named_tensors(graph), held_out, size)
    merging = LeastSquares() if config.refit is None or data_free else replace(config.refit, work=0.0)
    found: dict[str, Tensor] = {}
    for number, (name, curves) in enumerate(shares.items()):
        try:
            widths = solve(cost, curves, quantity, target[1], limits)
        except BudgetError:
            continue  # too little may be cut that way
        kept, known = kept_of(graph, paths, widths), moments_of(graph, measured, others)
        plan = assemble(graph, kept, merging, images, moments=known, generator=generator)
        state = compact_state(graph, plan)
        cut = with_new_biases(graph, state, rewrite(graph, removed_labels(graph, plan)))
        actual = _outputs_of(Program(graph, {**changes, **cut}), state, held_out, size)
        found[name] = measured.divergence.divergence(expected, actual)
        if progress:
            progress("plans compared", number + 1, len(shares))
    return _surely_better(found)


def _surely_better(found: Mapping[str, Tensor]) -> str:
    """Return the first, unless another is better on the same images by more than its standard error."""
    first = next(iter(found))
    best = min(found, key=lambda name: float(found[name].mean()))
    gain = found[first] - found[best]
    spread = float(gain.std()) / max(1, len(gain)) ** 0.5 if len(gain) > 1 else 0.0
    return best if float(gain.mean()) > spread else first


def _first(graph: ChannelGraph, images: tuple[Tensor, ...], count: float) -> tuple[Tensor, ...]:
    """Return the first so many images, as whole batches of a graph that has but one batch size."""
    step = batch_size_for(graph) if graph.batch_size.fixed is not None else 1
    return tuple(tensor[: -(-int(count) // step) * step] for tensor in images)


def _outputs_of(program: Program, state: Mapping[str, Tensor], images: Images, size: int) -> list[Tensor]:
    """Return what a network makes of images: its outputs, or what they are read off, all images together."""
    weights = program.weights({path: tensor.detach() for path, tensor in state.items()})
    found: list[list[Tensor]] = []
    with torch.no_grad():
        for batch in batches(images, size):
            values = ChainMap(program.bind(batch), weights)
            program.advance(values, 0, len(program.steps))
            found.append([values[name] for name in program.differentiable])
    return [torch.cat(parts) if parts[0].ndim else torch.stack(parts) for parts in zip(*found, strict=True)]


def kept_of(graph: ChannelGraph, paths: Mapping[str, RemovalOrder], widths: Mapping[str, int]) -> dict[str, Kept]:
    """Return what stays of every group that is cut, by orders of removal and widths."""
    kept = {}
    for group in graph.groups:
        width = widths.get(group.name, group.width)
        if width < group.width:
            gone = paths[group.name].order[: group.width - width]
            kept[group.name] = Kept(np.setdiff1d(np.arange(group.width), gone))
    return kept


def moments_of(graph: ChannelGraph, measured: Measured, moments: Mapping[str, Tensor] | None = None) -> Moments:
    """Return what every consumer reads: what was measured, of all images unless moments of others are given."""
    moments = measured.moments if moments is None else moments
    flattened = folds(graph)

    def find(use: Use) -> tuple[Tensor, Use] | None:
        found = consumers_of(graph, use, measured.whole_kernel, flattened) if use.mixable else []
        return channel_moments_of(found[0], moments[found[0].call.node]) if found else None

    return find
