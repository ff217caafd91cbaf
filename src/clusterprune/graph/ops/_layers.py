"""What layers have in common: the labels of what a weight makes, the note of a call, and to run it anew."""

from typing import Any

from torch import Tensor, fx

from clusterprune.graph.ops._base import source_of
from clusterprune.graph.stored import Stored
from clusterprune.graph.walk import Kind, LayerCall, Parameter, TraceState


def rows_of(walk: TraceState, weight: Parameter | Stored, dim: int, count: int) -> Tensor:
    """Return the labels of the channels that a weight makes: the same ones at every call."""
    known = walk.known(weight, dim)
    return known if known is not None and len(known) == count else walk.space.new(count)


def note_call(
    walk: TraceState,
    node: fx.Node,
    kind: Kind,
    weight: Parameter | Stored,
    bias: Parameter | Stored | None,
    groups: int = 1,
    *,
    depthwise: bool = False,
) -> None:
    """Enter an application of a layer, unless its kernel has nothing to do with parameters."""
    path = bias.path if isinstance(bias, Parameter) else None
    source = source_of(node).name
    if isinstance(weight, Parameter):
        walk.calls.append(LayerCall(node.name, kind, weight.path, path, groups, source, depthwise))
    elif paths := weight.paths:
        # The parameter that has most of the kernel's dimensions is what it is made of; others scale or mask it.
        count = {path: len({dim for other, dim in weight.places if other == path}) for path in paths}
        likely = (".weight", ".original", ".original1")
        main = max(paths, key=lambda path: (count[path], f".{path}".endswith(likely)))
        walk.calls.append(LayerCall(node.name, kind, main, path, groups, source, depthwise, True, tuple(paths)))


def run_with_bias(
    target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """Call an operator that takes input, kernel and bias first, whether it had a bias or not."""
    return target(x, weight, bias, *args[3:], **{key: value for key, value in kwargs.items() if key != "bias"})
