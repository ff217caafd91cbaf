"""Whether a cut module still computes what the original does with its channels masked (law 2).

The question is about code, not about numbers: does the forward that the user wrote pick the right channels now that
there are fewer? So it is not asked of the user's weights, which can hide a wrong answer (a branch scaled by 1e-6, a
residual block whose last layer starts at zero), but of random ones, drawn here so that every branch counts, and in
float64, where rounding is too small to be taken for an error whatever the model's own precision. The same random
tensors, masked at full size and cut, go into a copy of the original and into the module in question; then both see
the same noise, at the traced size, at another size and batch where the original takes them, and in training mode.
"""

import functools
import math
import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from clusterprune.errors import PlanError
from clusterprune.graph import ChannelGraph
from clusterprune.graph.export import canonical_paths
from clusterprune.graph.throwaway import duplicate, surroundings_kept

aten = torch.ops.aten

State = Mapping[str, Tensor]
Pair = Callable[[torch.dtype | None, int], tuple[State, State]]
"""Returns tensors by path, masked at full size and cut, in a floating-point type (None: in the model's own types).

The number says which of two draws: what one cannot tell, because a channel is dead in it, the other may.
"""
Way = Literal["traced", "size and batch", "size", "batch", "training", "training in batches", "training as traced"]
"""How a network is run: as it was traced, at another image size or batch, or in training mode there.

Training "in batches" keeps the traced image size, and "as traced" the traced batch too.
"""

_TRAINED_AT: dict[Way, tuple[Way, ...]] = {
    "training": ("size and batch", "batch", "traced"),
    "training in batches": ("batch", "traced"),
    "training as traced": ("traced",),
}
"""Where a network is trained: on a smaller image where the original takes one, which is cheaper; batch norms need more
images than one."""

_RELATIVE = 1e-7
"""Largest difference of one number relative to itself; a billion roundings of float64 leave room for deep networks."""
_OF_SLICE = 1e-10
"""Largest difference of one number relative to the largest of the least of the slices through it."""
_ROUNDINGS = 64.0
"""How many times the effect of one rounding of the weights a difference may have, where a model rounds coarsely."""
_COARSE = 0.05
"""Beyond this share of its slice no difference is taken for rounding, however coarse."""


class Equivalence:
    """Compares modules with a masked original.

    Parameters
    ----------
    graph
        The traced original.
    pairs
        Makers of masked and cut tensors, in order of preference. The first with which the original gives numbers that
        tell something is used.
    cut
        Cuts full-size tensors, by path.
    stand_in
        Computes the truth from masked tensors and inputs in place of a copy of the original, for cuts that the
        original's own code cannot mask; it is asked at the traced size alone.
    dtypes
        Floating-point types to run in, in order of preference; None stands for the model's own.

    Raises
    ------
    PlanError
        If the original does not run on noise of the traced shape.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        pairs: Sequence[Pair],
        cut: Callable[[State], State],
        stand_in: Callable[[State, tuple[Any, ...], dict[str, Any]], Any] | None = None,
        dtypes: Sequence[torch.dtype | None] = (torch.float64, None),
    ) -> None:
        """Find tensors and a precision in which the original can be run."""
        self.graph = graph
        self._pairs, self._cut_down, self._stand_in = pairs, cut, stand_in
        self._more = 1
        self._error: Exception | None = None
        self._choices = [(dtype, pair) for dtype in dtypes for pair in pairs]
        if not self._choose(0) and self._find("traced") is None:
            raise PlanError(
                f"{type(graph.model).__name__} does not run on noise of the traced shape ({self._error}), so that "
                "nothing can be said of a cut; make it accept any numbers, or trace its convolutional part alone"
            ) from self._error

    def _choose(self, first: int) -> bool:
        """Take the first tensors and precision from there on with which the original's outputs tell something."""
        for at in range(first, len(self._choices)):
            self._at = at
            self._dtype, self._pair = self._choices[at]
            self._draws: dict[int, tuple[State, State, nn.Module]] = {}
            self._found: dict[Way, _Found | None] = {}
            found = self._find("traced")
            if found is not None and _tells(found.truth.outputs):
                # Classes say little of the scores behind them: ask for those of more images.
                self._more = 1 if any(t.is_floating_point() for t in found.truth.outputs) else 31
                self._found = {"traced": found}
                return True
        return False

    def _drawn(self, way: Way) -> tuple[State, State, nn.Module]:
        """Return the masked and the cut tensors with which a way is tried, and the original with the masked ones."""
        draw = 0 if way == "traced" else 1
        if draw not in self._draws:
            masked, cut = self._pair(self._dtype, draw)
            self._draws[draw] = masked, cut, self._filled(self.graph.model, masked)
        return self._draws[draw]

    @functools.cached_property
    def _names(self) -> dict[str, str]:
        """The first path of every tensor of the original, by all its paths."""
        return canonical_paths(self.graph.model)

    @functools.cached_property
    def in_own_types(self) -> "Equivalence":
        """The same comparison in the model's own types."""
        return Equivalence(self.graph, self._pairs, self._cut_down, self._stand_in, dtypes=(None,))

    def takes(self, way: Way) -> bool:
        """Tell whether the original runs that way."""
        return self._find(way) is not None

    def differs(self, module: nn.Module, ways: Sequence[Way]) -> list[Way]:
        """Return those ways of running in which a module does not compute what the original computes.

        A way that the original itself does not take demands nothing; where it takes another size or another batch
        but not both at once, "size and batch" stands for the one that it takes.
        """
        while True:
            try:
                return self._differs(module, ways)
            except _ChaosError:
                if not self._choose(self._at + 1):
                    return list(ways)  # nothing can be said for the module

    def _differs(self, module: nn.Module, ways: Sequence[Way]) -> list[Way]:
        different: list[Way] = []
        for way in ways:
            parts: tuple[Way, ...] = (way,) if way != "size and batch" or self.takes(way) else ("size", "batch")
            different.extend(part for part in parts if not self._agrees(module, part))
        return different

    def _filled(self, module: nn.Module, state: State) -> nn.Module:
        """Return a copy of a module that holds other tensors."""
        # A rebuilt module may know a shared tensor by another of its names.
        state = {**{p: state[first] for p, first in self._names.items() if first in state}, **state}
        # What a run may write to is its own.
        buffers = {path: state[path].clone() for path, _ in module.named_buffers() if path in state}
        copied = duplicate(module, {**state, **buffers})
        named = {path for path, _ in [*module.named_parameters(), *module.named_buffers()]}
        layers = dict(copied.named_modules())
        for path in state.keys() - named - self._names.keys():
            # A bias that the cut adds. A rebuilt module has no place for layers that nothing calls.
            owner, _, name = path.rpartition(".")
            if owner in layers and name == "bias":
                layers[owner].register_parameter(name, nn.Parameter(state[path]))
        return (copied if self._dtype is None else copied.to(self._dtype)).eval()

    def _agrees(self, module: nn.Module, way: Way) -> bool:
        found = self._find(way)
        if found is None:
            return True
        masked, cut, _ = self._drawn(way)
        try:
            actual = _run(self._filled(module, cut), found.probe)
        except Exception:  # whatever the user's code raises when its widths change
            return False
        truth = found.truth
        if actual.draws != truth.draws and self._stand_in is None:
            return False  # a dropout that is gone may show in no number, where what it drops is zero
        if [a.shape for a in actual.outputs] != [e.shape for e in truth.outputs]:
            return False
        pairs = [*zip(actual.outputs, truth.outputs, strict=True), *self._statistics(actual, truth)]
        if actual.scores is not None and truth.scores is not None and actual.scores.shape == truth.scores.shape:
            pairs.append((actual.scores, truth.scores))
        if all(_close(a, e) for a, e in pairs):
            return True
        # A model that casts to a coarser dtype inside rounds more than float64 does: find out how much.
        shaken = {path: _shaken(path, tensor) for path, tensor in masked.items()}
        noisy = self._original(self._filled(self.graph.model, shaken), shaken, found.probe)
        if noisy is None:
            return False
        if any(_drowns(e, n) for e, n in zip(truth.outputs, noisy.outputs, strict=False)):
            raise _ChaosError
        others = [*noisy.outputs, *(other for _, other in self._statistics(actual, noisy))]
        others += [noisy.scores] if len(others) < len(pairs) and noisy.scores is not None else []
        return len(others) == len(pairs) and all(_close(a, e, n) for (a, e), n in zip(pairs, others, strict=True))

    def _statistics(self, actual: "_Ran", truth: "_Ran") -> list[tuple[Tensor, Tensor]]:
        """Pair what a module's buffers hold after a run with what they should: what batch norms learn, above all."""
        expected = self._cut_down(truth.buffers) if truth.buffers else {}
        return [(actual.buffers[path], value) for path, value in expected.items() if path in actual.buffers]

    def _find(self, way: Way) -> "_Found | None":
        """Return inputs that the original takes that way, and what it makes of them (None if it takes none)."""
        if way not in self._found:
            self._found[way] = None
            masked, _, reference = self._drawn(way)
            for probe in self._probes(way):
                truth = self._original(reference, masked, probe)
                if truth is not None:
                    self._found[way] = _Found(probe, truth)
                    break
        return self._found[way]

    def _original(self, reference: nn.Module, state: State, probe: "_Probe") -> "_Ran | None":
        try:
            if self._stand_in is None:
                return _run(self._filled(self.graph.model, state) if probe.training else reference, probe)
            with torch.no_grad():
                return _Ran(_tensors(self._stand_in(state, probe.args, probe.kwargs)))
        except Exception as error:  # whatever the user's code raises at a size or in a mode that it does not take
            self._error = error
            return None

    def _probes(self, way: Way) -> Iterator["_Probe"]:
        """Yield inputs for a way of running; the original may not take the first of them."""
        args, kwargs = self.graph.args, self.graph.kwargs
        if way == "traced":
            yield self._noise(args, kwargs)
        elif self._stand_in is not None:
            return
        elif way in _TRAINED_AT:
            for other in _TRAINED_AT[way]:
                if (found := self._find(other)) is not None:
                    yield replace(found.probe, training=True)
        elif way == "batch":
            yield self._noise(*_reshaped(args, kwargs, None, self._more))
        else:
            # Sides of their own first: a height in place of a width shows in no square.
            for change in (_uneven, _smaller, _larger):
                inputs = _reshaped(args, kwargs, change, self._more if way == "size and batch" else 0)
                if [t.shape[2:] for t in _tensors(inputs)] != [t.shape[2:] for t in _tensors((args, kwargs))]:
                    yield self._noise(*inputs)

    def _noise(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "_Probe":
        generator = torch.Generator().manual_seed(0)

        def noise(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            return drawn.to(value.device, self._dtype or value.dtype)

        args, kwargs = pytree.tree_map(noise, (args, kwargs))
        return _Probe(args, kwargs)


class _ChaosError(Exception):
    """With these tensors one rounding becomes as large as the outputs themselves: they show nothing."""


@dataclass(frozen=True, eq=False)
class _Probe:
    """Inputs of noise, and the mode to run in."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    training: bool = False


@dataclass(frozen=True, eq=False)
class _Found:
    """Inputs that the original takes, and what comes of them."""

    probe: _Probe
    truth: "_Ran"


@dataclass(frozen=True, eq=False)
class _Ran:
    """What a run gives, (in training) what the buffers hold afterwards, and what stands behind integers.

    `scores` is what the last operation read that makes no numbers but whole ones, where the outputs are those alone.
    `draws` is how often it drew at random (in training).
    """

    outputs: list[Tensor]
    buffers: dict[str, Tensor] = field(default_factory=dict)
    scores: Tensor | None = None
    draws: int = 0


def random_state(named: State, dtype: torch.dtype | None = None, gain: float = 1.0) -> dict[str, Tensor]:
    """Draw tensors in the shape of a model's own, so that every branch of it counts and none explodes.

    Matrices and kernels are scaled by their fan-in, and add up to nothing. Scales (of norms, layers, gates) lie around
    one, never near zero, whatever they are in the model; biases around zero. Buffers keep their values, but for the
    statistics of norms: code may depend on what stands in a buffer. What a tensor gets depends on its path alone, not
    on its neighbours.

    Parameters
    ----------
    named
        Parameters and buffers by path.
    dtype
        Floating-point type of what is drawn; None for that of each tensor.
    gain
        Of kernels, beside that with which activations keep their size. Very deep networks need less, or one rounding
        in the first layer becomes another output.
    """
    drawn: dict[str, Tensor] = {}
    for path, tensor in named.items():
        to = dtype or tensor.dtype
        if not tensor.is_floating_point():
            drawn[path] = tensor.detach().clone()
            continue
        if not _is_drawn(path, tensor):
            drawn[path] = tensor.detach().to(to, copy=True)
            continue
        value = _noise(path, tensor)
        if _is_shift(path):
            value *= 0.3
        elif _is_kernel(tensor):
            # Without a sum, so that what a kernel makes has both signs though all that it reads is positive: else an
            # activation in the wrong place may change nothing.
            rows = value.flatten(1)
            if rows.shape[1] > 3:
                rows -= rows.mean(1, keepdim=True)
            rows *= gain * math.sqrt(6 / max(1, rows.shape[1]))
        else:
            value = value.div_(2).add_(1)
        drawn[path] = value.to(tensor.device, to)
    return drawn


def turned(state: State, named: State) -> dict[str, Tensor]:
    """Return another draw: kernels, biases and running means with the other sign.

    A channel that is dead in one draw, because what reaches its activation is negative for every image, is alive in
    the other.

    Parameters
    ----------
    state
        Tensors by path, drawn by :func:`random_state` and then masked or cut.
    named
        The model's own parameters and buffers by path.
    """
    return {
        path: -tensor
        if path not in named or (_is_drawn(path, named[path]) and (_is_shift(path) or _is_kernel(named[path])))
        else tensor
        for path, tensor in state.items()
    }


def _is_drawn(path: str, tensor: Tensor) -> bool:
    return tensor.is_floating_point() and (
        isinstance(tensor, nn.Parameter) or path.rpartition(".")[2].startswith("running_")
    )


def _is_shift(path: str) -> bool:
    leaf = path.rpartition(".")[2]
    return "bias" in leaf or leaf == "running_mean"


def _is_kernel(tensor: Tensor) -> bool:
    return sum(length > 1 for length in tensor.shape) > 1


def _noise(path: str, tensor: Tensor) -> Tensor:
    """Return numbers between -1 and 1, in a tensor's shape, that depend on its path alone."""
    # Pieces of one long noise: of prime length, so that no two rows of a matrix are the same piece.
    start = zlib.crc32(path.encode()) % _PRIME
    drawn = torch.empty(tensor.numel(), dtype=torch.float64)
    noise, done = _noise_of_prime_length(), 0
    while done < len(drawn):
        piece = noise[start : start + len(drawn) - done]
        drawn[done : done + len(piece)] = piece
        start, done = 0, done + len(piece)
    return drawn.view(tensor.shape)


_PRIME = 1048573


@functools.cache
def _noise_of_prime_length() -> Tensor:
    """Return numbers drawn evenly from [-1, 1)."""
    return torch.rand(_PRIME, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1


class _NothingRandom(TorchDispatchMode):
    """Replaces what is drawn at random by constants, the same in a network of any width.

    A network is run twice: once with draws at which dropout and stochastic depth keep everything, so that every branch
    is seen, and once with draws at which they take away, so that it is seen whether they are there at all.
    """

    def __init__(self, *, keeps: bool) -> None:
        super().__init__()
        self._keeps = keeps
        self.draws = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet is aten.native_dropout:
            self.draws += 1
            kept = args[0].clone() if self._keeps else args[0] * 0.5
            return kept, torch.ones_like(args[0], dtype=torch.bool)
        name = packet.__name__
        if not any(name.startswith(random) for random in _RANDOM):
            return func(*args, **kwargs)
        self.draws += 1
        made = func(*args, **kwargs)
        if not made.is_floating_point():
            return made.zero_()
        kept, taken = (1, 0.5) if name.startswith("bernoulli") else (0.5, 0.03)
        return made.fill_(kept if self._keeps else taken)


class _BehindIntegers(TorchDispatchMode):
    """Keeps what was read by the last operation that makes whole numbers out of others (an argmax, a comparison)."""

    def __init__(self) -> None:
        super().__init__()
        self.scores: Tensor | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        made = func(*args, **(kwargs or {}))
        read = [tensor for tensor in _tensors(args) if tensor.is_floating_point()]
        if read and not any(tensor.is_floating_point() for tensor in _tensors(made)):
            self.scores = read[0].clone()
        return made


_RANDOM = ("bernoulli", "rand", "normal", "uniform", "exponential", "cauchy", "log_normal", "geometric", "multinomial")


@contextmanager
def _same_draws() -> Iterator[None]:
    """Seed every generator that a forward may ask, and put them back afterwards."""
    python, arrays = random.getstate(), np.random.get_state()
    # Those of devices that are in use alone: to ask for others would start them.
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)


def _run(module: nn.Module, probe: _Probe) -> _Ran:
    module.train(probe.training)
    args, kwargs = pytree.tree_map(_copied, (probe.args, probe.kwargs))
    with torch.no_grad(), _same_draws(), surroundings_kept(module):
        if not probe.training:
            outputs = _tensors(module(*args, **kwargs))
            if any(output.is_floating_point() for output in outputs):
                return _Ran(outputs)
            args, kwargs = pytree.tree_map(_copied, (probe.args, probe.kwargs))
            with _BehindIntegers() as behind:
                module(*args, **kwargs)
            return _Ran(outputs, scores=behind.scores)
        seen: list[Tensor] = []
        draws = 0
        for keeps in (True, False):
            with _NothingRandom(keeps=keeps) as drawing:
                seen += _tensors(pytree.tree_map(_copied, module(*args, **kwargs)))
            draws += drawing.draws
        return _Ran(seen, dict(module.named_buffers()), draws=draws)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _tensors(nest: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(nest) if isinstance(leaf, Tensor)]


def _reshaped(
    args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[[int, int], int] | None, more: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return inputs with so many more images, or images of another size, filled by repeating what is there."""
    lengths = [len(leaf) for leaf in _tensors((args, kwargs)) if leaf.ndim]
    batch = lengths[0] if lengths else 0

    def reshape(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim:
            return value
        if change is not None:
            for dim in range(2, value.ndim):
                length = change(value.shape[dim], dim)
                index = torch.arange(length) % value.shape[dim]
                value = value.index_select(dim, index.to(value.device))
        return torch.cat([value, *[value[:1]] * more]) if len(value) == batch else value

    return pytree.tree_map(reshape, (args, kwargs))


def _smaller(length: int, dim: int = 2) -> int:  # noqa: ARG001 (all changes are called alike)
    """Return a smaller side that strided networks still like: three quarters, as a multiple of 32 (or 4, or 1)."""
    step = 32 if length >= 64 else 4 if length >= 8 else 1
    return max(1, length * 3 // 4 // step * step)


def _uneven(length: int, dim: int) -> int:
    """Return a smaller height, and still smaller sides beside it."""
    return _smaller(length) if dim == 2 else _smaller(_smaller(length))


def _larger(length: int, dim: int = 2) -> int:  # noqa: ARG001 (all changes are called alike)
    return length + (32 if length >= 32 else max(1, length))


def _tells(outputs: list[Tensor]) -> bool:
    """Tell whether outputs are finite enough, and varied enough, to show an error."""
    finite = [output[output.isfinite()] if output.is_floating_point() else output.flatten() for output in outputs]
    return any(
        2 * len(f) >= o.numel() > 0 and len(f) > 0 and bool((f != f[0]).any())
        for f, o in zip(finite, outputs, strict=True)
    )


def _shaken(path: str, tensor: Tensor) -> Tensor:
    """Move every number by about one rounding."""
    if not tensor.is_floating_point():
        return tensor
    signs = _noise(path, tensor).sign_().to(tensor.device, tensor.dtype)
    return signs.mul_(torch.finfo(tensor.dtype).eps).add_(1).mul_(tensor)


def _drowns(expected: Tensor, noisy: Tensor) -> bool:
    """Tell whether one rounding of the weights moves an output by more than a few hundredths of its size."""
    if not expected.is_floating_point() or expected.shape != noisy.shape:
        return False
    expected, noisy = (t.double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) for t in (expected, noisy))
    return float((noisy - expected).norm()) > _COARSE * float(expected.norm())


def _close(actual: Tensor, expected: Tensor, noisy: Tensor | None = None) -> bool:
    """Compare two outputs number by number.

    A number counts beside the largest of the least slice through it: a probability beside the other probabilities,
    though pixels stand in the same tensor, and neither beside a masked score of -1e38. What is not finite must be the
    same.
    """
    if not actual.is_floating_point():
        return bool((actual == expected).all())
    if actual.numel() == 0:
        return True
    finite = expected.isfinite()
    if not bool((finite == actual.isfinite()).all()):
        return False
    odd = ~finite
    if not torch.equal(actual[odd].nan_to_num(nan=0.5), expected[odd].nan_to_num(nan=0.5)):
        return False
    actual, expected = (t.double().masked_fill(odd, 0) for t in (actual, expected))
    scale = expected.abs().max().expand_as(expected)
    for dim in range(expected.ndim):
        others = [d for d in range(expected.ndim) if d != dim]
        scale = torch.minimum(scale, expected.abs().amax(others, keepdim=True) if others else expected.abs())
    allowed = _RELATIVE * expected.abs() + _OF_SLICE * scale
    if noisy is not None:
        if noisy.shape != expected.shape:
            return False
        moved = (noisy.double().masked_fill(odd, 0) - expected).abs().nan_to_num(nan=0.0, posinf=0.0)
        # One run shows no more than one draw of the rounding: numbers beside it may have moved as far.
        for dim in range(moved.ndim):
            others = [d for d in range(moved.ndim) if d != dim]
            spread = moved.square().mean(others, keepdim=True).sqrt() if others else moved
            allowed = torch.maximum(
                allowed, torch.minimum(_ROUNDINGS * spread.expand_as(allowed), _COARSE * scale + allowed)
            )
    return bool(((actual - expected).abs() <= allowed).all())
