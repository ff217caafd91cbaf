"""Tensors that are computed from parameters alone: which of their dimensions still are dimensions of a parameter.

A kernel may be standardised, masked or normalised before it is used; a scale may be the softmax of a parameter. What a
cut needs to know of such a value is, for every dimension, whether its indices are those of a parameter's dimension (so
that cutting the parameter cuts the value), and which dimensions of parameters have been reduced over (so that nothing
may be cut there, because every number of the value depends on all of them). No label is made for any element.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
Place = tuple[str, int]
"""A dimension of a parameter: its path, and the number of the dimension."""
_NOWHERE: frozenset[Place] = frozenset()


@dataclass(frozen=True)
class Axis:
    """A run of indices inside one dimension of a value.

    Attributes
    ----------
    length
        Number of indices.
    places
        Dimensions of parameters whose index i is index i here. None is known where the axis is `lost`.
    vanishes
        Whether the value is zero at index i once all parameters are zero at index i of their places.
    flat
        Whether the value does not change along the axis.
    """

    length: int
    places: frozenset[Place] = _NOWHERE
    vanishes: bool = False
    flat: bool = False

    @property
    def lost(self) -> bool:
        """Whether the value changes along the axis in a way that is no parameter's."""
        return not self.flat and not self.places


Dimension = tuple[Axis, ...]


@dataclass(frozen=True)
class Stored:
    """A value computed from parameters alone; every dimension is a product of axes (none where its length is one).

    `mixed` places have been reduced over. So have `scaled` ones, but what vanishes there changes no more than a scale,
    which is made good.
    """

    dimensions: tuple[Dimension, ...]
    mixed: frozenset[Place] = _NOWHERE
    scaled: frozenset[Place] = _NOWHERE

    @classmethod
    def of(cls, path: str, shape: Sequence[int]) -> "Stored":
        """Return a parameter as it is stored."""
        return cls(tuple(_one(Axis(n, frozenset({(path, d)}), vanishes=True)) for d, n in enumerate(shape)))

    @classmethod
    def lost(cls, shape: Sequence[int], mixed: Iterable[Place] = ()) -> "Stored":
        """Return a value about which no more is known than what it depends on."""
        return cls(tuple(_one(Axis(n)) for n in shape), frozenset(mixed))

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the dimensions."""
        return tuple(prod(axis.length for axis in dimension) for dimension in self.dimensions)

    @property
    def places(self) -> frozenset[Place]:
        """Every dimension of a parameter that the value depends on."""
        return self.mixed.union(self.scaled, *(axis.places for dimension in self.dimensions for axis in dimension))

    @property
    def paths(self) -> list[str]:
        """Parameters that the value is computed from."""
        return sorted({path for path, _ in self.places})

    def rows(self, dim: int) -> frozenset[Place]:
        """Return what must be cut so that the value is cut along a dimension, and changes nowhere else (or nothing)."""
        return self._alone(dim, self.mixed | self.scaled)

    def columns(self, dim: int) -> frozenset[Place]:
        """Return the same where in addition the value vanishes with what is stored, and nothing else changes then."""
        places = self._alone(dim, self.mixed)
        return places if places and self.dimensions[dim][0].vanishes else _NOWHERE

    def _alone(self, dim: int, taken: frozenset[Place]) -> frozenset[Place]:
        dimension = self.dimensions[dim]
        return _NOWHERE if len(dimension) != 1 or dimension[0].places & taken else dimension[0].places


def _one(axis: Axis) -> Dimension:
    return () if axis.length == 1 else (axis,)


def _places(dimension: Dimension) -> frozenset[Place]:
    return _NOWHERE.union(*(axis.places for axis in dimension))


def compute(node: fx.Node, operands: Sequence[Stored], arguments: dict[str, Any]) -> Any:
    """Return what an operation on stored values makes: one value, or one for each output.

    Parameters
    ----------
    operands
        The tensors that the operation reads, in order.
    arguments
        All its arguments by name, tensors being stored values.
    """
    target: Any = node.target
    name = target.overloadpacket.__name__.removesuffix("_")
    made = node.meta.get("val")
    outputs = [made] if isinstance(made, Tensor) else [m for m in made or () if isinstance(m, Tensor)]
    shapes = [tuple(int(n) for n in output.shape) for output in outputs]
    rule = _RULES.get(name) or (_pointwise if torch.Tag.pointwise in target.tags else None)
    # A scale can be made good only right where it comes from.
    operands = [replace(one, mixed=one.mixed | one.scaled, scaled=_NOWHERE) for one in operands]
    values = rule(name, operands, arguments, shapes) if rule and shapes else None
    if values is None:
        everything = frozenset().union(*(operand.places for operand in operands))
        values = [Stored.lost(shape, everything) for shape in shapes]
    if isinstance(made, Tensor):
        return values[0]
    found = iter(values)
    return type(made)(next(found) if isinstance(m, Tensor) else m for m in made) if made is not None else None


_ODD = frozenset(
    "neg abs relu sqrt sign tanh square sin asin atan sinh hardtanh leaky_relu elu gelu silu mish erf expm1 log1p "
    "hardswish softsign ceil floor round trunc nan_to_num relu6 selu celu".split()
)
"""Functions of one value that are zero at zero."""


def _pointwise(
    name: str, operands: list[Stored], arguments: dict[str, Any], shapes: list[tuple[int, ...]]
) -> list[Stored]:
    """Combine values element by element."""
    (shape,) = shapes
    mixed = set().union(*(operand.mixed for operand in operands))
    scalars = [v for k, v in arguments.items() if isinstance(v, (int, float)) and k not in ("alpha", "rounding_mode")]
    dimensions = []
    for dim in range(-len(shape), 0):
        given = [operand.dimensions[dim] if -dim <= len(operand.dimensions) else () for operand in operands]
        dimension, gone = _combine(given, shape[dim])
        mixed |= gone
        vanishes = [all(axis.vanishes and not axis.flat for axis in part) if part else False for part in given]
        if name in ("mul", "multiply"):
            zero = any(vanishes)
        elif name in ("add", "sub", "subtract", "rsub"):
            zero = all(vanishes) and not any(scalars)
        elif name in ("div", "divide", "true_divide"):
            zero = vanishes[0] and not any(given[1:])
        elif name == "pow":
            zero = isinstance(arguments.get("self"), Stored) and all(vanishes) and all(power > 0 for power in scalars)
        else:
            zero = name in _ODD and all(vanishes)
        dimensions.append(tuple(replace(axis, vanishes=zero) for axis in dimension))
    return [Stored(tuple(dimensions), frozenset(mixed))]


def _combine(given: list[Dimension], length: int) -> tuple[Dimension, frozenset[Place]]:
    """Put the axes of one dimension of several operands together; return also the places that are lost by that."""
    if length == 1:
        return (), _NOWHERE
    parts = [part for part in given if part and not all(axis.flat for axis in part)]
    if not parts:
        return (Axis(length, flat=True),), _NOWHERE
    every = _NOWHERE.union(*(_places(part) for part in parts))
    lengths = {tuple(axis.length for axis in part) for part in parts}
    if len(lengths) > 1:
        return (Axis(length),), every
    axes: list[Axis] = []
    gone: set[Place] = set()
    for together in zip(*parts, strict=True):
        changing = [axis for axis in together if not axis.flat]
        places = _NOWHERE.union(*(axis.places for axis in changing))
        if not changing:
            axes.append(together[0])
        elif any(axis.lost for axis in changing):
            axes.append(Axis(together[0].length))
            gone |= places
        else:
            axes.append(Axis(together[0].length, places, vanishes=any(axis.vanishes for axis in changing)))
    return tuple(axes), frozenset(gone)


def _reduce(
    name: str, operands: list[Stored], arguments: dict[str, Any], shapes: list[tuple[int, ...]]
) -> list[Stored] | None:
    """Reduce over some dimensions: what is left depends on all indices of those."""
    if len(operands) > 1:  # max and min of two tensors
        return _pointwise(name, operands, arguments, shapes)
    value = operands[0]
    count = len(value.dimensions)
    dim = arguments.get("dim")
    dims = range(count) if dim is None or dim == [] else [d % count for d in (dim if isinstance(dim, list) else [dim])]
    mixed = value.mixed.union(*(_places(value.dimensions[d]) for d in dims))
    dims = set(dims)
    zero = name != "logsumexp"
    made = []
    for shape in shapes:
        if len(shape) == count:
            dimensions = [() if d in dims else dimension for d, dimension in enumerate(value.dimensions)]
        else:
            dimensions = [dimension for d, dimension in enumerate(value.dimensions) if d not in dims]
        kept = tuple(tuple(replace(axis, vanishes=axis.vanishes and zero) for axis in part) for part in dimensions)
        made.append(Stored(kept, mixed))
    return made if all(one.shape == shape for one, shape in zip(made, shapes, strict=True)) else None


def _softmax(
    _name: str, operands: list[Stored], arguments: dict[str, Any], _shapes: list[tuple[int, ...]]
) -> list[Stored]:
    value = operands[0]
    mixed = value.mixed | _places(value.dimensions[arguments["dim"]]) if value.dimensions else value.mixed
    return [_nowhere_zero(Stored(value.dimensions, mixed))]


def _nowhere_zero(value: Stored) -> Stored:
    return replace(value, dimensions=tuple(tuple(replace(a, vanishes=False) for a in d) for d in value.dimensions))


def _norm(
    name: str, operands: list[Stored], arguments: dict[str, Any], shapes: list[tuple[int, ...]]
) -> list[Stored] | None:
    """Standardise over some dimensions; scales and shifts run along the others, or along the last ones."""
    value, extra = operands[0], operands[1:]
    count = len(value.dimensions)
    if name in ("batch_norm", "instance_norm"):
        over = [d for d in range(count) if d != 1 and not (name == "instance_norm" and d == 0)]
        tail = count - 2
    else:
        over, tail = list(range(count - len(arguments["normalized_shape"]), count)), 0
    mixed = value.mixed.union(*(_places(value.dimensions[d]) for d in over))
    scales = [replace(one, dimensions=(*one.dimensions, *((),) * tail)) for one in extra]
    (result,) = _pointwise(name, [Stored(value.dimensions, mixed), *scales], {}, [value.shape])
    return [_nowhere_zero(result)] if len(shapes) == 1 else None


def _weight_norm(
    _name: str, operands: list[Stored], arguments: dict[str, Any], _shapes: list[tuple[int, ...]]
) -> list[Stored] | None:
    """Scale the direction v of every index of `dim` to the length g: the other dimensions are reduced over."""
    direction, length = operands
    dim = arguments["dim"]
    if dim < 0:
        return None  # one length for all
    others = [d for d in range(len(direction.dimensions)) if d != dim]
    mixed = direction.mixed.union(*(_places(direction.dimensions[d]) for d in others))
    (result,) = _pointwise("div", [Stored(direction.dimensions, mixed), length], {}, [direction.shape])
    return [result]


def _reshape(
    _name: str, operands: list[Stored], _arguments: dict[str, Any], shapes: list[tuple[int, ...]]
) -> list[Stored]:
    """Split and join dimensions: axes stay whole where the new boundaries let them."""
    value = operands[0]
    axes = [axis for dimension in value.dimensions for axis in dimension]
    (shape,) = shapes
    mixed = set(value.mixed)
    dimensions: list[Dimension] = []
    for wanted in shape:
        if wanted == 1:
            dimensions.append(())
            continue
        taken: list[Axis] = []
        while axes and prod(axis.length for axis in taken) < wanted:
            taken.append(axes.pop(0))
        size = prod(axis.length for axis in taken)
        if size != wanted:
            # A boundary inside an axis: what it was is lost, unless nothing changes along it.
            flat = all(axis.flat for axis in taken)
            mixed |= _places(tuple(taken))
            rest = size // wanted if size % wanted == 0 else 0
            if not rest:
                return [Stored.lost(shape, mixed.union(*(axis.places for axis in axes)))]
            axes.insert(0, Axis(rest, flat=flat))
            taken = [Axis(wanted, flat=flat)]
        dimensions.append(tuple(taken))
    return [Stored(tuple(dimensions), frozenset(mixed))]


def _permute(
    name: str, operands: list[Stored], arguments: dict[str, Any], shapes: list[tuple[int, ...]]
) -> list[Stored] | None:
    """Exchange dimensions: how, a tensor of the same number of dimensions tells."""
    value = operands[0]
    count = len(value.dimensions)
    target = getattr(aten, name)
    template = torch.empty(tuple(range(2, 2 + count)), device="meta")
    given = {k: v for k, v in arguments.items() if not isinstance(v, Stored)}
    try:
        order = [length - 2 for length in target(template, **given).shape]
    except (RuntimeError, TypeError, IndexError):
        return None
    made = Stored(tuple(value.dimensions[d] for d in order), value.mixed)
    return [made] if [made.shape] == shapes else None


def _expand(
    _name: str, operands: list[Stored], _arguments: dict[str, Any], shapes: list[tuple[int, ...]]
) -> list[Stored]:
    value = operands[0]
    (shape,) = shapes
    given = ((),) * (len(shape) - len(value.dimensions)) + value.dimensions
    made = tuple(d if d or n == 1 else (Axis(n, flat=True),) for d, n in zip(given, shape, strict=True))
    return [Stored(made, value.mixed)]


def _pick(
    name: str, operands: list[Stored], arguments: dict[str, Any], shapes: list[tuple[int, ...]]
) -> list[Stored] | None:
    """Take some of the indices of one dimension: the others stay what they are."""
    value = operands[0]
    count = len(value.dimensions)
    dim = int(arguments.get("dim") or 0) % count
    mixed = value.mixed | _places(value.dimensions[dim])
    made = []
    for shape in shapes:
        kept = list(value.dimensions)
        if len(shape) == count - 1:
            del kept[dim]
        elif name in ("slice", "narrow") and shape[dim] == value.shape[dim]:
            made.append(value)
            continue
        else:
            flat = all(axis.flat for axis in kept[dim])
            kept[dim] = _one(Axis(shape[dim], flat=flat))
        made.append(Stored(tuple(kept), mixed))
    return made if all(one.shape == shape for one, shape in zip(made, shapes, strict=True)) else None


def _index(
    _name: str, operands: list[Stored], arguments: dict[str, Any], shapes: list[tuple[int, ...]]
) -> list[Stored] | None:
    """Pick indices of neighbouring dimensions (rows of a table): the other dimensions stay what they are."""
    value, indices = operands[0], arguments["indices"]
    picked = [dim for dim, index in enumerate(indices) if index is not None]
    if not picked or picked != list(range(picked[0], picked[-1] + 1)):
        return None
    (shape,) = shapes
    first, last = picked[0], picked[-1] + 1
    count = len(shape) - len(value.dimensions) + len(picked)
    mixed = value.mixed.union(
        *(_places(value.dimensions[dim]) for dim in picked), *(index.places for index in operands[1:])
    )
    new = tuple(_one(Axis(length)) for length in shape[first : first + count])
    made = Stored((*value.dimensions[:first], *new, *value.dimensions[last:]), mixed)
    return [made] if made.shape == shape else None


def _join(
    name: str, operands: list[Stored], arguments: dict[str, Any], shapes: list[tuple[int, ...]]
) -> list[Stored] | None:
    """Stack or concatenate: along the joint nothing is known, elsewhere the values lie side by side."""
    (shape,) = shapes
    dim = int(arguments.get("dim") or 0) % len(shape)
    parts = [list(operand.dimensions) for operand in operands if prod(operand.shape)]
    mixed = set().union(*(operand.mixed for operand in operands))
    for part in parts:
        if name == "stack":
            part.insert(dim, ())
        else:
            mixed |= _places(part[dim])
            part[dim] = ()
    if any(len(part) != len(shape) for part in parts):
        return None
    dimensions = []
    for d, length in enumerate(shape):
        if d == dim:
            dimensions.append(_one(Axis(length)))
            continue
        given = [part[d] for part in parts]
        # A part that does not change along the dimension is no obstacle, one that is lost is.
        dimension, gone = _combine(given, length)
        mixed |= gone
        vanishes = all(part and all(axis.vanishes for axis in part) for part in given)
        dimensions.append(tuple(replace(axis, vanishes=vanishes) for axis in dimension))
    return [Stored(tuple(dimensions), frozenset(mixed))]


def _pad(_name: str, operands: list[Stored], arguments: dict[str, Any], shapes: list[tuple[int, ...]]) -> list[Stored]:
    value = operands[0]
    (shape,) = shapes
    mixed, dimensions = set(value.mixed), []
    zero = not arguments.get("value") and arguments.get("mode", "constant") == "constant"
    for dimension, before, after in zip(value.dimensions, value.shape, shape, strict=True):
        if before != after:
            mixed |= _places(dimension)
            dimensions.append(_one(Axis(after)))
        else:
            dimensions.append(tuple(replace(axis, vanishes=axis.vanishes and zero) for axis in dimension))
    return [Stored(tuple(dimensions), frozenset(mixed))]


def _resize(
    _name: str, operands: list[Stored], _arguments: dict[str, Any], shapes: list[tuple[int, ...]]
) -> list[Stored]:
    """Resize the dimensions behind the second."""
    value = operands[0]
    (shape,) = shapes
    mixed = value.mixed.union(*(_places(dimension) for dimension in value.dimensions[2:]))
    return [Stored((*value.dimensions[:2], *(_one(Axis(length)) for length in shape[2:])), mixed)]


_RULES: dict[str, Any] = {
    name: rule
    for names, rule in (
        ("mean sum amax amin var std var_mean std_mean prod logsumexp linalg_vector_norm norm max min median", _reduce),
        ("softmax log_softmax _softmax _log_softmax", _softmax),
        ("batch_norm instance_norm layer_norm rms_norm", _norm),
        ("_weight_norm", _weight_norm),
        ("view reshape _unsafe_view view_as reshape_as flatten unflatten squeeze unsqueeze ravel", _reshape),
        ("permute transpose t numpy_T swapaxes swapdims movedim moveaxis mT adjoint", _permute),
        ("expand expand_as broadcast_to", _expand),
        ("select slice narrow index_select chunk split split_with_sizes tensor_split unbind", _pick),
        ("index", _index),
        ("stack cat concat concatenate", _join),
        ("pad constant_pad_nd", _pad),
        (
            "upsample_nearest1d upsample_linear1d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d "
            "upsample_nearest3d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa "
            "_upsample_nearest_exact2d avg_pool2d max_pool2d adaptive_avg_pool2d",
            _resize,
        ),
    )
    for name in names.split()
}
