"""Refit: solve every consumer's whole kernel anew, layer after layer, on the already compressed inputs.

The original and the compressed network run side by side on the same images. At each layer the kernel and
bias are the ridge solution that makes its output match the original's; errors of earlier layers are part of
the input, so later layers correct them. In front of an addition the target is the *sum*: a residual
branch also makes good what its shortcut has lost.
"""

import math
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, fx

from clusterprune.graph import ChannelGraph, LayerCall
from clusterprune.graph.program import Program
from clusterprune.graph.rewrite import rewrite
from clusterprune.merge.least_squares import dual_ridge_regression, ridge_regression
from clusterprune.merge.patches import Reader
from clusterprune.merge.statistics import (
    Images,
    Progress,
    RowBuffer,
    as_inputs,
    batches,
    release_memory,
    second_moment,
    with_constant,
)
from clusterprune.plans import Plan
from clusterprune.surgery import bias_home, compact_state, named_tensors, removed_labels, with_new_biases

aten = torch.ops.aten


_MANY_ROWS = 16384


@dataclass(frozen=True)
class Refit:
    """How to refit.

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
    """

    ridge: float = 1e-3
    rows_per_input: int = 16
    work: float = 3e10
    max_rows: int = 65536
    all_layers: bool = True
    through_additions: bool = True


@dataclass(frozen=True)
class _Target:
    """A layer call, its batch norm, and the addition that it feeds."""

    call: LayerCall
    norm: fx.Node | None
    addition: fx.Node | None
    other: str


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
    nodes = {node.name: node for node in graph.fx.nodes}
    times: dict[str, int] = {}
    for call in graph.calls:
        times[call.weight] = times.get(call.weight, 0) + 1
    order = {node.name: position for position, node in enumerate(graph.fx.nodes)}
    calls = []
    started = False
    for call in graph.calls:
        started = started or call.weight in touched
        plain = call.groups == 1 and call.kind in ("conv", "linear") and not call.computed
        dense = plain and Reader.of(graph, call).refittable
        # A layer applied twice would need both of its inputs at once; its mixing matrices stand.
        wanted = started if options.all_layers else call.weight in touched
        if dense and wanted and times[call.weight] == 1:
            calls.append(call)
    at = [order[call.node] for call in calls]
    targets = []
    for call in calls:
        norm, addition, other = _behind(nodes[call.node]) if options.through_additions else (None, None, "")
        if addition is not None and any(order[call.node] < o < order[addition.name] for o in at):
            norm, addition, other = None, None, ""
        if addition is not None and order.get(other, 0) > order[addition.name]:
            norm, addition, other = None, None, ""
        targets.append(_Target(call, norm, addition, other))
    return targets


def _behind(node: fx.Node) -> tuple[fx.Node | None, fx.Node | None, str]:
    """Follow a call's output through at most one batch norm to an addition, if that is where it goes."""
    norm: fx.Node | None = None
    current = node
    while len(current.users) == 1:
        user = next(iter(current.users))
        packet = getattr(user.target, "overloadpacket", None)
        if packet is aten.batch_norm and norm is None:
            if not all(isinstance(user.args[i], fx.Node) for i in (1, 2, 3, 4)):
                break
            norm = current = user
            continue
        plain = packet in (aten.add, aten.add_) and not user.kwargs and len(user.args) == 2
        if plain and len(user.all_input_nodes) == 2:
            other = next(n for n in user.all_input_nodes if n is not current)
            same = tuple(other.meta["val"].shape) == tuple(current.meta["val"].shape)
            if same and other.op == "call_function":
                return norm, user, other.name
        break
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
        self._rows: dict[tuple[str, int], Tensor] = {}
        gone: dict[tuple[str, int], list[np.ndarray]] = {}
        for merge in plan.merges:
            group = graph.by_name[merge.group]
            out = np.delete(np.arange(group.width), merge.kept)
            for use in group.producers:
                gone.setdefault((use.path, use.dim), []).append(use.positions[out].ravel())
        tensors = named_tensors(graph)
        for (path, dim), parts in gone.items():
            keep = np.setdiff1d(np.arange(tensors[path].shape[dim]), np.concatenate(parts))
            self._rows[path, dim] = torch.from_numpy(keep)

    def observe(
        self, target: _Target, reader: Reader, limit: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Run both networks up to a call; yield, batch by batch, rows of its input and of the output it should have.

        At most `limit` positions are taken of each image, before anything else is done with them.
        """
        call = target.call
        index = self.original.index[call.node]
        stop = index if target.addition is None else self.original.index[target.addition.name]
        rows = self._rows.get((call.weight, 0))
        self._held = []
        with torch.no_grad():
            for original, compact in self.values:
                self.original.advance(original, self._done[0], stop + 1)
                self.compact.advance(compact, self._done[1], index)
                x = compact[call.input]
                self._held.append(x)
                made = original[call.node if target.addition is None else target.addition.name]
                where = reader.positions(made, limit, generator)
                wanted = reader.outputs(made, where)
                wanted = wanted if rows is None else wanted[:, rows]
                if target.addition is not None:
                    # The other side of the sum is needed, not what the old kernel makes.
                    old = {call.node, target.norm.name if target.norm is not None else ""}
                    self.compact.advance(compact, index, stop, skip=old)
                    wanted = wanted - reader.outputs(compact[target.other], where)
                yield reader.inputs(x, where), wanted
        self._done = (stop + 1, stop)

    def places(self, call: LayerCall) -> int:
        """Return how many output positions a call has in one image."""
        node = next(node for node in self.graph.fx.nodes if node.name == call.node)
        shape = node.meta["val"].shape
        return math.prod(shape[2:] if call.kind == "conv" else shape[1:-1])

    def norm_affine(self, norm: fx.Node) -> tuple[Tensor, Tensor]:
        """Return a batch norm's scale and shift in the compressed network."""
        weight, bias, mean, variance = (self.after[norm.args[i].name] for i in (1, 2, 3, 4))  # type: ignore[union-attr]
        scale = weight / (variance + float(norm.args[7])).sqrt()  # type: ignore[arg-type]
        return scale, bias - mean * scale

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
                if target.norm is not None:
                    again = self.compact.index[target.norm.name]
                    self.compact.advance(compact, again, again + 1)
                if target.addition is not None:
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
    reader = Reader.of(network.graph, call)
    weight = network.state[call.weight]
    constant = home is not None
    unknowns = weight[0].numel()
    enough = options.rows_per_input * unknowns
    rows = int(min(options.max_rows, max(min(enough, _MANY_ROWS), enough // 2, options.work / unknowns**2)))
    limit = max(1, -(-rows // network.images))
    bias = torch.zeros(weight.shape[0], dtype=torch.float64, device=weight.device)
    if call.bias is not None:
        bias = network.state[call.bias].double()
    elif home is not None and home[0] == "new":
        bias = network.state[home[1]].double()
    scale, shift = network.norm_affine(target.norm) if target.norm is not None else (None, None)

    # Dividing by a vanishing scale makes no sense; outputs that the norm silences keep their kernel.
    silent = None if scale is None else scale.abs() <= 1e-3 * scale.abs().max()

    def aim(outputs: Tensor) -> Tensor:
        if scale is None or shift is None or silent is None:
            return outputs
        return (outputs - shift) / torch.where(silent, 1, scale)

    prior = weight.flatten(1).T.double()
    seen = network.observe(target, reader, limit, generator)
    if network.images * min(limit, network.places(call)) < unknowns:
        pairs = [(inputs, aim(outputs)) for inputs, outputs in seen]
        inputs, outputs = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        outputs = outputs if constant else outputs - bias.to(outputs.dtype)
        kernel, level = dual_ridge_regression(inputs, outputs, prior, options.ridge, constant=constant)
    else:
        kernel, level = _accumulate(seen, aim, prior, bias, options.ridge, constant=constant)
    if silent is not None:
        kernel[:, silent], level[silent] = prior[:, silent], bias[silent]
    return kernel, level - bias if constant else torch.zeros_like(bias)


def _accumulate(
    seen: Iterable[tuple[Tensor, Tensor]],
    aim: Callable[[Tensor], Tensor],
    prior: Tensor,
    bias: Tensor,
    ridge: float,
    *,
    constant: bool,
) -> tuple[Tensor, Tensor]:
    """Solve the regression from running sums of products: kernel and bias, or the given bias if none is fitted."""
    sums: list[Tensor] = []
    shift: dict[str, Tensor] = {}

    def add(inputs: Tensor, outputs: Tensor) -> None:
        outputs = aim(outputs)
        if constant:
            # Around a guess of the mean, so that float32 products keep the variance.
            inputs = with_constant(inputs, shift.setdefault("inputs", inputs.mean(0)))
        outputs = outputs if constant else outputs - bias.to(outputs.dtype)
        part = [second_moment(inputs, None), second_moment(inputs, outputs)]
        sums[:] = [a.add_(b) for a, b in zip(sums, part, strict=True)] if sums else part

    buffer = RowBuffer(add)
    for inputs, outputs in seen:
        buffer.add(inputs, outputs)
    buffer.flush()
    if not constant:
        return ridge_regression(sums[0], sums[1], prior, ridge, constant=False), bias
    guess = shift["inputs"].double()
    whole = torch.cat([prior, (bias + guess @ prior)[None]])
    solution = ridge_regression(sums[0], sums[1], whole, ridge, constant=True)
    return solution[:-1], solution[-1] - guess @ solution[:-1]
