"""Similarities by name, for the command line, recipes and plan files."""

from typing import Any

from clusterprune.arguments import make_by_name
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
    return make_by_name("similarity", _SIMILARITIES, name, options)
