"""Mergings by name, for the command line, recipes and plan files."""

from typing import Any, Literal, cast

from clusterprune.arguments import has_methods, make_by_name, shown
from clusterprune.errors import ArgumentError
from clusterprune.merge._base import Merging
from clusterprune.merge.assign import Add, Drop, ScaledAdd
from clusterprune.merge.least_squares import LeastSquares
from clusterprune.merge.refit import Refit

MergingName = Literal["drop", "add", "scaled_add", "least_squares", "refit"]
"""Names of all mergings."""
FreeMergingName = Literal["drop", "least_squares", "refit"]
"""Names of those that need no clusters."""
_MERGINGS: dict[str, type[Any]] = {kind.name: kind for kind in (Drop, Add, ScaledAdd, LeastSquares, Refit)}


def names() -> tuple[str, ...]:
    """Return the names that :func:`create` knows."""
    return tuple(_MERGINGS)


def create(name: str, **options: Any) -> Merging:
    """Return the merging called ``name`` with the given options.

    Raises
    ------
    ArgumentError
        The name, an option or an option's value does not exist; the message lists what does.
    """
    return make_by_name("merging", _MERGINGS, name, options)


def read_merging(value: Merging | str) -> Merging:
    """Return a merging by its name; a ready object passes.

    Raises
    ------
    ArgumentError
        If there is no merging of that name, or it is no merging.
    """
    if isinstance(value, str) and value in _MERGINGS:
        return create(value)
    if not has_methods(value, "merge", "finish"):
        raise ArgumentError(
            f"merging must be one of {', '.join(_MERGINGS)}, or an object with the methods merge and finish, such as "
            f"LeastSquares(), but got merging={shown(value)}"
        )
    return cast("Merging", value)
