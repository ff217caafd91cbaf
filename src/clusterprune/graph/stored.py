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
        return cls(tuple(as_dimension(Axis(n, frozenset({(path, d)}), vanishes=True)) for d, n in enumerate(shape)))

    @classmethod
    def lost(cls, shape: Sequence[int], mixed: Iterable[Place] = ()) -> "Stored":
        """Return a value about which no more is known than what it depends on."""
        return cls(tuple(as_dimension(Axis(n)) for n in shape), frozenset(mixed))

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


def as_dimension(axis: Axis) -> Dimension:
    """Return a dimension of one axis."""
    return () if axis.length == 1 else (axis,)


def places_of(dimension: Dimension) -> frozenset[Place]:
    """Return the dimensions of parameters that run along a dimension."""
    return _NOWHERE.union(*(axis.places for axis in dimension))


_ODD = frozenset(
    "neg abs relu sqrt sign tanh square sin asin atan sinh hardtanh leaky_relu elu gelu silu mish erf expm1 log1p "
    "hardswish softsign ceil floor round trunc nan_to_num relu6 selu celu".split()
)
"""Functions of one value that are zero at zero."""


def elementwise(
    name: str, operands: list[Stored], arguments: dict[str, Any], shapes: list[tuple[int, ...]]
) -> list[Stored]:
    """Combine values element by element."""
    (shape,) = shapes
    mixed = set[Place]().union(*(operand.mixed for operand in operands))
    scalars = [v for k, v in arguments.items() if isinstance(v, (int, float)) and k not in ("alpha", "rounding_mode")]
    dimensions: list[Dimension] = []
    for dim in range(-len(shape), 0):
        given = [operand.dimensions[dim] if -dim <= len(operand.dimensions) else () for operand in operands]
        dimension, gone = combine(given, shape[dim])
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


def combine(given: list[Dimension], length: int) -> tuple[Dimension, frozenset[Place]]:
    """Put the axes of one dimension of several operands together; return also the places that are lost by that."""
    if length == 1:
        return (), _NOWHERE
    parts = [part for part in given if part and not all(axis.flat for axis in part)]
    if not parts:
        return (Axis(length, flat=True),), _NOWHERE
    every = _NOWHERE.union(*(places_of(part) for part in parts))
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


def nowhere_zero(value: Stored) -> Stored:
    """Return a value that is zero nowhere, whatever the parameters are."""
    return replace(value, dimensions=tuple(tuple(replace(a, vanishes=False) for a in d) for d in value.dimensions))
