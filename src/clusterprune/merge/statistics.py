# pyright: reportUnknownMemberType=false
"""What layers read, and how much the network's output cares about what they make."""

import ctypes
import sys
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from clusterprune.errors import ModelError
from clusterprune.graph import ChannelGraph, ParameterSlice
from clusterprune.graph.images import Images, Progress, as_inputs, batches
from clusterprune.graph.program import Program
from clusterprune.merge.divergence import BY_KIND, Divergence
from clusterprune.merge.patches import PatchExtractor


def layer_gradients(
    graph: ChannelGraph,
    state: Mapping[str, Tensor],
    images: Images,
    calls: Sequence[str],
    *,
    batch_size: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    changes: Mapping[str, Any] | None = None,
    divergence: Divergence = BY_KIND,
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Yield, batch by batch, what the given layer calls read and the gradient at what they make.

    The second moment of that gradient is the Fisher information of the network's own prediction p, the softmax of
    the logits over a temperature; no labels are needed. What is differentiated is
    the score of `divergence`, which knows other kinds of outputs too.
    """
    program = Program(graph, changes)
    inputs = {call.node: call.input for call in graph.calls}
    order = sorted(calls, key=program.index.__getitem__)
    weights = program.weights(state)
    for batch in batches(images, batch_size):
        values = ChainMap(program.bind(batch), weights)
        read: dict[str, Tensor] = {}
        made: dict[str, Tensor] = {}
        position = 0
        with torch.enable_grad():
            for name in order:
                index = program.index[name]
                program.advance(values, position, index)
                read[name] = values[inputs[name]].detach()
                program.advance(values, index, index + 1)
                position = index + 1
                if not values[name].requires_grad:
                    values[name] = values[name].detach().requires_grad_(True)
                made[name] = values[name]
            program.advance(values, position, len(program.steps))
            outputs = [values[name] for name in program.differentiable if values[name].requires_grad]
            if not outputs:
                raise ModelError(
                    f"{type(graph.model).__name__} has no output with gradients: what it returns does not depend on "
                    "its layers in a way that can be differentiated. Return what its last layer makes."
                )
            score = divergence.score(outputs, temperature, generator)
            found = cast("tuple[Tensor | None, ...]", torch.autograd.grad(score, [*made.values()], allow_unused=True))
        gradients = {
            name: torch.zeros_like(value) if gradient is None else gradient
            for (name, value), gradient in zip(made.items(), found, strict=True)
        }
        yield read, gradients


def output_importance(
    graph: ChannelGraph,
    state: Mapping[str, Tensor],
    images: Images,
    calls: Sequence[str],
    *,
    batch_size: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    changes: Mapping[str, Any] | None = None,
    divergence: Divergence = BY_KIND,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Return how strongly the network's output depends on each output channel of each layer call.

    The measure is the diagonal of the Fisher information, E[(∂ log p(ŷ | x) / ∂ y_o)²], summed over
    positions and averaged over images: a float64 vector (outputs,) by the call's node name.
    """
    total: dict[str, Tensor] = {}
    count, done = len(as_inputs(images)[0]), 0
    for _, gradients in layer_gradients(
        graph, state, images, calls, batch_size=batch_size, generator=generator, temperature=temperature,
        changes=changes, divergence=divergence,
    ):  # fmt: skip
        for name, gradient in gradients.items():
            dim = graph.call_of[name].channel_dim % gradient.ndim
            squared = gradient.square().sum([d for d in range(gradient.ndim) if d != dim]).double()
            total[name] = squared if name not in total else total[name] + squared
        done = min(count, done + batch_size)
        if progress:
            progress("output importance", done, count)
    return {name: value / count for name, value in total.items()}


def input_moments(
    graph: ChannelGraph,
    state: Mapping[str, Tensor],
    images: Images,
    whole_kernel: Mapping[str, bool],
    *,
    folded: Mapping[str, ParameterSlice] | None = None,
    rows: int,
    batch_size: int,
    generator: torch.Generator,
    changes: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    seen: dict[str, int] | None = None,
) -> dict[str, Tensor]:
    """Return the second moments E[xᵀx] of what layer calls read, with a constant 1 appended to x.

    Parameters
    ----------
    whole_kernel
        The calls, by node name, and whether their rows x run over whole kernels (channels · taps) or over
        the channels at one position.
    folded
        Linear layers, by node name, whose rows run over the channels of a group at one place of the flattened maps.
    rows
        About how many rows to average over; positions are drawn at random in every image.
    seen
        Takes, by node name, over how many rows it was.

    Returns
    -------
    dict
        By node name: float64 matrix (length + 1, length + 1).
    """
    program = Program(graph, changes)
    readers = {call.node: PatchExtractor.of(graph, call) for call in graph.calls if call.node in whole_kernel}
    order = sorted(readers, key=program.index.__getitem__)
    weights = program.weights(state)
    count, done = len(as_inputs(images)[0]), 0
    limit = max(1, -(-rows // count))
    sums: dict[str, Tensor] = {}
    seen = {} if seen is None else seen
    # Rows are multiplied in float32 around a guess of their mean, so that large means do not eat the variance.
    shifts: dict[str, Tensor] = {}

    def add(name: str) -> Callable[[Tensor], None]:
        def product(patch: Tensor) -> None:
            shift = shifts.setdefault(name, patch.mean(0))
            moment = second_moment(with_constant(patch, shift), None)
            sums[name] = sums[name].add_(moment) if name in sums else moment
            seen[name] = seen.get(name, 0) + len(patch)

        return product

    buffers = {name: RowBuffer(add(name), rows=2048) for name in order}
    with torch.no_grad():
        for batch in batches(images, batch_size):
            values = ChainMap(program.bind(batch), weights)
            position = 0
            for name in order:
                reader, index = readers[name], program.index[name]
                program.advance(values, position, index)
                x = values[reader.call.input]
                program.advance(values, index, index + 1)
                position = index + 1
                if whole_kernel[name]:
                    patch = reader.inputs(x, reader.positions(values[name], limit, generator))
                elif folded and name in folded:
                    places = torch.from_numpy(folded[name].positions.T).to(x.device)
                    chosen = torch.randperm(len(places), generator=generator)[:limit].sort().values
                    patch = x[:, places[chosen]].flatten(0, 1)
                else:
                    patch = reader.centres(x, limit, generator)
                buffers[name].add(patch)
            done += len(batch[0])
            if progress:
                progress("second moments", done, count)
        for buffer in buffers.values():
            buffer.flush()
    return {name: _unshift(moment.div_(seen[name]), shifts[name].double()) for name, moment in sums.items()}


def _unshift(moment: Tensor, shift: Tensor) -> Tensor:
    """Turn the second moments of (x - shift, 1) into those of (x, 1), in place: the largest take a gigabyte."""
    total, mean = moment[-1, -1].clone(), moment[:-1, -1].clone()
    moment[:-1, :-1].addr_(mean, shift).addr_(shift, mean + total * shift)
    moment[:-1, -1] = moment[-1, :-1] = mean + total * shift
    return moment


def with_constant(rows: Tensor, shift: Tensor) -> Tensor:
    """Return rows - shift with a column of ones behind."""
    made = rows.new_ones(len(rows), rows.shape[1] + 1)
    torch.sub(rows, shift, out=made[:, :-1])
    return made


def second_moment(rows: Tensor, targets: Tensor | None) -> Tensor:
    """Return rowsᵀ · rows (or rowsᵀ · targets) in float64, multiplied in the rows' own precision."""
    if targets is not None:
        return (rows.T @ targets).double()
    size = rows.shape[1]
    result = torch.empty(size, size, dtype=torch.float64, device=rows.device)
    step = max(256, -(-size // 6))
    for start in range(0, size, step):
        # The matrix is symmetric: what lies left of the diagonal blocks is known already.
        stop = min(size, start + step)
        part = rows[:, start:stop].T @ rows[:, start:]
        result[start:stop, start:] = part
        result[stop:, start:stop] = part[:, stop - start :].T
    return result


def release_memory() -> None:
    """Hand freed memory back to the operating system, where the C library would keep it for later (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class RowBuffer:
    """Collects rows until there are enough of them for a product that is worth its overhead."""

    def __init__(self, use: Callable[..., None], rows: int = 4096) -> None:
        """Hand `rows` rows or more at once to `use`, which takes as many tensors as :meth:`add`."""
        self._use, self._rows = use, rows
        self._waiting: list[tuple[Tensor, ...]] = []

    def add(self, *tensors: Tensor) -> None:
        """Add tensors with the same number of rows."""
        self._waiting.append(tensors)
        if sum(len(entry[0]) for entry in self._waiting) >= self._rows:
            self.flush()

    def flush(self) -> None:
        """Hand over what is waiting."""
        if self._waiting:
            whole = [parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*self._waiting, strict=True)]
            self._waiting = []
            self._use(*whole)


def consumer_calls(graph: ChannelGraph, weights: Iterable[str], *, computed: bool = False) -> dict[str, list[str]]:
    """Return the node names of the calls of each given weight, in order of execution.

    Those whose kernel is computed from the weight are left out unless asked for: nothing can be handed over to them.
    """
    wanted = set(weights)
    found: dict[str, list[str]] = {}
    for call in graph.calls:
        if call.weight in wanted and not call.depthwise and (computed or not call.computed):
            found.setdefault(call.weight, []).append(call.node)
    return found
