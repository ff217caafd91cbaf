"""Similarities by name, for the command line, recipes and plan files."""

import dataclasses
from typing import Any

from clusterprune.errors import ArgumentError
from clusterprune.similarity._base import Similarity
from clusterprune.similarity.feature_maps import FeatureMaps
from clusterprune.similarity.filters import Filters

_SIMILARITIES: dict[str, type[Any]] = {kind.name: kind for kind in (FeatureMaps, Filters)}


def names() -> tuple[str, ...]:
    """Return the names that :func:`create` knows."""
    return tuple(_SIMILARITIES)


def create(name: str, **options: Any) -> Similarity:
    """Return the similarity called ``name`` with the given options.

    ``create(s.name, **dataclasses.asdict(s))`` equals ``s``.

    Raises
    ------
    ArgumentError
        The name, an option or an option's value does not exist; the message lists what does.
    """
    kind = _SIMILARITIES.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ArgumentError(f"similarity name must be one of {', '.join(_SIMILARITIES)}, but got name={name!r}.")
    known = [field.name for field in dataclasses.fields(kind)]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ArgumentError(
            f"similarity {name!r} has no option {', '.join(map(repr, unknown))}; its options are {', '.join(known)}."
        )
    return kind(**options)
