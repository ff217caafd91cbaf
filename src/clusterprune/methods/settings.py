"""From names and plain values, as a recipe or a command line has them, to the settings of a method."""

import types
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from clusterprune import clustering
from clusterprune.clustering import Clustering
from clusterprune.errors import ArgumentError
from clusterprune.methods.cp_rates import Adaptive, ClusterCount, Constant, Silhouette

Settings = TypeVar("Settings")
Reader = Callable[[Any], Any]


def read_settings(
    kind: type[Settings], given: Mapping[str, Any], *, readers: Mapping[str, Reader] = types.MappingProxyType({})
) -> Settings:
    """Make an instance of a dataclass of settings from plain values; lists become tuples.

    Parameters
    ----------
    kind
        The dataclass.
    given
        Values by name of field.
    readers
        For fields whose values are objects: what makes them from plain values.

    Raises
    ------
    ArgumentError
        If there is no such field, or it does not accept the value.
    """
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise ArgumentError(f"{name}={value!r} is no setting of {kind.__name__}; it has {', '.join(sorted(known))}")
        found[name] = readers[name](value) if name in readers else _checked(name, value, hints[name])
    return kind(**found)


def _checked(name: str, value: Any, hint: Any) -> Any:
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        rules = "; or ".join(dict.fromkeys(fault["msg"][0].lower() + fault["msg"][1:] for fault in error.errors()))
        raise ArgumentError(f"{name}={value!r} is not accepted: {rules}") from None


def read_cluster_count(value: Any) -> ClusterCount:
    """Return how many clusters CP makes; a ready object passes.

    Parameters
    ----------
    value
        ``{"adaptive": real_rate}``, ``{"constant": number}``, ``{"share": share}`` or ``"silhouette"``.

    Raises
    ------
    ArgumentError
        For anything else.
    """
    if not isinstance(value, str | Mapping):
        return value
    if value == "silhouette":
        return Silhouette()
    makers: dict[str, Callable[[Any], ClusterCount]] = {
        "adaptive": lambda rate: Adaptive(_checked("adaptive", rate, float)),
        "constant": lambda number: Constant(number=_checked("constant", number, int)),
        "share": lambda share: Constant(share=_checked("share", share, float)),
    }
    if isinstance(value, Mapping) and len(value) == 1:
        ((kind, number),) = value.items()
        if kind in makers:
            return makers[kind](number)
    raise ArgumentError(
        f"clusters={value!r} is not known; give {{adaptive: RATE}}, {{constant: NUMBER}}, {{share: SHARE}} or "
        "silhouette"
    )


def read_clustering(value: Any) -> Clustering | None:
    """Return a clustering by name, with the settings it has by default; a ready object and None pass.

    Where it takes a number of clusters, CP sets that layer by layer.

    Raises
    ------
    ArgumentError
        If there is no clustering of that name.
    """
    if not isinstance(value, str):
        return value
    try:
        return clustering.create(value, n_clusters=2)
    except ArgumentError:
        return clustering.create(value)
