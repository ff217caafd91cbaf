"""Refit: solve every consumer's whole kernel anew, layer after layer, on the already compressed inputs.

The original and the compressed network run side by side on the same images. At each layer the kernel and
bias are the ridge solution that makes its output match the original's; errors of earlier layers are part of
the input, so later layers correct them. In front of an addition the target is the *sum*: a residual
branch also makes good what its shortcut has lost.

Where a rectifier follows, an output that it silences may be anything that it silences: the distance to that half-line
counts, not that to the original's value. The sum of these squared distances is convex in the kernel; each of a few
steps replaces every target by its nearest allowed value and solves the regression again, whose factor stays the same.
"""

import math
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, fx

from clusterprune.graph import ChannelGraph, Group, LayerCall
from clusterprune.graph.images import Images, Progress, as_inputs, batch_size_for, batches
from clusterprune.graph.ops.norm import BatchNorm
from clusterprune.graph.ops.pointwise import bounds_of, is_addition
from clusterprune.graph.program import Program, named_tensors
from clusterprune.graph.rewrite import ChannelMask, rewrite
from clusterprune.merge._base import Kept, Moments
from clusterprune.merge.least_squares import LeastSquares, Ridge, dual_ridge_regression
from clusterprune.merge.patches import PatchExtractor
from clusterprune.merge.statistics import RowBuffer, release_memory, second_moment, with_constant
from clusterprune.plan import Merge, Plan
from clusterprune.surgery.apply import bias_home, compact_state, removed_labels, with_new_biases

aten = torch.ops.aten


_MANY_ROWS = 16384
_ROWS_BY_CHANNEL = 4096
"""Rows for a depthwise layer, whose regressions have a handful of unknowns each, but as many rows to copy."""


@dataclass(frozen=True)
class Refit:
    """Every kernel is solved anew behind least squares, layer after layer.

    Attributes
    ----------
    ridge
        Pull towards the mixed kernel, relative to the mean power of the inputs.
    rows_per_input, work, max_rows
        Rows of each regression: so many per unknown of one output (half as many beyond 16,384 rows) or, if more, as
        many as fit into `work` multiply-adds (rows · unknowns²), and at most `max_rows`.
    all_layers
        Refit every layer from the first cut on; otherwise only those that read a cut group.
    through_additions
        Aim at the sum behind a layer instead of the layer's own output.
    rectified
        How often targets move to what a rectifier behind the layer makes the same of; 0 takes the original's
        values as they are.
    """

    ridge: float = 3e-3
    rows_per_input: int = 16
    work: float = 3e10
    max_rows: int = 65536
    all_layers: bool = True
    through_additions: bool = True
    rectified: int = 4

    name: ClassVar[str] = "refit"
    by_cluster: ClassVar[bool] = False
    needs_images: ClassVar[bool] = True

    def merge(self, graph: ChannelGraph, group: Group, kept: Kept, moments: Moments) -> Merge:
        """Return the merge by least squares, whose kernels the refit begins with."""
        return LeastSquares().merge(graph, group, kept, moments)

    def finish(
        self,
        graph: ChannelGraph,
        plan: Plan,
        images: Images,
        *,
        generator: torch.Generator,
        progress: Progress | None = None,
    ) -> Plan:
        """Solve every kernel anew; see :func:`refit`."""
        size = batch_size_for(graph)
        return refit(graph, plan, images, options=self, batch_size=size, generator=generator, progress=progress)


@dataclass(frozen=True)
class _Target:
    """A layer call, its batch norm, the addition that it feeds, and the range that a rectifier behind lets through."""

    call: LayerCall
    norm: BatchNorm | None
    addition: fx.Node | None
    other: str
    range: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class _Rows:
    """What a layer reads and what it should make, (rows, outputs), and where it may make more or less than that."""

    inputs: Tensor
    wanted: Tensor
    floor: Tensor | None = None
    ceiling: Tensor | None = None
    """Where the original is silenced: outputs from `floor` down, or from `ceiling` up, are all the same."""


def refit(
    graph: ChannelGraph,
    plan: Plan,
    images: Images,
    *,
    options: Refit | None = None,
    batch_size: int = 64,
    generator: torch.Generator,
    progress: Progress | None = None,
) -> Plan:
    """Return the plan with refitted kernels, biases and running means in `replaced`.

    The regressions are solved where the model is; what they give is on the CPU, as all that a plan holds.

    Parameters
    ----------
    plan
        What to keep; its mixing matrices give the kernels that the ridge pulls to.
    images
        Unlabelled, normalised inputs.
    """
    options = options or Refit()
    state = compact_state(graph, plan)
    homes = {call.weight: bias_home(graph, call.weight) for call in graph.calls}
    targets = _targets(graph, plan, options)
    new = {t.call.node: home[1] for t in targets if (home := homes[t.call.weight]) is not None and home[0] == "new"}
    for call in graph.calls:
        if call.node in new:
            weight = state[call.weight]
            state.setdefault(new[call.node], weight.new_zeros(weight.shape[0]))
    network = _Pair(graph, plan, state, images, batch_size)
    replaced: dict[str, Tensor] = {}
    for number, target in enumerate(targets):
        solution, constant = _solve(network, target, homes[target.call.weight], options, generator)
        weight = state[target.call.weight]
        fresh = {target.call.weight: solution.T.reshape(weight.shape).to(weight.dtype)}
        home = homes[target.call.weight]
        if home is not None:
            kind, path = home
            fresh[path] = state[path] + (-constant if kind == "subtract" else constant).to(state[path].dtype)
        network.replace(fresh)
        replaced |= {path: tensor.cpu() for path, tensor in fresh.items()}
        network.finish(target)
        release_memory()
        if progress:
            progress("refit", number + 1, len(targets))
    return replace(plan, replaced={**plan.replaced, **replaced})


def _targets(graph: ChannelGraph, plan: Plan, options: Refit) -> list[_Target]:
    """List the calls to refit, in order, each with where its error can be seen."""
    touched = {use.path for merge in plan.merges for use in graph.by_name[merge.group].consumers}
    times: dict[str, int] = {}
    for call in graph.calls:
        times[call.weight] = times.get(call.weight, 0) + 1
    order = {node.name: position for position, node in enumerate(graph.fx.nodes)}
    calls = []
    started = False
    for call in graph.calls:
        started = started or call.weight in touched
        plain = call.groups == 1 and call.row_dim == 0 and (call.by_row or call.slides) and not call.computed
        solvable = (plain and PatchExtractor.of(graph, call).refittable) or _by_channel(graph, call)
        # A layer applied twice would need both of its inputs at once; its mixing matrices stand.
        wanted = started if options.all_layers else call.weight in touched
        if solvable and wanted and times[call.weight] == 1:
            calls.append(call)
    at = [order[call.node] for call in calls]
    targets = []
    for call in calls:
        norm, addition, other = _behind(graph, call.node) if options.through_additions else (None, None, "")
        if addition is not None and any(order[call.node] < o < order[addition.name] for o in at):
            norm, addition, other = None, None, ""
        if addition is not None and order.get(other, 0) > order[addition.name]:
            norm, addition, other = None, None, ""
        norm = norm if addition is not None else _norm_of(graph, call.node)
        last = addition or (norm.node if norm is not None else graph.nodes[call.node])
        targets.append(_Target(call, norm, addition, other, _range_behind(last) if options.rectified else None))
    return targets


def _norm_of(graph: ChannelGraph, node: str) -> BatchNorm | None:
    """Return the batch norm that alone reads a call's output, if it has all its tensors."""
    norm = graph.norm_behind.get(node)
    return norm if norm is not None and norm.complete else None


def _range_behind(node: fx.Node) -> tuple[float, float] | None:
    """Return between which bounds the only reader of a value lets it through, if that is a rectifier."""
    user = next(iter(node.users)) if len(node.users) == 1 else None
    return None if user is None else bounds_of(user)


def _by_channel(graph: ChannelGraph, call: LayerCall) -> bool:
    """Tell whether a call is a depthwise convolution with one kernel a channel, in up to two spatial dimensions."""
    if not call.depthwise or not call.slides or call.computed:
        return False
    shape = graph.model.get_parameter(call.weight).shape
    return shape[0] == call.groups and len(shape) in (3, 4)


def _behind(graph: ChannelGraph, node: str) -> tuple[BatchNorm | None, fx.Node | None, str]:
    """Follow a call's output through at most one batch norm to an addition, if that is where it goes."""
    norm = _norm_of(graph, node)
    current = graph.nodes[node] if norm is None else norm.node
    if len(current.users) == 1:
        user = next(iter(current.users))
        plain = is_addition(user) and not user.kwargs and len(user.args) == 2
        if plain and len(user.all_input_nodes) == 2:
            other = next(n for n in user.all_input_nodes if n is not current)
            same = tuple(other.meta["val"].shape) == tuple(current.meta["val"].shape)
            if same and other.op == "call_function":
                return norm, user, other.name
    return None, None, ""


class _Pair:
    """The original and the compressed network, both part-way through the same images."""

    def __init__(
        self,
        graph: ChannelGraph,
        plan: Plan,
        state: dict[str, Tensor],
        images: Images,
        batch_size: int,
    ) -> None:
        self.graph, self.state = graph, state
        removed = removed_labels(graph, plan)
        self.original = Program(graph)
        self.compact = Program(graph, with_new_biases(graph, state, rewrite(graph, removed)))
        before = self.original.weights(named_tensors(graph))
        self.after = self.compact.weights(state)
        self.values = [
            (ChainMap(self.original.bind(batch), before), ChainMap(self.compact.bind(batch), self.after))
            for batch in batches(images, batch_size)
        ]
        self.images = len(as_inputs(images)[0])
        self._done = (0, 0)
        self._held: list[Tensor] = []
        self._rows: dict[str, Tensor] = {}
        mask = ChannelMask(graph, removed)
        for call in graph.calls:
            kept = mask.kept(call.node)[call.channel_dim]
            if kept is not None:
                self._rows[call.node] = torch.from_numpy(kept)

    def observe(
        self, target: _Target, reader: PatchExtractor, limit: int, generator: torch.Generator
    ) -> Iterator[_Rows]:
        """Run both networks up to a call; yield, batch by batch, rows of its input and of the output it should have.

        At most `limit` positions are taken of each image, before anything else is done with them.
        """
        call = target.call
        index = self.original.index[call.node]
        last = call.node if target.addition is None else target.addition.name
        stop = index if target.addition is None else self.original.index[last]
        rows = self._rows.get(call.node)
        affine = None if target.norm is None else target.norm.folding(self.state)
        self._held = []
        with torch.no_grad():
            for original, compact in self.values:
                self.original.advance(original, self._done[0], stop + 1)
                self.compact.advance(compact, self._done[1], index)
                x = compact[call.input]
                self._held.append(x)
                made = original[last]
                where = reader.positions(made, limit, generator)
                wanted = reader.outputs(made, where)
                wanted = wanted if rows is None else wanted[:, rows]
                other: Tensor | None = None
                if target.addition is not None:
                    # The other side of the sum is needed, not what the old kernel makes.
                    old = {call.node, target.norm.name if target.norm is not None else ""}
                    self.compact.advance(compact, index, stop, skip=old)
                    other = reader.outputs(compact[target.other], where)
                yield _aimed(reader.inputs(x, where), wanted, other, affine, target)
        self._done = (stop + 1, stop)

    def places(self, call: LayerCall) -> int:
        """Return how many output positions a call has in one image."""
        return call.places(self.graph.nodes[call.node].meta["val"].shape)

    def replace(self, fresh: Mapping[str, Tensor]) -> None:
        """Put refitted tensors into the compressed network."""
        self.state.update(fresh)
        self.after.update(self.compact.weights(self.state))

    def finish(self, target: _Target) -> None:
        """Run the refitted call (and its norm) again, so that what follows sees its new output."""
        index = self.compact.index[target.call.node]
        with torch.no_grad():
            for (_, compact), x in zip(self.values, self._held, strict=True):
                local = compact.maps[0]
                present = target.call.input in local
                local[target.call.input] = x
                self.compact.advance(compact, index, index + 1)
                if target.addition is not None:
                    if target.norm is not None:
                        again = self.compact.index[target.norm.name]
                        self.compact.advance(compact, again, again + 1)
                    # What stands between the call and the addition ran already; keep what was still needed then.
                    if present:
                        local[target.call.input] = x
                    else:
                        local.pop(target.call.input, None)
        self._held = []
        if target.addition is None:
            self._done = (self._done[0], index + 1)


def _solve(
    network: _Pair, target: _Target, home: tuple[str, str] | None, options: Refit, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the refitted kernel (inputs · taps, outputs) and the change of the bias (outputs,), float64."""
    call = target.call
    reader = PatchExtractor.of(network.graph, call)
    weight = network.state[call.weight]
    constant = home is not None
    unknowns = weight[0].numel()
    enough = options.rows_per_input * unknowns
    rows = int(min(options.max_rows, max(min(enough, _MANY_ROWS), enough // 2, options.work / unknowns**2)))
    if call.depthwise:
        rows = min(max(rows, _ROWS_BY_CHANNEL // 4), _ROWS_BY_CHANNEL)
    limit = max(1, -(-rows // network.images))
    bias = torch.zeros(weight.shape[0], dtype=torch.float64, device=weight.device)
    if call.bias is not None:
        bias = network.state[call.bias].double()
    elif home is not None and home[0] == "new":
        bias = network.state[home[1]].double()
    # Outputs that the norm silences keep their kernel.
    folding = None if target.addition is None or target.norm is None else target.norm.folding(network.state)
    silent = None if folding is None else _silent(folding[0])
    prior = weight.flatten(1).T.double()
    seen = network.observe(target, reader, limit, generator)
    length = unknowns * (len(weight) if call.depthwise else 1)
    numbers = network.images * min(limit, network.places(call)) * length
    fits = numbers <= _ROWS_KEPT and numbers * (1 if call.depthwise else len(weight)) <= _MOST_PER_STEP
    often = options.rectified if target.range is not None and fits else 0
    if call.depthwise:
        kernel, level = _accumulate_by_channel(seen, weight, bias, options.ridge, constant=constant, rectified=often)
    elif network.images * min(limit, network.places(call)) < unknowns:
        pairs = [(rows.inputs, rows.wanted) for rows in seen]
        inputs, outputs = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        outputs = outputs if constant else outputs - bias.to(outputs.dtype)
        kernel, level = dual_ridge_regression(inputs, outputs, prior, options.ridge, constant=constant)
    else:
        kernel, level = _accumulate(seen, prior, bias, options.ridge, constant=constant, rectified=often)
    if silent is not None:
        kernel[:, silent], level[silent] = prior[:, silent], bias[silent]
    return kernel, level - bias if constant else torch.zeros_like(bias)


_ROWS_KEPT = 8e7
"""Most numbers of a layer's input (a third of a gigabyte) that are kept to look at them again."""
_MOST_PER_STEP = 8e9
"""Most multiply-adds of one product of rows and kernel, of which a step takes two: a fraction of a second."""


def _silent(scale: Tensor) -> Tensor:
    """Tell which outputs a norm scales down to next to nothing: dividing by that makes no sense."""
    return scale.abs() <= 1e-3 * scale.abs().max()


def _aimed(
    inputs: Tensor, made: Tensor, other: Tensor | None, affine: tuple[Tensor, Tensor] | None, target: _Target
) -> _Rows:
    """Return what a layer has to make so that what stands behind it is what the original has there.

    Parameters
    ----------
    made
        The original's values at the end: the sum, or the layer's own output.
    other
        The other side of the sum, in the compact network.
    affine
        Scale and shift of the norm between the layer and the end.
    """
    scale, shift = affine if affine is not None else (made.new_ones(()), made.new_zeros(()))
    scale = torch.where(_silent(scale), 1, scale)

    def before(end: Tensor) -> Tensor:
        """Return the layer's own output behind which the end has some value."""
        return (end - (0 if other is None else other) - shift) / scale

    end = made if target.addition is not None else made * scale + shift
    wanted = before(made) if target.addition is not None else made
    if target.range is None:
        return _Rows(inputs, wanted)
    low, high = target.range
    # Everything from a bound on is alike; which side that is in the layer's own output, the sign of the norm says.
    floor, ceiling = torch.full_like(wanted, -torch.inf), torch.full_like(wanted, torch.inf)
    for bound, beyond, upwards in ((low, end <= low, scale < 0), (high, end >= high, scale > 0)):
        if math.isfinite(bound):
            edge = before(torch.full_like(end, bound)).expand_as(wanted)
            upwards = upwards.expand_as(wanted)
            ceiling = torch.where(beyond & upwards, edge, ceiling)
            floor = torch.where(beyond & ~upwards, edge, floor)
    return _Rows(inputs, wanted, floor, ceiling)


def _nearest(made: Tensor, rows: _Rows) -> Tensor:
    """Return, of all outputs that will do as well as the wanted ones, those nearest to what is made."""
    if rows.floor is None or rows.ceiling is None:
        return rows.wanted
    found = torch.where(rows.floor.isfinite(), torch.minimum(made, rows.floor), rows.wanted)
    return torch.where(rows.ceiling.isfinite(), torch.maximum(made, rows.ceiling), found)


def _accumulate(
    seen: Iterable[_Rows], prior: Tensor, bias: Tensor, ridge: float, *, constant: bool, rectified: int = 0
) -> tuple[Tensor, Tensor]:
    """Solve the regression from running sums of products: kernel and bias, or the given bias if none is fitted.

    Parameters
    ----------
    rectified
        How often targets move to the nearest value that will do; the rows are then kept.
    """
    gram: list[Tensor] = []
    cross: list[Tensor] = []
    kept: list[_Rows] = []
    shift: dict[str, Tensor] = {}

    def around(inputs: Tensor) -> Tensor:
        # Around a guess of the mean (of the first batch), so that float32 products keep the variance.
        return with_constant(inputs, shift.setdefault("inputs", inputs.mean(0))) if constant else inputs

    def add(inputs: Tensor, outputs: Tensor) -> None:
        outputs = outputs if constant else outputs - bias.to(outputs.dtype)
        for total, part in ((gram, second_moment(inputs, None)), (cross, second_moment(inputs, outputs))):
            total[:] = [total[0].add_(part)] if total else [part]

    buffer = RowBuffer(add)
    for rows in seen:
        inputs = around(rows.inputs)
        buffer.add(inputs, rows.wanted)
        if rectified:
            kept.append(replace(rows, inputs=inputs))
    buffer.flush()
    whole, guess = prior, torch.zeros_like(prior[:, 0])
    if constant:
        guess = shift["inputs"].double()
        whole = torch.cat([prior, (bias + guess @ prior)[None]])
    regression = Ridge(gram[0], whole, ridge, constant=constant)
    solution = before = regression.solve(cross[0])
    for step in range(rectified):
        # A step of Nesterov's: each by itself goes but part of the way.
        ahead = (solution + (solution - before) * (step / (step + 3))).to(kept[0].inputs.dtype)
        before = solution
        fresh = torch.zeros_like(cross[0])
        for rows in kept:
            made = rows.inputs @ ahead if constant else rows.inputs @ ahead + bias.to(rows.inputs.dtype)
            outputs = _nearest(made, rows)
            fresh += second_moment(rows.inputs, outputs if constant else outputs - bias.to(outputs.dtype))
        solution = regression.solve(fresh)
    if not constant:
        return solution, bias
    return solution[:-1], solution[-1] - guess @ solution[:-1]


def _accumulate_by_channel(
    seen: Iterable[_Rows], weight: Tensor, bias: Tensor, ridge: float, *, constant: bool, rectified: int = 0
) -> tuple[Tensor, Tensor]:
    """Solve one small regression for every channel of a depthwise layer: kernels (taps, channels), and the biases."""
    channels, taps = len(weight), weight[0].numel()
    length = taps + constant
    gram = torch.zeros(channels, length, length, dtype=torch.float64, device=weight.device)
    cross = torch.zeros(channels, length, 1, dtype=torch.float64, device=weight.device)
    kept: list[_Rows] = []
    shift: dict[str, Tensor] = {}

    def by_channel(rows: _Rows) -> Tensor:
        """Return inputs as (channels, rows, taps), around a guess of their mean and with a constant behind."""
        patches = rows.inputs.view(len(rows.inputs), channels, taps).transpose(0, 1)
        if not constant:
            return patches
        guess = shift.setdefault("inputs", patches.mean((1, 2), keepdim=True))
        return torch.cat([patches - guess, patches.new_ones(channels, patches.shape[1], 1)], 2)

    def product(inputs: Tensor, outputs: Tensor) -> Tensor:
        outputs = outputs if constant else outputs - bias.to(outputs.dtype)
        return (inputs.transpose(1, 2) @ outputs.T[:, :, None]).double()

    for rows in seen:
        inputs = by_channel(rows)
        gram += (inputs.transpose(1, 2) @ inputs).double()
        cross += product(inputs, rows.wanted)
        if rectified:
            kept.append(rows)
    prior = weight.flatten(1).double()
    guess = shift["inputs"].flatten().double() if constant else torch.zeros_like(bias)
    if constant:
        prior = torch.cat([prior, (bias + guess * prior.sum(1))[:, None]], 1)
    penalty = ridge * gram[:, :taps, :taps].diagonal(dim1=1, dim2=2).mean(1, keepdim=True) + 1e-12
    penalty = penalty.repeat(1, length)
    if constant:
        penalty[:, -1] = 1e-9 * gram[:, -1, -1] + 1e-12
    factor = torch.linalg.cholesky(gram + torch.diag_embed(penalty))
    pull = (penalty * prior)[:, :, None]
    solution = before = torch.cholesky_solve(cross + pull, factor)
    for step in range(rectified):
        ahead = (solution + (solution - before) * (step / (step + 3))).to(weight.dtype)
        before, fresh = solution, torch.zeros_like(cross)
        for rows in kept:
            inputs = by_channel(rows)
            made = (inputs @ ahead).squeeze(2).T
            fresh += product(inputs, _nearest(made if constant else made + bias.to(made.dtype), rows))
        solution = torch.cholesky_solve(fresh + pull, factor)
    kernel = solution[:, :taps, 0]
    return kernel.T, bias if not constant else solution[:, -1, 0] - guess * kernel.sum(1)
