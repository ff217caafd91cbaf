"""Tensors that hold one number everywhere, or the same along some dimensions: they are as wide as asked.

`zeros(…)` has no channels of its own and can be made with any width. Which dimension its channels run along shows only
where it meets other data: joined to maps or added to them. Until then its labels wait.
"""

from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from clusterprune.graph.labels import spread, varying_dims
from clusterprune.graph.rules import data_rule, is_layer, output_shape, rule
from clusterprune.graph.walk import Walk

aten = torch.ops.aten
JOINS = frozenset(packet for name in ("cat", "concat", "concatenate") if (packet := getattr(aten, name, None)))
EXPANSIONS = frozenset(
    packet for name in ("expand", "expand_as", "broadcast_to") if (packet := getattr(aten, name, None))
)


@dataclass(frozen=True)
class Uniform:
    """Data that is the same along `dims` (those with more than one entry), and may be cut along any one of them."""

    name: str
    shape: tuple[int, ...]
    dims: tuple[int, ...]
    reason: str


@rule("zeros ones full empty new_zeros new_ones new_full new_empty")
def constant(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Any:  # noqa: ARG001 (all rules are called alike)
    """Make a tensor of one number."""
    shape = tuple(output_shape(node))
    dims = tuple(dim for dim, length in enumerate(shape) if length > 1)
    reason = f"{node.name}: a constant"
    return Uniform(node.name, shape, dims, reason) if dims else walk.space.opaque(shape, reason)


@data_rule("zeros_like ones_like full_like empty_like rand_like randn_like")
def like(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Any:  # noqa: ARG001 (all rules are called alike)
    """Make a tensor as large as another, which is cut with it."""
    return a["self"]


def expanded(walk: Walk, node: fx.Node, labels: Any) -> Any:
    """Return what an expansion of data without channels makes: the same along every dimension that grew."""
    if not isinstance(labels, Tensor) or not walk.space.all_opaque(labels):
        return None
    shape = tuple(output_shape(node))
    before = (1,) * (len(shape) - labels.ndim) + tuple(labels.shape)
    grown = tuple(dim for dim, (old, new) in enumerate(zip(before, shape, strict=True)) if old == 1 < new)
    return Uniform(node.name, shape, grown, f"{node.name}: it has no channels") if grown else None


def settle(walk: Walk, node: fx.Node, nest: Any, values: MutableMapping[str, Any]) -> Any:
    """Give every waiting tensor among a call's arguments labels along the dimension where the others have theirs."""
    waiting = [value for value in _flat(nest) if isinstance(value, Uniform)]
    if not waiting:
        return nest
    known = [value for value in _flat(nest) if isinstance(value, Tensor)]
    dim = _channel_dim(walk, node, known)
    for uniform in waiting:
        here = len(uniform.shape) - len(output_shape(node)) + dim if dim is not None else None
        if len(uniform.shape) == 1 and is_layer(node.target):
            here = 0  # a bias of zeros
        if here is not None and here in uniform.dims:
            values[uniform.name] = spread(walk.space.new(uniform.shape[here]), here, uniform.shape)
        else:
            values[uniform.name] = walk.space.opaque(uniform.shape, uniform.reason)
    return _replace(nest, values)


def settle_all(walk: Walk, values: MutableMapping[str, Any]) -> None:
    """Give opaque labels to what never met anything."""
    for name, value in values.items():
        if isinstance(value, Uniform):
            values[name] = walk.space.opaque(value.shape, value.reason)


def _channel_dim(walk: Walk, node: fx.Node, known: list[Any]) -> int | None:
    """Return the dimension of a call's result along which its other operands have channels."""
    made = node.meta.get("val")
    if not isinstance(made, Tensor):
        return None
    rank = made.ndim
    found = set()
    for value in known:
        if not walk.space.all_opaque(value) and value.ndim <= rank:
            found |= {dim + rank - value.ndim for dim in varying_dims(walk.space.root_tensor(value))}
    if len(found) == 1:
        return found.pop()
    if getattr(node.target, "overloadpacket", None) in JOINS:
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        return dim % rank if isinstance(dim, int) else None
    # Nothing to go by: channels come second.
    return 1 if not found and rank > 1 else None


def _flat(nest: Any) -> Iterable[Any]:
    if isinstance(nest, (tuple, list)):
        for part in nest:
            yield from _flat(part)
    elif isinstance(nest, dict):
        yield from _flat(tuple(nest.values()))
    else:
        yield nest


def _replace(nest: Any, values: MutableMapping[str, Any]) -> Any:
    if isinstance(nest, Uniform):
        return values[nest.name]
    if isinstance(nest, (tuple, list)):
        return type(nest)(_replace(part, values) for part in nest)
    if isinstance(nest, dict):
        return {key: _replace(part, values) for key, part in nest.items()}
    return nest
