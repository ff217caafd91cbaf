"""Whether a cut module still computes what the original does with its channels masked (law 2).

The question is about code, not about numbers: does the forward that the user wrote pick the right channels now that
there are fewer? So it is not asked of the user's weights, which can hide a wrong answer (a branch scaled by 1e-6, a
residual block whose last layer starts at zero), but of random ones, drawn here so that every branch counts, and in
float64, where rounding is too small to be taken for an error whatever the model's own precision. The same random
tensors, masked at full size and cut, go into a copy of the original and into the module in question; then both see
the same noise, at the traced size, at another size and batch where the original takes them, and in training mode.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from clusterprune.errors import PlanError
from clusterprune.graph import ChannelGraph
from clusterprune.graph.export import canonical_paths
from clusterprune.graph.throwaway import duplicate
from clusterprune.surgery.closeness import close, drowns, tells
from clusterprune.surgery.random_tensors import State, shaken
from clusterprune.surgery.trial import Probe, Ran, larger, reshaped, run, smaller, tensors_in_nest, uneven

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
            if found is not None and tells(found.truth.outputs):
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
            actual = run(self._filled(module, cut), found.probe)
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
        if all(close(a, e) for a, e in pairs):
            return True
        # A model that casts to a coarser dtype inside rounds more than float64 does: find out how much.
        moved = {path: shaken(path, tensor) for path, tensor in masked.items()}
        noisy = self._original(self._filled(self.graph.model, moved), moved, found.probe)
        if noisy is None:
            return False
        if any(drowns(e, n) for e, n in zip(truth.outputs, noisy.outputs, strict=False)):
            raise _ChaosError
        others = [*noisy.outputs, *(other for _, other in self._statistics(actual, noisy))]
        others += [noisy.scores] if len(others) < len(pairs) and noisy.scores is not None else []
        return len(others) == len(pairs) and all(close(a, e, n) for (a, e), n in zip(pairs, others, strict=True))

    def _statistics(self, actual: "Ran", truth: "Ran") -> list[tuple[Tensor, Tensor]]:
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

    def _original(self, reference: nn.Module, state: State, probe: "Probe") -> "Ran | None":
        try:
            if self._stand_in is None:
                return run(self._filled(self.graph.model, state) if probe.training else reference, probe)
            with torch.no_grad():
                return Ran(tensors_in_nest(self._stand_in(state, probe.args, probe.kwargs)))
        except Exception as error:  # whatever the user's code raises at a size or in a mode that it does not take
            self._error = error
            return None

    def _probes(self, way: Way) -> Iterator["Probe"]:
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
            yield self._noise(*reshaped(args, kwargs, None, self._more))
        else:
            # Sides of their own first: a height in place of a width shows in no square.
            for change in (uneven, smaller, larger):
                inputs = reshaped(args, kwargs, change, self._more if way == "size and batch" else 0)
                if [t.shape[2:] for t in tensors_in_nest(inputs)] != [
                    t.shape[2:] for t in tensors_in_nest((args, kwargs))
                ]:
                    yield self._noise(*inputs)

    def _noise(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "Probe":
        generator = torch.Generator().manual_seed(0)

        def noise(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            return drawn.to(value.device, self._dtype or value.dtype)

        args, kwargs = pytree.tree_map(noise, (args, kwargs))
        return Probe(args, kwargs)


class _ChaosError(Exception):
    """With these tensors one rounding becomes as large as the outputs themselves: they show nothing."""


@dataclass(frozen=True, eq=False)
class _Found:
    """Inputs that the original takes, and what comes of them."""

    probe: Probe
    truth: "Ran"
