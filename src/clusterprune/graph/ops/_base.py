# pyright: reportUnnecessaryIsInstance=false, reportPrivateUsage=false
"""The seam of operators: what one says of itself, and the registry in which it is found.

An :class:`Op` tells all that cutting channels has to know of a family of operators: how labels go through it, how its
call is rewritten after a cut, what it costs, and which attributes of a module follow. Its fields are functions or plain
facts; None (or False) means that there is nothing to say. An operator that is not registered and does not work element
by element freezes what it reads, and is reported.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload, OpOverloadPacket

from clusterprune.errors import ArgumentError
from clusterprune.graph.nest import arguments_by_name, is_sequence, schema_of
from clusterprune.graph.stored import Stored, elementwise
from clusterprune.graph.walk import LayerCall, TraceState

aten = torch.ops.aten


@dataclass(frozen=True)
class CallEdit:
    """What a node calls after a cut, and on what."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class CutReader(Protocol):
    """Which channels stay alive, as a rewrite asks for it."""

    def along(self, name: str) -> list[np.ndarray]:
        """Return for each dimension of a node's value which of its indices stay, as flags."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a node's value after the cut."""
        ...

    def call_of(self, name: str) -> LayerCall:
        """Return the layer call of a node."""
        ...


@dataclass(frozen=True, eq=False)
class Extent:
    """The length of one dimension: a number, or one root label per index.

    A dimension over the inputs of a grouped convolution holds the inputs of one group only: `divisor` is then the
    number of groups, and the labels are those of all of them.
    """

    size: float
    labels: np.ndarray | None = None
    divisor: int = 1


@dataclass(frozen=True, eq=False)
class Term:
    """A product of lengths, as part of what a node (or a parameter) costs."""

    scale: float
    extents: tuple[Extent, ...]

    @property
    def value(self) -> float:
        """The product at the widths of the traced model."""
        return self.scale * float(np.prod([extent.size for extent in self.extents], dtype=float))


class CostReader(Protocol):
    """The lengths of a graph's dimensions, as a cost asks for them."""

    def along(self, node: Any, dim: int, divisor: int = 1) -> Extent:
        """Return the length of one dimension of a node's value, divided by a number of groups."""
        ...

    def all_of(self, node: Any, skip: tuple[int, ...] = ()) -> tuple[Extent, ...]:
        """Return the lengths of all dimensions of a node's value but some."""
        ...

    def shared(self, first: Any, dim: int, second: Any, other: int) -> Extent:
        """Return the length that two operands sum over, from whichever of them says more about it."""
        ...

    def measured(self, node: fx.Node) -> float:
        """Return the multiply-adds that PyTorch's counter finds in one call."""
        ...


@dataclass(frozen=True)
class LayerShapes:
    """How modules of some types mention widths.

    Attributes
    ----------
    types
        The types of the modules.
    widths
        From a module, the shape of its weight and whether it is depthwise: the attributes that fit that shape.
    shapes
        From a module: the shapes that its attributes ask of its tensors, by name.
    """

    types: tuple[type[nn.Module], ...]
    widths: Callable[[Any, tuple[int, ...], bool], dict[str, Any]]
    shapes: Callable[[Any], dict[str, tuple[int, ...]]]


LabelRule = Callable[[TraceState, fx.Node, dict[str, Any]], Any]
StoredRule = Callable[[str, list[Stored], dict[str, Any], list[tuple[int, ...]]], list[Stored] | None]
Rewrite = Callable[[CutReader, fx.Node], CallEdit]
Cost = Callable[[CostReader, fx.Node], "Sequence[Term] | None"]
STORED_ARGUMENTS = frozenset({"weight", "bias", "running_mean", "running_var"})
"""What operators call the arguments that a module's parameters and buffers are usually given in."""


def free(_reader: CostReader, _node: fx.Node) -> Sequence[Term]:
    """Cost nothing that PyTorch's counter counts."""
    return ()


@dataclass(frozen=True, eq=False)
class Op:
    """What a family of operators does to channels.

    Attributes
    ----------
    labels
        From the walk, the node and its arguments by name to the labels of what it makes. Activations are given as
        tensors of labels in their own shape, arguments in `parameters` as
        :class:`~clusterprune.graph.walk.Parameter`. None where one of the next three holds, or channels freeze.
    moves
        Only moves elements, and is executed on the labels themselves.
    passes
        Hands its first argument on.
    elementwise
        Works element by element. What PyTorch tags so need not be registered.
    parameters
        Names of the arguments in which `labels` takes parameters in place of labels.
    kernels
        Whether `labels` takes in these also what is computed from parameters (a kernel that is standardised).
    layer
        Whether it is a layer, which reads channels and makes new ones.
    homogeneous
        Whether f(a·x) = a·f(x) for every a > 0.
    statistic
        Whether norms are written with it.
    keeps_places
        Whether every number of the result belongs where the same number of the first argument stood.
    batch_dims
        Of a product: from its node and the node of an operand to the operand's dimensions that it takes as a batch.
    stored
        What it makes of values that are computed from parameters alone: from its name, these values, all arguments
        by name and the shapes of its results; None where nothing is known.
    rewrite
        The call after a cut, where it mentions sizes or positions.
    shifts
        Whether it takes a part of its first argument that may begin elsewhere after a cut.
    cost
        Its multiply-adds as products of lengths; None where PyTorch's counter is to be asked, once.
    resize
        From the module that calls it and the rewritten call: the attributes that the module needs.
    modules
        How the family's modules mention widths.
    run
        Of a layer: call it with another input, kernel and bias. Takes target, arguments and keywords, then these three.

    Examples
    --------
    An operator of one's own that scales every channel would freeze the channels that it reads. One registration lets
    them be cut, the scales with them:

    >>> import torch, clusterprune as cp
    >>> from torch import Tensor, nn
    >>> @torch.library.custom_op("shop::scale", mutates_args=())
    ... def scale(x: Tensor, weight: Tensor) -> Tensor:
    ...     return x * weight[:, None, None]
    >>> @scale.register_fake
    ... def _(x, weight):
    ...     return torch.empty_like(x)
    >>> class Scale(nn.Module):
    ...     def __init__(self, channels: int):
    ...         super().__init__()
    ...         self.weight = nn.Parameter(torch.ones(channels))
    ...
    ...     def forward(self, x: Tensor) -> Tensor:
    ...         return scale(x, self.weight)
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), Scale(8), nn.Conv2d(8, 4, 3)).eval()
    >>> cp.trace(net, torch.zeros(1, 3, 8, 8)).unknown
    {'shop.scale': ['scale']}
    >>> cp.register_op("shop::scale", cp.graph.by_channel("weight"))
    >>> cp.trace(net, torch.zeros(1, 3, 8, 8)).prunable
    (<Group 0: 8 channels, made by 0, read by 2>,)
    """

    labels: LabelRule | None = None
    moves: bool = False
    passes: bool = False
    elementwise: bool = False
    parameters: frozenset[str] = frozenset()
    kernels: bool = False
    layer: bool = False
    homogeneous: bool = False
    statistic: bool = False
    keeps_places: bool = False
    batch_dims: Callable[[fx.Node, fx.Node], set[int]] | None = None
    stored: StoredRule | None = None
    rewrite: Rewrite | None = None
    shifts: bool = False
    cost: Cost | None = None
    resize: Callable[[nn.Module, CallEdit], dict[str, Any]] | None = None
    modules: tuple[LayerShapes, ...] = ()
    run: Callable[..., Tensor] | None = None

    @property
    def keeps_elements(self) -> bool:
        """Whether it hands its argument's elements on, wherever they go."""
        return self.moves or self.passes


ELEMENTWISE = Op(elementwise=True, stored=elementwise, cost=free)
"""Works element by element."""

_REGISTRY: dict[str, Op] = {}


def register_op(targets: Any, op: Op) -> None:
    """Say what an operator does to channels; from then on every trace knows it. See :class:`Op` for an example.

    Parameters
    ----------
    targets
        An operator, or several: `torch.ops.library.name`, one overload of it, or its name. In a text names stand
        apart by spaces; "library::name" means all overloads, "library::name.overload" one, and a name without a
        library is one of ATen. A name that this PyTorch does not have does no harm.
    op
        What it does. It takes the place of what was said before.

    Raises
    ------
    ArgumentError
        If something among targets is neither an operator nor a name, or op is no :class:`Op`.
    """
    if not isinstance(op, Op):
        raise ArgumentError(f"op must be an Op, but got op={op!r}; Op(elementwise=True) is the simplest one")
    for name in _names(targets):
        _REGISTRY[name] = op
    op_of_target.cache_clear()


def _names(targets: Any) -> Iterable[str]:
    """Return the names of operators: library::name, or library::name.overload."""
    if isinstance(targets, str):
        return [name if "::" in name else f"aten::{name}" for name in targets.split()]
    if isinstance(targets, OpOverloadPacket):
        return [targets._qualified_op_name]
    if isinstance(targets, OpOverload):
        return [_full_name(targets)]
    if is_sequence(targets):
        return [name for target in targets for name in _names(target)]
    raise ArgumentError(
        f"targets must name operators, but got targets={targets!r}; give 'library::name' or torch.ops.library.name"
    )


def _full_name(target: Any) -> str:
    schema = schema_of(target)
    return f"{schema.name}.{schema.overload_name or 'default'}"


def registered() -> Mapping[str, Op]:
    """Return every registered operator by name."""
    return dict(_REGISTRY)


def op_of(node: fx.Node) -> Op | None:
    """Return what is known of the operator that a node calls."""
    return op_of_target(node.target)


@cache
def op_of_target(target: Any) -> Op | None:
    """Return what is known of an operator: by its overload, else by its name, else by PyTorch's tags."""
    if not isinstance(target, OpOverload):
        return None
    found = _REGISTRY.get(_full_name(target), _REGISTRY.get(schema_of(target).name))
    return ELEMENTWISE if found is None and _is_elementwise(target) else found


def _is_elementwise(target: Any) -> bool:
    """Tell whether an operator works element by element (in-place twins do not always carry the tag)."""
    if torch.Tag.pointwise in target.tags:
        return True
    if any(argument.name == "dim" for argument in schema_of(target).arguments):
        return False  # an overload that works along a dimension: max(a, dim) beside max(a, b)
    twin = getattr(aten, target.overloadpacket.__name__.removesuffix("_"), None)
    return twin is not None and any(torch.Tag.pointwise in getattr(twin, o).tags for o in twin.overloads())


def layer_shapes(module: nn.Module) -> LayerShapes | None:
    """Return how a module mentions widths, if a registered family knows modules of its type."""
    known = (shapes for op in _REGISTRY.values() for shapes in op.modules)
    return next((shapes for shapes in known if isinstance(module, shapes.types)), None)


def named_arguments(
    node: fx.Node, args: tuple[Any, ...] | None = None, kwargs: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return a node's arguments, or others in their place, by the names in its operator's schema; defaults included."""
    args = node.args if args is None else args
    return arguments_by_name(node.target, args, node.kwargs if kwargs is None else kwargs)


def shape_of(node: Any) -> list[int]:
    """Return the traced shape of a node's value."""
    return [int(length) for length in node.meta["val"].shape]


def source_of(node: fx.Node) -> fx.Node:
    """Return the node whose value is a node's first argument."""
    source = node.args[0]
    assert isinstance(source, fx.Node)  # noqa: S101 (a fact about exported graphs, for the type checker)
    return source
