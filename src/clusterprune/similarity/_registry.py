"""Similarities by name, for the command line, recipes and plan files."""

from typing import Any, Literal, cast

from clusterprune.arguments import has_methods, make_by_name, shown
from clusterprune.errors import ArgumentError
from clusterprune.similarity._base import Similarity
from clusterprune.similarity.feature_maps import FeatureMaps
from clusterprune.similarity.filters import Filters

SimilarityName = Literal["feature_maps", "filters"]
"""Names of all similarities."""
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
    return make_by_name("similarity", _SIMILARITIES, name, options)


def read_similarity(value: Similarity | str) -> Similarity:
    """Return a similarity by its name; a ready object passes.

    Raises
    ------
    ArgumentError
        If there is no similarity of that name, or it is no similarity.
    """
    if isinstance(value, str) and value in _SIMILARITIES:
        return create(value)
    if not has_methods(value, "points"):
        raise ArgumentError(
            f"similarity must be one of {', '.join(_SIMILARITIES)}, or an object with the method points, such as "
            f"FeatureMaps(), but got similarity={shown(value)}"
        )
    return cast("Similarity", value)
